"""Read in a thread of its own what training will need next.

In: an iterator that reads. Out: the same items in the same order, each read before it is asked for.
The thread computes nothing with torch, whose threads would wait for those of the training. What the
iterator raises is raised where its item is asked for.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Event
from typing import TypeVar

from pipeline.errors import TrainingStopped

_Item = TypeVar("_Item")

_POLL_S = 0.2
"""Seconds after which a wait for an item looks whether training is to stop."""


def read_ahead(
    items: Iterator[_Item], ahead: int, stop: Callable[[], bool], closing: Event
) -> Generator[_Item, None, None]:
    """Yield the items, and have at most `ahead` more of them read meanwhile.

    However it ends, it sets `closing`, at which the iterator may end early, and then waits for the
    end of the thread.

    Raises:
        TrainingStopped: `stop` returned true while an item was waited for.
    """
    with ThreadPoolExecutor(1, "read-ahead") as pool:
        coming = deque(pool.submit(next, items, None) for _ in range(ahead))
        try:
            while (item := _await(coming.popleft(), stop)) is not None:
                coming.append(pool.submit(next, items, None))
                yield item
        finally:
            closing.set()
            for future in coming:
                future.cancel()


def _await(future: "Future[_Item | None]", stop: Callable[[], bool]) -> _Item | None:
    while not future.done():
        if not wait([future], _POLL_S).done and stop():
            raise TrainingStopped("training was stopped while rows were read")
    return future.result()
