"""Granian, the HTTP server, behind one adapter: worker processes, with public hooks.

Granian has no public hook for a worker's index, for the signals that a new process blocks, or for
the moment before workers stop. Four of its private methods are overridden here, and nowhere else;
tests/serving/server/test_granian_adapter.py checks that the installed granian still has them.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from granian.constants import HTTPModes, Interfaces, Loops, RuntimeModes, SSLProtocols
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.mp import MPServer

HEADER_TIMEOUT_MS = 30_000
Application = Any
"""An RSGI application: an object with `__rsgi__`, and maybe `__rsgi_init__`, `__rsgi_del__`."""


class GranianServer(MPServer):  # type: ignore[misc]
    """Listens, restarts workers that die, and kills those that do not stop in time.

    Args:
        host: an address; granian takes no host names.
        port: the port that all workers share.
        workers: number of processes.
        max_connections: connections that each worker accepts at a time.
        stop_timeout_s: seconds that workers have to stop.
        tls: files of the certificate chain and the key.
        log_config: granian's logging, as `logging.config.dictConfig` takes it.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        workers: int,
        max_connections: int,
        stop_timeout_s: float,
        tls: tuple[Path, Path] | None,
        log_config: Mapping[str, object],
    ) -> None:
        chain, key = tls or (None, None)
        super().__init__(
            "serving",
            address=host,
            port=port,
            interface=Interfaces.RSGI,
            workers=workers,
            runtime_mode=RuntimeModes.st,
            loop=Loops.uvloop,
            http=HTTPModes.http1,
            websockets=False,
            backlog=1024,
            backpressure=max_connections,
            http1_settings=HTTP1Settings(header_read_timeout=HEADER_TIMEOUT_MS),
            log_level=LogLevels.warning,
            log_dictconfig=log_config,
            ssl_cert=chain,
            ssl_key=key,
            ssl_protocol_min=SSLProtocols.tls12,
            respawn_failed_workers=True,
            workers_kill_timeout=max(1, round(stop_timeout_s)),
        )

    def run_workers(self, load: Callable[[int], Application]) -> None:
        """Run until a signal stops the server; each process calls `load` with its index, from 0."""
        self.serve(target_loader=load, wrap_loader=False)

    def stop(self) -> None:
        """Stop the workers and end `run_workers`."""
        super().signal_handler_interrupt()

    def kill_workers(self) -> None:
        """Kill the workers at once."""
        for worker in self.wrks:
            worker.kill()

    def stop_requested(self) -> None:
        """Handle a signal that asks the server to stop."""
        self.stop()

    def workers_stopping(self) -> None:
        """Do what must be done before the workers are told to stop."""

    def signal_handler_interrupt(self, *args: Any, **kwargs: Any) -> None:
        """Handle SIGINT and SIGTERM."""
        self.stop_requested()

    def signal_handler_reload(self, *args: Any, **kwargs: Any) -> None:
        """Handle SIGHUP, which comes when a terminal is closed, as a request to stop."""
        self.stop_requested()

    def _spawn_workers(self, spawn_target: Any, target_loader: Any) -> None:
        with _block_signals():
            super()._spawn_workers(spawn_target, target_loader)

    def _respawn_workers(self, *args: Any, **kwargs: Any) -> None:
        with _block_signals():
            super()._respawn_workers(*args, **kwargs)

    def _spawn_worker(self, idx: int, target: Any, callback_loader: Any) -> Any:
        return super()._spawn_worker(idx, target, partial(callback_loader, idx))

    def _stop_workers(self) -> None:
        self.workers_stopping()
        super()._stop_workers()


@contextlib.contextmanager
def _block_signals() -> Iterator[None]:
    """Start processes with these signals blocked: their parent decides when they end."""
    resource_tracker.ensure_running()  # starting it inside would unblock SIGINT and SIGTERM
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    )
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
