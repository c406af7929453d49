"""The REST server itself: bodies, request ids, clients that leave, a full queue."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from serving.engine import Engine
from serving.server import rest_routes
from serving.server.auth import Access
from serving.server.batching import Batcher
from serving.server.compression import compress
from serving.server.rest_messages import Limits
from serving.server.rest_server import RestServer
from serving.server.service import LoadedVersion, Service
from serving.server.shared_counters import SharedCounters
from serving.server.tracing import Tracer
from tests.serving.running import Running
from tests.serving.server.arrays import Arrays
from tests.serving.server.rest_requests import body_of
from tests.serving.server.visit import Visit


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/models/sample/infer", 200),
        ("/v2/models/encode/infer", 400),
        ("/v2/models/nope/infer", 404),
        ("/v2", 405),
    ],
)
def test_a_request_s_id_comes_back(http: httpx.Client, path: str, status: int) -> None:
    response = http.post(path, json={}, headers={"x-request-id": "tree-41"})
    assert response.status_code == status
    assert response.headers.get_list("x-request-id") == ["tree-41"]


@pytest.mark.parametrize("name", ["a b", "", "x" * 129], ids=len)
def test_a_malformed_request_id_is_dropped(http: httpx.Client, name: str) -> None:
    response = http.get("/v2", headers={"x-request-id": name})
    assert response.status_code == 200
    assert "x-request-id" not in response.headers


def first_line(server: Running, *lines: str) -> bytes:
    """Return the status line of a request whose body is not sent."""
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        head = "\r\n".join(("POST /v2/models/sample/infer HTTP/1.1", "Host: a", *lines, "", ""))
        connection.sendall(head.encode())
        return connection.makefile("rb").readline()


def test_a_body_that_is_declared_too_large_is_not_read(server: Running) -> None:
    line = first_line(server, f"Content-Length: {16 * 2**20 + 1}")
    assert line.startswith(b"HTTP/1.1 413 ")


class Stalled:
    """A server without a socket, whose first run waits for `go`."""

    def __init__(self, engine: Engine, folder: Path, executor: Executor, max_rows: int) -> None:
        self.engine = engine
        self.began, self.go, self.computed = threading.Event(), threading.Event(), list[int]()
        self.counters = SharedCounters(folder / "counters", 2, 1)
        self.service = Service(self.counters, max_requests=9, max_rows=max_rows, timeout_s=30)
        self.batcher = Batcher(self.compute, {}, executor, max_rows, self.counters)
        self.service.serve(LoadedVersion(engine, self.batcher, "bundle", "1"))
        self.rest = RestServer(self.service, rest_routes.ROUTES, Access(), Limits(), Tracer())

    def compute(self, name: str, arrays: Arrays) -> Arrays:
        self.began.set()
        assert self.go.wait(20)
        self.computed.append(len(arrays["z"]))
        return self.engine.compute(name, arrays)

    async def come(self, visit: Visit, queued: int) -> "asyncio.Task[None]":
        """Send a request, and wait until the queue holds so many rows."""
        task = asyncio.ensure_future(self.answer(visit))
        while not (self.began.is_set() and self.batcher.queued == queued):
            await asyncio.sleep(0)
        return task

    async def answer(self, visit: Visit) -> None:
        await visit.to(self.rest)


@pytest.fixture
def stalled(engine: Engine, tmp_path: Path) -> Iterator[Callable[[int], Stalled]]:
    """Make a server whose queue holds a number of rows."""
    made: list[Stalled] = []
    with ThreadPoolExecutor(1) as executor:

        def make(max_rows: int) -> Stalled:
            made.append(Stalled(engine, tmp_path, executor, max_rows))
            return made[-1]

        yield make
        for server in made:
            server.go.set()


def decoding(rows: int, path: str = "/v2/models/decode/infer") -> Visit:
    body = body_of({"z": np.zeros((rows, 3), np.float32)})[0]
    return Visit("POST", path, {"content-length": str(len(body))}, body)


def test_a_client_that_leaves_is_counted_and_not_computed(
    stalled: Callable[[int], Stalled],
) -> None:
    async def run(server: Stalled) -> None:
        first, second, third = (decoding(rows) for rows in (1, 7, 2))
        tasks = [await server.come(first, 0), await server.come(second, 7)]
        tasks.append(await server.come(third, 9))
        second.leave()
        await tasks[1]
        assert server.counters.total("requests", "decode", "rest", 499) == 1
        server.go.set()
        await asyncio.gather(*tasks)
        assert [first.status, third.status] == [200, 200]
        assert server.computed == [1, 2]
        counts = server.batcher.queued, server.service.admission.under_way, server.rest.bodies.held
        assert counts == (0, 0, 0)

    asyncio.run(asyncio.wait_for(run(stalled(100)), 20))


@pytest.mark.parametrize(
    "path",
    ["/v2/models/decode/infer", "/v2/models/decode/versions/1/infer"],
    ids=["unversioned", "versioned"],
)
def test_a_full_queue_refuses_without_reading_the_body(
    stalled: Callable[[int], Stalled], path: str
) -> None:
    """The first refusal tells how many rows wait; later ones do not read the body."""

    async def run(server: Stalled) -> None:
        running, queued, first, second, later = (decoding(3, path) for _ in range(5))
        tasks = [await server.come(running, 0), await server.come(queued, 3)]
        for visit in (first, second):
            await server.answer(visit)
        assert [(visit.status, visit.reads) for visit in (first, second)] == [(429, 1), (429, 0)]
        assert server.counters.total("requests", "decode", "rest", 429) == 2
        server.go.set()
        await asyncio.gather(*tasks)
        await server.answer(later)
        assert [visit.status for visit in (running, queued, later)] == [200, 200, 200]

    asyncio.run(asyncio.wait_for(run(stalled(4)), 20))


def test_a_request_is_in_progress_until_its_answer_is_compressed(
    stalled: Callable[[int], Stalled], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise nothing would bound the answers that wait for it in memory."""

    async def run(server: Stalled) -> None:
        in_progress = []

        async def spy(body: bytes, coding: str) -> bytes:
            in_progress.append((server.service.admission.under_way, coding))
            return await compress(body, coding)

        monkeypatch.setattr(rest_routes, "compress", spy)
        visit = decoding(50)
        visit.exchange.head.headers["accept-encoding"] = "gzip"
        server.go.set()
        await server.answer(visit)
        assert visit.status == 200
        assert in_progress == [(1, "gzip")]
        assert server.service.admission.under_way == 0

    asyncio.run(asyncio.wait_for(run(stalled(100)), 20))
