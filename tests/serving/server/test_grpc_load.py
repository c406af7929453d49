"""gRPC under load: clients that leave, a full queue, too many requests in progress."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from serving.engine import Engine
from serving.server.auth import Access
from serving.server.batching import Batcher
from serving.server.grpc_calls import METHODS
from serving.server.grpc_server import GrpcServer
from serving.server.service import LoadedVersion, Service
from serving.server.shared_counters import SharedCounters
from serving.server.supervisor import free_port
from serving.server.tracing import Tracer
from tests.serving.server.arrays import Arrays
from tests.serving.server.grpc_requests import Status, method, request_of


@dataclass(frozen=True, slots=True)
class Held:
    """A server in this process, whose runs wait for `go` after they began."""

    infer: Any
    counters: SharedCounters
    batcher: Batcher
    began: threading.Event
    go: threading.Event
    computed: list[int]
    """Number of rows of each finished run."""


@contextlib.asynccontextmanager
async def held(engine: Engine, folder: Path) -> AsyncIterator[Held]:
    began, go, computed = threading.Event(), threading.Event(), list[int]()

    def compute(name: str, inputs: Arrays) -> Arrays:
        began.set()
        assert go.wait(30)
        computed.append(len(next(iter(inputs.values()))))
        return engine.compute(name, inputs)

    counters = SharedCounters(folder / "counters", 2, 1)
    service = Service(counters, max_requests=4, max_rows=100, timeout_s=30)
    with ThreadPoolExecutor(1) as executor:
        batcher = Batcher(compute, {}, executor, 100, counters)
        service.serve(LoadedVersion(engine, batcher, "bundle", "1"))
        server = GrpcServer(service, METHODS, Access(), Tracer(), max_bytes=2**20, max_calls=64)
        port = free_port("127.0.0.1", 0, "--grpc-port")
        await server.start("127.0.0.1", port, None)
        address = f"127.0.0.1:{port}"
        try:
            async with grpc.aio.insecure_channel(address) as channel:
                infer = method(channel, "ModelInfer")
                yield Held(infer, counters, batcher, began, go, computed)
        finally:
            go.set()
            await server.stop(1)


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not reached():
            await asyncio.sleep(0.001)


def decode_rows(rows: int) -> Any:
    return request_of("decode", {"z": np.zeros((rows, 3), np.float32)})


@pytest.mark.parametrize("leave", ["cancel", "deadline"])
def test_a_client_that_leaves_is_counted_and_not_computed(
    engine: Engine, tmp_path: Path, leave: str
) -> None:
    async def run() -> None:
        async with held(engine, tmp_path) as there:
            first = there.infer(decode_rows(1), timeout=30)
            await until(there.began.is_set)
            left = there.infer(decode_rows(7), timeout=1 if leave == "deadline" else 30)
            last = there.infer(decode_rows(2), timeout=30)
            await until(lambda: there.batcher.queued == 9)
            if leave == "cancel":
                left.cancel()
            code = await left.code()
            assert code is (Status.CANCELLED if leave == "cancel" else Status.DEADLINE_EXCEEDED)
            await until(lambda: there.counters.total("requests", "decode", "grpc", 499) == 1)
            there.go.set()
            assert [(await answer).outputs[0].shape[0] for answer in (first, last)] == [1, 2]
            assert there.computed == [1, 2]
            assert there.batcher.queued == 0

    asyncio.run(run())


def test_a_full_queue_refuses_at_once(engine: Engine, tmp_path: Path) -> None:
    async def run() -> None:
        async with held(engine, tmp_path) as there:
            first = there.infer(decode_rows(1), timeout=30)
            await until(there.began.is_set)
            second = there.infer(decode_rows(60), timeout=30)
            await until(lambda: there.batcher.queued == 60)
            refused = there.infer(decode_rows(41), timeout=30)
            assert await refused.code() is Status.RESOURCE_EXHAUSTED
            assert "60 rows wait, of at most 100:" in await refused.details()
            third = there.infer(decode_rows(40), timeout=30)
            await until(lambda: there.batcher.queued == 100)
            there.go.set()
            sizes = [(await answer).outputs[0].shape[0] for answer in (first, second, third)]
            assert sizes == [1, 60, 40]
            assert there.counters.total("requests", "decode", "grpc", 429) == 1

    asyncio.run(run())


def test_requests_in_progress_are_bounded(engine: Engine, tmp_path: Path) -> None:
    async def run() -> None:
        async with held(engine, tmp_path) as there:
            calls = [there.infer(decode_rows(1), timeout=30)]
            await until(there.began.is_set)
            calls += [there.infer(decode_rows(1), timeout=30) for _ in range(3)]
            await until(lambda: there.batcher.queued == 3)
            refused = there.infer(decode_rows(1), timeout=30)
            assert await refused.code() is Status.RESOURCE_EXHAUSTED
            assert "4 requests are in progress" in await refused.details()
            calls.pop().cancel()
            await until(lambda: there.counters.total("requests", "decode", "grpc", 499) == 1)
            calls.append(there.infer(decode_rows(2), timeout=30))
            await until(
                lambda: there.batcher.queued == 5
            )  # the request of the client that left is still queued
            there.go.set()
            assert [(await call).outputs[0].shape[0] for call in calls] == [1, 1, 1, 2]

    asyncio.run(run())
