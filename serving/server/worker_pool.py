"""The worker processes of a server: start them, replace those that die, and end them."""

import contextlib
import logging
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType

from serving.server.settings import Settings
from serving.server.shared_counters import SharedCounters

LOG = logging.getLogger(__name__)
ANNOUNCED_S = 1.0
"""Seconds in which answers tell clients that keep a connection to close it, before the ports
close."""
CRASH_S = 5.0
"""A worker that dies this soon after it was started again would do so for ever."""
_LATE_S = 1.0
"""Seconds by which workers may outlast the drain before they are killed."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class WorkerPool:
    """Runs a function in as many processes as there are workers.

    The first signal lets the server drain; a second one ends it at once. Each worker ends by itself
    when the shared counters say `stopping`, or when its parent has gone.

    Args:
        settings: what the parent passes to its workers.
        counters: the shared counters, of the parent.
        run: what a worker runs, given its number from 0; it is pickled.
    """

    def __init__(
        self, settings: Settings, counters: SharedCounters, run: Callable[[int], None]
    ) -> None:
        self._settings = settings
        self._counters = counters
        self._run = run
        self._context = multiprocessing.get_context("spawn")  # a fork is unsafe if threads run
        self._workers: list[BaseProcess] = []
        self._restarted: dict[int, float] = {}
        self._woken, self._wake = self._context.Pipe(duplex=False)
        self._signals = 0

    def serve(self) -> None:
        """Run the workers until a signal comes, from the main thread.

        Raises:
            SystemExit: 1, since a worker died again and again.
        """
        before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        try:
            for index in range(self._settings.workers):
                self._workers.append(self._start(index))  # at once: if a start fails, they end
            crashed = self._watch()
            self._stop()
        finally:
            for worker in self._workers:
                worker.kill()
            for worker in self._workers:
                worker.join()
            for number, handler in before.items():
                signal.signal(number, handler)
        if crashed:
            raise SystemExit(1)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        self._wake.send_bytes(b"\0")

    def _start(self, index: int) -> BaseProcess:
        process = self._context.Process(target=self._run, args=(index,), name=f"worker {index}")
        with block_signals():
            process.start()
        return process

    def _watch(self) -> bool:
        """Replace workers that die, until a signal comes; return whether one cannot live."""
        while not self._signals:
            wait([self._woken, *(worker.sentinel for worker in self._workers)])
            for index, worker in enumerate(self._workers):
                if worker.is_alive() or self._signals:
                    continue
                worker.join()
                LOG.error("worker %d ended with exit code %s", index, worker.exitcode)
                now = time.monotonic()
                if now - self._restarted.get(index, -CRASH_S) < CRASH_S:
                    LOG.error("worker %d cannot live: stopping", index)
                    return True
                self._restarted[index] = now
                self._workers[index] = self._start(index)
        return False

    def _stop(self) -> None:
        """Announce the end, then let the workers end by themselves, or kill them."""
        drain_s = self._settings.drain_s
        self._counters.set_flag("draining", value=1)
        LOG.info("draining")
        self._pause(min(ANNOUNCED_S, drain_s))
        self._counters.set_flag("stopping", value=1)
        self._pause(drain_s + _LATE_S)

    def _pause(self, seconds: float) -> None:
        """Wait so long, or until all workers have ended or a second signal has come."""
        end = time.monotonic() + seconds
        while self._signals < 2 and (left := end - time.monotonic()) > 0:
            alive = [worker.sentinel for worker in self._workers if worker.is_alive()]
            if not alive:
                return
            if self._woken in wait([self._woken, *alive], left):
                self._woken.recv_bytes()


@contextlib.contextmanager
def block_signals() -> Iterator[None]:
    """Start processes with these signals blocked: their parent decides when they end."""
    resource_tracker.ensure_running()  # starting it inside would unblock SIGINT and SIGTERM
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
