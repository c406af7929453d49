"""Defer SIGINT and SIGTERM until a block of code has ended.

When the block has ended, the first signal that arrived is raised again and has its usual effect.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Defer signals while the block runs; yield a function that returns whether one has arrived.

    A signal that is ignored stays ignored. Outside the main thread, which alone may set handlers,
    nothing is deferred.
    """
    came: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
    # a handler of None was not set from Python, and could not be restored
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
