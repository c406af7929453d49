"""A worker process of the server: loads the target, serves it over both transports, follows."""

import asyncio
import gc
import logging
import math
import os
import signal
import time
from pathlib import Path

from serving.bundle import open_bundle
from serving.engine import Engine
from serving.errors import VerificationFailed
from serving.server import logging_config
from serving.server.alias_follower import RETRY_S, TICK_S, ServedVersion
from serving.server.grpc_server import GrpcServer
from serving.server.rest_routes import ROUTES
from serving.server.rest_server import RestServer
from serving.server.service import Served, Service
from serving.server.settings import Settings
from serving.server.tracing import open_tracer

LOG = logging.getLogger(__name__)


class Worker:
    """The application that granian runs in one process.

    Args:
        settings: what the parent says.
        index: 0 for the first worker.
    """

    def __init__(self, settings: Settings, index: int) -> None:
        logging_config.configure(settings.log_format)
        self._settings = settings
        self._tracer = open_tracer()
        self._counters = settings.open_counters(index + 1)
        for gauge in ("ready", "queued_rows", "queued_bytes"):
            self._counters.put(gauge, value=0)
        self._service = Service(
            self._counters,
            max_requests=settings.max_requests,
            max_rows=settings.max_queue,
            timeout_s=settings.timeout_s,
        )
        self._changed = 0
        self._retry_at = math.inf
        self._stopping_grpc: asyncio.Future[None] | None = None
        self._target = self._read_target()
        self._service.serve(self._open(self._target))
        rest = RestServer(
            self._service,
            ROUTES,
            settings.access,
            settings.limits,
            self._tracer,
            access_log=settings.access_log,
        )
        self._rest = rest
        self.__rsgi__ = rest.__rsgi__
        self._grpc: GrpcServer | None = None
        self._following: asyncio.Task[None] | None = None

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start what lives beside HTTP; granian listens once this returns."""
        loop.run_until_complete(self._start())
        gc.freeze()  # what is there stays: the collector need not look at it again
        gc.set_threshold(50_000, 20, 100)
        self._following = loop.create_task(self._follow())

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop gRPC; the requests of HTTP have ended."""
        loop.run_until_complete(self._stop())

    async def _start(self) -> None:
        settings = self._settings
        self._grpc = GrpcServer(
            self._service,
            settings.access,
            self._tracer,
            max_bytes=settings.limits.body_bytes,
            max_calls=settings.max_connections,
            access_log=settings.access_log,
        )
        certificate = None
        if settings.tls is not None:
            chain, key = (path.read_bytes() for path in settings.tls)
            certificate = (key, chain)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        await self._grpc.start(f"{host}:{settings.grpc_port}", certificate)
        self._counters.put("ready", value=1)

    async def _stop(self) -> None:
        self._counters.put("ready", value=0)
        if self._following is not None:
            self._following.cancel()
        if self._stopping_grpc is not None:
            await self._stopping_grpc
        self._tracer.close()

    def _read_target(self) -> ServedVersion:
        self._changed = self._settings.target.stat().st_mtime_ns
        target = ServedVersion.read(self._settings.target)
        self._service.refused = target.refused
        return target

    def _open(self, target: ServedVersion) -> Served:
        bundle = open_bundle(Path(target.path))
        if bundle.manifest.digest != target.digest:
            raise VerificationFailed(f"{target.path} holds another bundle than at the start")
        engine = Engine(
            bundle,
            device=self._settings.device,
            threads=self._settings.threads,
        )
        return self._service.open(engine, target.name, target.version)

    async def _follow(self) -> None:
        """Take up each new target; end when the parent says so, or is gone."""
        while not (self._counters.get("stopping") or os.getppid() != self._settings.parent):
            await asyncio.sleep(TICK_S)
            self._counters.put("queued_rows", value=self._service.served.batcher.queued)
            self._counters.put("queued_bytes", value=self._rest.held)
            try:
                await self._look()
            except Exception:
                LOG.exception("version %s goes on", self._service.served.version)
        if self._grpc is not None:  # HTTP ends on its own, at the same time
            grace_s = max(self._settings.drain_s - 1, 0.1)
            self._stopping_grpc = asyncio.ensure_future(self._grpc.stop(grace_s))
        if os.getppid() != self._settings.parent:
            LOG.error("the parent process is gone: stopping")
            os.kill(os.getpid(), signal.SIGTERM)
        # until now signals were held: a group may get SIGTERM at once, and is to drain
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    async def _look(self) -> None:
        changed = self._settings.target.stat().st_mtime_ns != self._changed
        if not changed and time.monotonic() < self._retry_at:
            return
        self._retry_at = math.inf
        target = self._read_target()
        if (target.path, target.version) == (self._target.path, self._target.version):
            return
        try:
            served = await asyncio.to_thread(self._open, target)
        except Exception as err:  # noqa: BLE001 - whatever it is, the old version goes on
            LOG.error("version %s is refused: %s", target.version, err)
            self._counters.add("reload_failures")
            self._service.refused = {"version": str(target.version), "reason": str(err)}
            self._retry_at = time.monotonic() + RETRY_S
        else:
            self._service.serve(served)
            self._target = target
            LOG.info("serving version %s", served.version)
