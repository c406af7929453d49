"""The parent process of `vae serve`: open the model, start workers, follow the version, drain.

It runs no graph itself, and does not import onnxruntime: it would keep that memory for good.
"""

import errno
import logging
import multiprocessing
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from serving.bundle import Bundle
from serving.champion import Follow, Refusal, choose_follow, named_version, open_named
from serving.errors import UsageRefused, VaeError, VerificationFailed
from serving.mlflow_store import connect
from serving.server import logging_config
from serving.server.settings import Settings
from serving.server.shared_counters import SharedCounters
from serving.server.version_follower import WATCH_INTERVAL_S, ServedVersion, VersionFollower
from serving.server.worker_pool import WorkerPool, block_signals
from serving.source import Source, open_cached, open_source, parse_reference, remember

LOG = logging.getLogger(__name__)
START_S = 60.0


def run_server(
    reference: str,
    settings: Settings,
    *,
    poll_s: float,
    started: Callable[[Source], None],
    follow: Follow | None = None,
    observing: AbstractContextManager[object] | None = None,
) -> None:
    """Serve until a signal comes; call `started` when all workers are ready.

    `observing` runs beside the workers: it is entered before they start, and left when they ended.

    Raises:
        UsageRefused: the ledger cannot be followed, since it is not about this reference.
        VerificationFailed, DeviceUnavailable: the model cannot be served.
        VaeError: the registry cannot be reached and nothing is cached, or a worker cannot start.
    """
    logging_config.configure(settings.log_format)
    multiprocessing.set_start_method("spawn", force=True)  # a fork is unsafe if threads run
    registered = parse_reference(reference)
    follow = choose_follow(registered, follow)
    source = open_first(reference, settings.verify_key, follow)
    check = partial(self_check, settings)
    check(source)
    ServedVersion.of(source).write(settings.version_file)
    counters = settings.open_counters(0)
    counters.set_flag("started", value=time.time())
    if registered is not None and registered.alias is not None:
        follower = VersionFollower(
            reference,
            registered,
            follow,
            source,
            settings.version_file,
            check,
            counters,
            poll_s,
            settings.verify_key,
        )
        threading.Thread(target=follower.run, name="follower", daemon=True).start()
    pool = WorkerPool(settings, counters, partial(_run_worker, settings))
    threading.Thread(
        target=_announce, args=(counters, settings, partial(started, source)), daemon=True
    ).start()
    with observing or nullcontext():
        pool.serve()


def open_first(reference: str, verify_key: Path | None = None, follow: Follow = "alias") -> Source:
    """Open the cached version if there is one, so that a start needs no registry.

    Raises:
        VerificationFailed: the ledger is followed, and the champion passed no gate.
    """
    source = open_cached(reference, verify_key, follow)
    if source is not None:
        LOG.info("starting with version %s from the cache", source.version)
        return source
    if follow == "ledger":
        source = _open_champion(reference, verify_key)
    else:
        source = open_source(reference, verify_key)
    if source.version is not None:
        remember(reference, source, follow)
    return source


def _open_champion(reference: str, verify_key: Path | None) -> Source:
    registered = parse_reference(reference)
    assert registered is not None
    client = connect()
    found = named_version(client, registered, "ledger")
    if found is None:
        return open_source(reference, verify_key)  # which says what there is instead
    if isinstance(found, Refusal):
        raise VerificationFailed(found.reason)
    return open_named(client, registered.name, found, verify_key)


def self_check(settings: Settings, source: Source) -> None:
    """Open every graph on the device, and compare its outputs with torch's, in another process.

    Raises:
        VerificationFailed, DeviceUnavailable: the model cannot be served.
    """
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(
        target=_self_check,
        args=(sender, source.bundle, settings.device, settings.threads, settings.cuda_graph),
    )
    with block_signals():  # this process decides what a signal ends
        process.start()
    sender.close()
    try:
        err: Exception | None = receiver.recv()
    except EOFError:
        process.join()
        err = VerificationFailed(
            f"the self-check of {source.bundle.path} ended with exit code {process.exitcode}"
        )
    process.join()
    if err is not None:
        raise err


def _self_check(
    sender: Connection, bundle: Bundle, device: str, threads: int, cuda_graph: bool
) -> None:
    from serving.engine import Engine

    try:
        Engine(bundle, device=device, threads=threads, cuda_graph=cuda_graph).self_check()
    except Exception as err:  # noqa: BLE001 - raised in the parent
        sender.send(err)
    else:
        sender.send(None)


def _run_worker(settings: Settings, index: int) -> None:
    from serving.server.worker import run_worker

    run_worker(settings, index)


def resolve_host(host: str) -> str:
    """Return the first address of a host name: all workers listen there, on both ports."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as err:
        raise UsageRefused(f"cannot listen at {host!r}: {err.strerror}; name an address") from err


def free_port(host: str, port: int, option: str) -> int:
    """Check that a port is free before workers share it; choose a free one for port 0."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as err:
        if err.errno == errno.EADDRNOTAVAIL:
            raise UsageRefused(
                f"cannot listen at {host}: it is not an address of this machine; "
                "choose another with --host"
            ) from err
        raise UsageRefused(
            f"cannot listen at {host}:{port}: {err.strerror}; choose another with {option}"
        ) from err


def _announce(counters: SharedCounters, settings: Settings, started: Callable[[], None]) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and not counters.get("draining"):
        if counters.total("ready") >= settings.workers and _accepts_connections(settings):
            _tell(started)
            return
        time.sleep(WATCH_INTERVAL_S / 10)
    if not counters.get("draining"):
        LOG.error("not all workers were ready within %d s", START_S)


def _tell(started: Callable[[], None]) -> None:
    try:
        started()
    except VaeError as err:  # the server can be used all the same
        LOG.error("%s", err)


def _accepts_connections(settings: Settings) -> bool:
    try:
        socket.create_connection((settings.host, settings.port), 1).close()
    except OSError:
        return False
    return True
