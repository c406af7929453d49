"""SIGINT and SIGTERM that wait for a good moment.

In: signals, while a block runs. Out: the number of the first that came. When the block has ended
the signal is raised again, and does what it would have done at once.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether a signal has come.

    A signal that is ignored stays so. Outside the main thread, which alone may set handlers, none
    is deferred.
    """
    came: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
    # None is a handler that was not set from Python, which could not be restored
    before = {
        number: handler
        for number, handler in before.items()
        if handler not in (signal.SIG_IGN, None)
    }
    for number in before:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
