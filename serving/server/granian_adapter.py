"""Granian, the HTTP server, behind one adapter: it runs the workers, and drains before it stops.

Granian listens, restarts workers that die, and kills those that do not stop in time. It has no
public hook for a worker's index, for the signals that a new process blocks, or for the moment
before workers stop, so four of its private methods are overridden, only here.
tests/serving/server/test_granian_adapter.py checks that the installed granian still has them.
"""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import resource_tracker
from typing import Any

from granian.constants import HTTPModes, Interfaces, Loops, RuntimeModes, SSLProtocols
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.mp import MPServer

from serving.server.logging_config import granian_config
from serving.server.settings import Settings
from serving.server.shared_counters import SharedCounters

LOG = logging.getLogger(__name__)
HEADER_TIMEOUT_MS = 30_000
_LOOK_S = 0.01
"""Time between two looks at whether the workers have ended."""


class GranianServer(MPServer):  # type: ignore[misc]
    """Granian with our settings, an index for each worker, and a drain before it stops."""

    def __init__(self, settings: Settings, counters: SharedCounters) -> None:
        chain, key = settings.tls or (None, None)
        self._stop_s = max(1, round(settings.drain_s))
        super().__init__(
            "serving",
            address=settings.host,
            port=settings.port,
            interface=Interfaces.RSGI,
            workers=settings.workers,
            runtime_mode=RuntimeModes.st,
            loop=Loops.uvloop,
            http=HTTPModes.http1,
            websockets=False,
            backlog=1024,
            backpressure=settings.max_connections,
            http1_settings=HTTP1Settings(header_read_timeout=HEADER_TIMEOUT_MS),
            log_level=LogLevels.warning,
            log_dictconfig=granian_config(settings.log_format),
            ssl_cert=chain,
            ssl_key=key,
            ssl_protocol_min=SSLProtocols.tls12,
            respawn_failed_workers=True,
            workers_kill_timeout=self._stop_s,
        )
        self._settings = settings
        self._counters = counters

    def run_workers(self, load: Callable[[int], Any]) -> None:
        """Run until a signal stops the server.

        In each process, `load` makes the RSGI application from the worker's index, 0 for the first.
        """
        self.serve(target_loader=load, wrap_loader=False)

    def signal_handler_interrupt(self, *args: Any, **kwargs: Any) -> None:
        """Announce that the server drains, then stop it; a second signal stops it at once."""
        if self._counters.get("draining"):
            super().signal_handler_interrupt()
            for worker in self.wrks:
                worker.kill()
            return
        self._counters.set_flag("draining", value=1)
        LOG.info("draining")
        # in the meantime, answers tell clients that keep a connection to close it
        timer = threading.Timer(min(1.0, self._settings.drain_s), super().signal_handler_interrupt)
        timer.daemon = True
        timer.start()

    def signal_handler_reload(self, *args: Any, **kwargs: Any) -> None:
        """Drain, since the terminal was closed."""
        self.signal_handler_interrupt()

    def _spawn_workers(self, spawn_target: Any, target_loader: Any) -> None:
        with block_signals():
            super()._spawn_workers(spawn_target, target_loader)

    def _respawn_workers(self, *args: Any, **kwargs: Any) -> None:
        with block_signals():
            super()._respawn_workers(*args, **kwargs)

    def _spawn_worker(self, idx: int, target: Any, callback_loader: Any) -> Any:
        return super()._spawn_worker(idx, target, partial(callback_loader, idx))

    def _stop_workers(self) -> None:
        """Let the workers end by themselves, as granian would, and kill those that do not.

        Granian gives a worker that has closed its files one millisecond to be gone, and then says
        that it refused to stop and was killed: one in some ten stops took a little longer.
        """
        self._counters.set_flag("stopping", value=1)
        for worker in self.wrks:
            worker.terminate()
        until = time.monotonic() + self._stop_s
        while time.monotonic() < until and any(worker.is_alive() for worker in self.wrks):
            time.sleep(_LOOK_S)
        self.workers_kill_timeout = _LOOK_S  # the time is up
        super()._stop_workers()


@contextlib.contextmanager
def block_signals() -> Iterator[None]:
    """Start processes with these signals blocked: their parent decides when they end."""
    resource_tracker.ensure_running()  # starting it inside would unblock SIGINT and SIGTERM
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
