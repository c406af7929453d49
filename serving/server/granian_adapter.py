"""The one place that knows the inside of granian: what we override and read of its server.

Granian offers no public way to number its workers, to start them with signals blocked, or to drain
before they stop. `tests/serving/server/test_granian_adapter.py` fails, in words, if a new granian
has another inside.
"""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from functools import partial
from multiprocessing import resource_tracker
from typing import Any

from granian.constants import HTTPModes, Interfaces, Loops, RuntimeModes, SSLProtocols
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.mp import MPServer

from serving.server import logging_config
from serving.server.settings import Settings
from serving.server.shared_counters import SharedCounters

LOG = logging.getLogger(__name__)
HEADER_TIMEOUT_MS = 30_000


class GranianServer(MPServer):  # type: ignore[misc]
    """Granian with our settings, a number for each worker, and a drain before it stops."""

    def __init__(self, settings: Settings, counters: SharedCounters) -> None:
        chain, key = settings.tls or (None, None)
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
            log_dictconfig=logging_config.granian_config(settings.log_format),
            ssl_cert=chain,
            ssl_key=key,
            ssl_protocol_min=SSLProtocols.tls12,
            respawn_failed_workers=True,
            workers_kill_timeout=max(1, round(settings.drain_s)),
        )
        self._settings = settings
        self._counters = counters

    def _spawn_workers(self, spawn_target: Any, target_loader: Any) -> None:
        with _signals_held():
            super()._spawn_workers(spawn_target, target_loader)

    def _respawn_workers(self, *args: Any, **kwargs: Any) -> None:
        with _signals_held():
            super()._respawn_workers(*args, **kwargs)

    def _stop_workers(self) -> None:
        self._counters.tell("stopping", value=1)
        super()._stop_workers()

    def _spawn_worker(self, idx: int, target: Any, callback_loader: Any) -> Any:
        return super()._spawn_worker(idx, target, partial(callback_loader, idx))

    def signal_handler_reload(self, *args: Any, **kwargs: Any) -> None:
        """Drain, since the terminal was closed."""
        self.signal_handler_interrupt()

    def signal_handler_interrupt(self, *args: Any, **kwargs: Any) -> None:
        """Announce the drain, let clients turn away, then stop; a second signal stops at once."""
        if self._counters.get("draining"):
            super().signal_handler_interrupt()
            for worker in self.wrks:
                worker.kill()
            return
        self._counters.tell("draining", value=1)
        LOG.info("draining")
        # clients that keep a connection are told to close it with their next answer
        timer = threading.Timer(min(1.0, self._settings.drain_s), super().signal_handler_interrupt)
        timer.daemon = True
        timer.start()


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Start processes with these signals blocked: their parent decides when they end."""
    resource_tracker.ensure_running()  # its start would unblock both signals again
    held = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
