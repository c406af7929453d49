"""What the parent process does for the observer: start it, start it again, and let it finish.

The parent holds both ends of the socket, so that rows that wait in it outlive an observer that was
killed. An observer that only watches is started with the first row: a quiet server needs none.
"""

import contextlib
import logging
import multiprocessing
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from serving.live.challenger import ChallengerFollower
from serving.live.options import ObserverOptions

LOG = logging.getLogger(__name__)
SOCKET_BYTES = 4 * 2**20
"""Asked for, of rows that wait; the system may allow less."""
LOOK_S = 0.2
STEADY_S = 60.0
"""An observer that has run for so long is started again at once when it dies."""
BACK_OFF_S = (0.5, 60.0)
"""Shortest and longest time until it is started again; it doubles each time."""
FINISH_S = 20.0
"""Time that it has to take up the last rows when the server stops."""


def open_sockets() -> tuple[socket.socket, socket.socket]:
    """Return the ends for the workers and for the observer, of a pair of datagram sockets.

    A pair, since Linux lets at most ten messages wait in a socket that many may send to.
    """
    workers, observer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with contextlib.suppress(OSError):
        workers.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
    return workers, observer


class Observing:
    """A context in which the observer runs; it is entered before the workers start.

    Args:
        rows: the observer's end of the socket.
        options: what to observe.
        configure_logs: sends log lines to where those of the server go.
        block_signals: starts processes so that this one decides what a signal ends.
        follower: finds the challenger, if there is one.
    """

    def __init__(
        self,
        rows: socket.socket,
        options: ObserverOptions,
        configure_logs: Callable[[], None],
        block_signals: Callable[[], AbstractContextManager[None]],
        follower: ChallengerFollower | None = None,
    ) -> None:
        self._rows = rows
        self._options = options
        self._configure_logs = configure_logs
        self._block_signals = block_signals
        self._follower = follower
        self._stopping = threading.Event()
        self._process: BaseProcess | None = None
        self._alive: Connection | None = None
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Observing":
        """Watch for the first row."""
        self._begin("observing", self._keep)
        if self._follower is not None:
            follower = self._follower
            self._begin("challenger", lambda: follower.run(self._stopping))
        return self

    def __exit__(self, *error: object) -> None:
        """Let the observer take up what is left, and report the last sums."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(FINISH_S)
        if self._process is not None and self._alive is not None:
            self._alive.close()
            self._process.join(FINISH_S)
            if self._process.exitcode is None:
                LOG.error("the observer did not finish within %d s", FINISH_S)
                self._process.kill()
                self._process.join()
        if self._follower is not None:  # in a thread, since a registry that is away may take long
            self._threads.clear()
            self._begin("report", self._follower.report)
            self._threads[0].join(FINISH_S)

    def _begin(self, name: str, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _keep(self) -> None:
        """Start the observer with the first row, and again whenever it dies."""
        shortest, longest = BACK_OFF_S
        pause = shortest
        options = self._options
        at_once = options.capture is not None or options.challenger_file is not None
        while not self._stopping.is_set():
            if not (at_once or select.select([self._rows], [], [], LOOK_S)[0]):
                continue
            started = time.monotonic()
            try:
                process = self._start()
            except OSError as err:  # there is no memory for a process, or no file for its pipe
                LOG.error("the observer cannot start, and is tried again: %s", err)
                self._stopping.wait(pause)
                pause = min(2 * pause, longest)
                continue
            while process.exitcode is None and not self._stopping.is_set():
                process.join(LOOK_S)
            if self._stopping.is_set():
                return
            pause = shortest if time.monotonic() - started >= STEADY_S else pause
            LOG.error(
                "the observer ended with exit code %s: it starts again in %.1f s",
                process.exitcode,
                pause,
            )
            self._stopping.wait(pause)
            pause = min(2 * pause, longest)

    def _start(self) -> BaseProcess:
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(
            target=_observe,
            args=(self._rows, receiver, self._options, self._configure_logs),
            name="observer",
        )
        with self._block_signals():
            process.start()
        receiver.close()
        if self._alive is not None:
            self._alive.close()
        self._process, self._alive = process, sender
        return process


def _observe(
    rows: socket.socket,
    alive: Connection,
    options: ObserverOptions,
    configure_logs: Callable[[], None],
) -> None:
    from serving.live.observer import observe

    configure_logs()
    observe(rows, alive, options)
