"""A worker process: serves one version over REST and gRPC, and switches to each new version."""

import asyncio
import gc
import logging
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from serving.bundle import open_bundle
from serving.engine import Engine
from serving.errors import VerificationFailed
from serving.server import logging_config
from serving.server.grpc_calls import METHODS
from serving.server.grpc_server import GrpcServer
from serving.server.live_file import LiveFile
from serving.server.rest_routes import ROUTES
from serving.server.rest_server import RestServer
from serving.server.sampling import RowSampler
from serving.server.service import LoadedVersion, Service
from serving.server.settings import Settings
from serving.server.shared_counters import GAUGES
from serving.server.tracing import open_tracer
from serving.server.version_follower import RETRY_S, WATCH_INTERVAL_S, ServedVersion

LOG = logging.getLogger(__name__)
SWITCH_S = 0.0005
"""Seconds after which the event loop lets the thread go on that has ended a run: Python's own 5 ms
would be the delay of most requests to a model whose runs are long."""


class Worker:
    """Serves one version at a time, in one process.

    Args:
        settings: what the parent passes to its workers.
        index: the worker's number, from 0.
    """

    def __init__(self, settings: Settings, index: int) -> None:
        logging_config.configure(settings.log_format)
        self._settings = settings
        self._tracer = open_tracer()
        self._counters = settings.open_counters(index + 1)
        for gauge in GAUGES:
            self._counters.set(gauge, value=0)
        self._service = Service(
            self._counters,
            max_requests=settings.max_requests,
            max_rows=settings.max_queue,
            timeout_s=settings.timeout_s,
        )
        self._service.sampler = RowSampler(settings.live, self._counters)
        self._changed_ns = 0
        self._retry_at = math.inf
        self._version = self._read_version()
        self._service.serve(self._load(self._version))
        self._rest = RestServer(
            self._service,
            ROUTES,
            settings.access,
            settings.limits,
            self._tracer,
            cors=settings.cors,
            host=settings.host,
            access_log=settings.access_log,
            max_connections=settings.max_connections,
            live=LiveFile(settings.live_file),
        )
        self._grpc = GrpcServer(
            self._service,
            METHODS,
            settings.access,
            self._tracer,
            max_bytes=settings.limits.body_bytes,
            max_calls=settings.max_connections,
            access_log=settings.access_log,
        )

    async def run(self) -> None:
        """Serve until the parent asks for the end, or has ended."""
        settings = self._settings
        await self._rest.start(settings.host, settings.port, settings.tls)
        await self._grpc.start(settings.host, settings.grpc_port, settings.tls)
        self._counters.set("ready", value=1)
        gc.freeze()  # objects made so far live on: the collector need not visit them again
        gc.set_threshold(50_000, 20, 100)
        await self._watch()
        drain_s = settings.drain_s
        await asyncio.gather(self._rest.stop(drain_s), self._grpc.stop(drain_s))
        self._counters.set("ready", value=0)
        self._tracer.close()

    def _read_version(self) -> ServedVersion:
        self._changed_ns = self._settings.version_file.stat().st_mtime_ns
        version = ServedVersion.read(self._settings.version_file)
        self._service.refused, self._service.decision = version.refused, version.decision
        self._counters.set("version_refused", value=0)  # what the parent refused, it counts itself
        return version

    def _load(self, version: ServedVersion) -> LoadedVersion:
        bundle = open_bundle(Path(version.path))
        if bundle.manifest.digest != version.digest:
            raise VerificationFailed(f"{version.path} holds another bundle than at the start")
        settings = self._settings
        engine = Engine(
            bundle,
            device=settings.device,
            threads=settings.threads,
            cuda_graph=settings.cuda_graph,
        )
        return self._service.load(engine, version.name, version.version)

    async def _watch(self) -> None:
        """Switch to each new version; end when the parent asks for it, or has ended."""
        while not self._counters.get("stopping"):
            if os.getppid() != self._settings.parent:
                LOG.error("the parent process has ended: stopping")
                return
            await asyncio.sleep(WATCH_INTERVAL_S)
            self._counters.set("queued_rows", value=self._service.served.batcher.queued)
            self._counters.set("queued_bytes", value=self._rest.bodies.held)
            try:
                await self._take_up_new_version()
            except Exception:
                LOG.exception(
                    "cannot look for a new version: still serving version %s",
                    self._service.served.version,
                )

    async def _take_up_new_version(self) -> None:
        changed = self._settings.version_file.stat().st_mtime_ns != self._changed_ns
        if not changed and time.monotonic() < self._retry_at:
            return
        self._retry_at = math.inf
        version = self._read_version()
        if (version.path, version.version) == (self._version.path, self._version.version):
            return
        try:
            loaded = await asyncio.to_thread(self._load, version)
        except Exception as err:  # noqa: BLE001 - whatever fails, the old version still answers
            LOG.error("version %s is refused: %s", version.version, err)
            self._counters.add("reload_failures")
            self._counters.set("version_refused", value=1)
            self._service.refused = {"version": str(version.version), "reason": str(err)}
            self._retry_at = time.monotonic() + RETRY_S
        else:
            self._service.serve(loaded)
            self._version = version
            LOG.info("serving version %s", loaded.version)


def run_worker(settings: Settings, index: int) -> None:
    """Serve in this process, as the worker of this number, until the server stops."""
    sys.setswitchinterval(SWITCH_S)
    worker = Worker(settings, index)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(worker.run())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:  # there is none for Windows
        return asyncio.new_event_loop
    return uvloop.new_event_loop
