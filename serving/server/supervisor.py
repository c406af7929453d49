"""The parent process of `vae serve`: opens the model, starts workers, follows the alias, drains.

Granian listens, restarts workers that die, and ends those that do not stop in time.
"""

import contextlib
import errno
import logging
import multiprocessing
import signal
import socket
import tempfile
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

from serving.engine import Engine
from serving.errors import UsageRefused
from serving.server import logging_config
from serving.server.alias_follower import TICK_S, Follower, Target
from serving.server.shared_counters import Board
from serving.server.worker import Settings, Worker
from serving.source import Source, open_cached, open_source, parse_reference, remember

LOG = logging.getLogger(__name__)
HEADER_TIMEOUT_MS = 30_000
START_S = 60.0


def run_server(
    reference: str, settings: Settings, *, poll_s: float, started: Callable[[Source], None]
) -> None:
    """Serve until a signal comes; `started` is called when all workers are ready.

    Raises:
        VerificationFailed, DeviceUnavailable: the model cannot be served.
        VaeError: the registry cannot be reached and nothing is cached, or a worker cannot start.
    """
    logging_config.configure(settings.log_format)
    multiprocessing.set_start_method("spawn", force=True)  # threads run here; a fork is not safe
    source = open_first(reference)
    check = partial(self_check, settings)
    check(source)
    Target.of(source).write(settings.target)
    board = settings.open_board(0)
    registered = parse_reference(reference)
    if registered is not None and registered.alias is not None:
        follower = Follower(reference, registered, source, settings.target, check, board, poll_s)
        threading.Thread(target=follower.run, name="follower", daemon=True).start()
    server = Server(settings, board)
    threading.Thread(
        target=_announce, args=(board, settings, partial(started, source)), daemon=True
    ).start()
    server.serve(target_loader=partial(Worker, settings), wrap_loader=False)


def open_first(reference: str) -> Source:
    """What to serve first: what the cache remembers, so that a start needs no registry."""
    source = open_cached(reference)
    if source is not None:
        LOG.info("starting with version %s from the cache", source.version)
        return source
    source = open_source(reference)
    if source.version is not None:
        remember(reference, source)
    return source


def self_check(settings: Settings, source: Source) -> None:
    """Open every graph on the device, and compare its outputs with torch's."""
    Engine(source.bundle, device=settings.device, threads=settings.threads).self_check()


def resolve_host(host: str) -> str:
    """The address of a name: granian takes no names."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as err:
        raise UsageRefused(f"cannot listen at {host!r}: {err.strerror}; name an address") from err


def free_port(host: str, port: int, option: str) -> int:
    """Check that a port is free before workers share it; 0 chooses one."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as err:
        if err.errno == errno.EADDRNOTAVAIL:
            raise UsageRefused(
                f"cannot listen at {host}: it is no address of this machine; "
                "choose another with --host"
            ) from err
        raise UsageRefused(
            f"cannot listen at {host}:{port}: {err.strerror}; choose another with {option}"
        ) from err


def runtime_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for the files that the processes share, gone when the server ends."""
    return tempfile.TemporaryDirectory(prefix="vae-serve-")


class Server(MPServer):  # type: ignore[misc]
    """Granian with our settings, an index for each worker, and a drain before the stop."""

    def __init__(self, settings: Settings, board: Board) -> None:
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
        self._board = board

    def _spawn_workers(self, spawn_target: Any, target_loader: Any) -> None:
        with _signals_held():
            super()._spawn_workers(spawn_target, target_loader)

    def _respawn_workers(self, *args: Any, **kwargs: Any) -> None:
        with _signals_held():
            super()._respawn_workers(*args, **kwargs)

    def _stop_workers(self) -> None:
        self._board.tell("stopping", value=1)
        super()._stop_workers()

    def _spawn_worker(self, idx: int, target: Any, callback_loader: Any) -> Any:
        return super()._spawn_worker(idx, target, partial(callback_loader, idx))

    def signal_handler_reload(self, *args: Any, **kwargs: Any) -> None:
        """A terminal was closed: drain."""
        self.signal_handler_interrupt()

    def signal_handler_interrupt(self, *args: Any, **kwargs: Any) -> None:
        """Say that the server drains, let clients turn away, stop; a second signal stops now."""
        if self._board.get("draining"):
            super().signal_handler_interrupt()
            for worker in self.wrks:
                worker.kill()
            return
        self._board.tell("draining", value=1)
        LOG.info("draining")
        # clients that keep a connection are told to close it with their next answer
        timer = threading.Timer(min(1.0, self._settings.drain_s), super().signal_handler_interrupt)
        timer.daemon = True
        timer.start()


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Have processes begin without these signals: their parent decides when they end."""
    resource_tracker.ensure_running()  # where it starts, it lets both signals in again
    held = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _announce(board: Board, settings: Settings, started: Callable[[], None]) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and not board.get("draining"):
        if board.total("ready") >= settings.workers and _answers(settings):
            started()
            return
        time.sleep(TICK_S / 10)
    if not board.get("draining"):
        LOG.error("not all workers were ready within %d s", START_S)


def _answers(settings: Settings) -> bool:
    try:
        socket.create_connection((settings.host, settings.port), 1).close()
    except OSError:
        return False
    return True
