"""Hostile clients: real sockets, bounded in number and time, to a server on this machine.

After each test the server answers as before, holds no bodies, and has not grown.
"""

import asyncio
import contextlib
import json
import socket
import struct
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from serving.engine import Engine
from tests.serving.running import Running
from tests.serving.server.raw_sockets import connected, memory, read_all, send, statuses
from tests.serving.server.strict import BODY_BYTES, GROWTH_BYTES, MIB, TIMEOUT_S

POST = b"POST /v2/models/sample/infer HTTP/1.1\r\nHost: a\r\n"
GET = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"
LENGTH = b"Inference-Header-Content-Length: 0\r\n"


pytestmark = pytest.mark.usefixtures("unharmed")


@pytest.fixture
def http(strict_http: httpx.Client) -> httpx.Client:
    return strict_http


def test_a_hundred_megabytes_are_not_read(strict: Running) -> None:
    received = send(strict, POST + b"Content-Length: %d\r\n\r\n" % (100 * MIB) + bytes(100 * MIB))
    assert statuses(received) in ([413], [])  # the reset may arrive before the answer
    assert memory(strict, "VmHWM") - memory(strict, "VmRSS") < 16 * MIB


def test_a_hundred_chunked_megabytes_are_not_read(strict: Running) -> None:
    chunk = b"%x\r\n%b\r\n" % (MIB // 4, bytes(MIB // 4))
    sent = 0
    with connected(strict) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(400):
                connection.sendall(chunk)
                sent += len(chunk)
        received = read_all(connection)
    assert statuses(received) in ([413], [])
    assert sent < 30 * MIB  # most of it is in buffers of the kernel
    assert memory(strict, "VmHWM") - memory(strict, "VmRSS") < 16 * MIB


def test_a_large_body_is_refused_before_it_is_sent(strict: Running) -> None:
    head = POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (BODY_BYTES + 1)
    assert statuses(send(strict, head)) == [413]


def test_headers_have_a_timeout(strict: Running) -> None:
    """A client that sends one byte at a time cannot keep its connection open."""
    started = time.monotonic()
    with connected(strict) as connection, contextlib.suppress(OSError):
        head = iter(GET.replace(b"\r\n\r\n", b"\r\nA: " + b"b" * 1000))
        while time.monotonic() - started < 5 * TIMEOUT_S:
            connection.sendall(bytes([next(head)]))
            connection.settimeout(0.1)
            with contextlib.suppress(TimeoutError):
                if connection.recv(100) == b"":
                    break
    assert TIMEOUT_S * 0.9 < time.monotonic() - started < 4 * TIMEOUT_S


@pytest.mark.parametrize("length", [1000, 100_000], ids=["small", "large"])
def test_bodies_have_a_timeout(strict: Running, length: int) -> None:
    started = time.monotonic()
    with connected(strict) as connection:
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % length)
        connection.settimeout(0.1)
        received = b""
        while not received and time.monotonic() - started < 5 * TIMEOUT_S:
            connection.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                received = connection.recv(1000)
    assert statuses(received) == [408]
    assert json.loads(received.split(b"\r\n\r\n")[1]) == {
        "error": f"the body did not arrive within {TIMEOUT_S} s"
    }
    assert TIMEOUT_S * 0.9 < time.monotonic() - started < 4 * TIMEOUT_S


@pytest.mark.parametrize(("count", "size"), [(20, BODY_BYTES), (40, 10)], ids=["large", "many"])
def test_unfinished_bodies_do_not_keep_other_clients_out(
    strict: Running, http: httpx.Client, count: int, size: int
) -> None:
    """A few open sockets, which cost a client nothing, must not keep other clients out."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(connected(strict))
            connection.sendall(POST + b"Content-Length: %d\r\n\r\n{" % size)
        time_left = time.monotonic() + TIMEOUT_S / 2
        found = set()
        while time.monotonic() < time_left:
            found.add(http.post("/v2/models/sample/infer", json={}).status_code)
    assert found == {200}


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: -1\r\n",
        b"Content-Length: +2\r\n",
        b"Content-Length: two\r\n",
        b"Content-Length: 0x2\r\n",
        b"Content-Length: 99999999999999999999999\r\n",
        b"Content-Length: 2\r\nContent-Length: 3\r\n",
        b"Content-Length: 2, 3\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Inference-Header-Content-Length: -1\r\nContent-Length: 2\r\nConnection: close\r\n",
        b"no colon\r\n",
        b"Bad Name: 1\r\n",
    ],
    ids=lambda lines: lines[:40].decode().strip(),
)
def test_malformed_headers_are_400(strict: Running, lines: bytes) -> None:
    assert statuses(send(strict, POST + lines + b"\r\n{}")) == [400]


@pytest.mark.parametrize(
    ("path", "header"),
    [
        ("models/sample/infer", "Inference-Header-Content-Length"),
        ("models/sample/infer", "Content-Encoding"),
        ("repository/models/sample/unload", "Origin"),
    ],
)
def test_a_header_that_is_not_ascii_is_not_passed_over(
    strict: Running, http: httpx.Client, path: str, header: str
) -> None:
    """The body would be read in another way than a proxy reads it, or its origin trusted."""
    head = f"POST /v2/{path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{header}: ".encode()
    head += b"\xff\r\nTransfer-Encoding: chunked\r\nTrailer: a\r\n\r\n"
    received = send(strict, head + b"2\r\n{}\r\n0\r\na: b\r\n\r\n")
    assert statuses(received) == [400]
    assert f"the header {header.lower()} must be ASCII".encode() in received
    assert http.get("/v2/models/sample/ready").json()["ready"]


@pytest.mark.parametrize(
    "content",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"GET\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\0" * 4000,
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 5000 + b"\r\n",
        b"GET /" + b"a" * MIB + b" HTTP/1.1\r\n\r\n",
    ],
    ids=["tls", "no path", "no text", "http2", "zeros", "headers", "path"],
)
def test_bytes_that_are_no_request_are_refused(strict: Running, content: bytes) -> None:
    found = statuses(send(strict, content))
    assert all(400 <= status < 500 for status in found)


def test_a_body_shorter_than_declared_is_no_internal_error(
    strict: Running, http: httpx.Client
) -> None:
    def failures() -> list[str]:
        text = http.get("/metrics").text
        return [line for line in text.splitlines() if 'status="500"' in line]

    before = failures()
    received = send(strict, POST + b"Content-Length: 10\r\n\r\n{}", half_close=True)
    assert statuses(received) in ([], [400], [408], [499])
    assert failures() == before


@pytest.mark.parametrize("end", [b"", b"zz\r\n"], ids=["closed", "broken chunk"])
def test_a_chunked_body_that_ends_early_is_refused(strict: Running, end: bytes) -> None:
    """RFC 9112, section 8: the message is incomplete without the last chunk."""
    head = b"POST /v2/models/encode/infer HTTP/1.1\r\nHost: a\r\n" + LENGTH
    rows = b"1e\r\n" + bytes(30) + b"\r\n"
    content = head + b"Transfer-Encoding: chunked\r\n\r\n" + rows + end
    assert 200 not in statuses(send(strict, content, half_close=True))


def test_a_body_ends_at_its_declared_length(strict: Running) -> None:
    received = send(strict, POST + b"Content-Length: 2\r\n\r\n{}GARBAGE\r\n\r\n")
    assert statuses(received) == [200, 400]


def test_a_half_closed_socket_is_closed(strict: Running) -> None:
    """The whole request has arrived, but the client may have gone."""
    received = send(strict, POST + b"Content-Length: 2\r\n\r\n{}", half_close=True)
    assert statuses(received) in ([200], [])


def test_pipelined_requests_are_answered_in_order(strict: Running, engine: Engine) -> None:
    requests = []
    for seed in range(20):
        body = json.dumps({"id": str(seed), "parameters": {"seed": seed}}).encode()
        requests.append(POST + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    last = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    received = send(strict, b"".join(requests) + last)
    answers = [part.split(b"\r\n\r\n", 1)[1] for part in received.split(b"HTTP/1.1 200 OK")[1:]]
    assert len(answers) == 21
    for seed, answer in enumerate(answers[:20]):
        content = json.loads(answer)
        assert content["id"] == str(seed)
        found = np.array(content["outputs"][0]["data"], np.float32)
        assert found.tobytes() == engine.sample(1, seed).tobytes()
    assert json.loads(answers[20]) == {"live": True}


def test_connections_that_drop_before_their_answer(strict: Running) -> None:
    body = b'{"parameters": {"num_samples": 60}}'
    request = POST + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    for place in range(100):
        with connected(strict) as connection:
            connection.sendall(request)
            if place % 2:  # close with a reset
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_connections_that_drop_in_the_middle_of_their_answer(strict: Running) -> None:
    body = b'{"parameters": {"num_samples": 4096}}'
    request = POST + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    answered = 0
    for _ in range(10):
        with connected(strict) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(request)
            answered += connection.recv(100).startswith(b"HTTP/1.1 200")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert answered == 10


def test_three_hundred_idle_connections_keep_no_client_out(
    strict: Running, http: httpx.Client
) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(connected(strict))
        for _ in range(20):
            assert http.post("/v2/models/sample/infer", json={}).status_code == 200


def infer_body(data: Sequence[object], shape: Sequence[int], **parameters: int) -> dict[str, Any]:
    tensor = {"name": "x", "datatype": "UINT8", "shape": shape, "data": data}
    return {"inputs": [tensor], "parameters": parameters}


def test_a_long_text_among_numbers_takes_no_memory(strict: Running, http: httpx.Client) -> None:
    """numpy gives each text the width of the longest: 60 kB here would become 640 MB."""
    body = infer_body(["a" * 8000] + [1] * 19_999, [20_000])
    response = http.post("/v2/models/encode/infer", json=body)
    assert response.status_code == 400
    assert memory(strict, "VmHWM") - memory(strict, "VmRSS") < GROWTH_BYTES


@pytest.mark.parametrize("depth", [60, 1000, 100_000])
def test_deep_nesting_is_refused(http: httpx.Client, depth: int) -> None:
    data = b"[" * depth + b"1" + b"]" * depth
    content = b'{"inputs":[{"name":"x","datatype":"UINT8","shape":[1],"data":%b}]}' % data
    assert http.post("/v2/models/encode/infer", content=content).status_code == 400


def test_overload_is_refused_at_once_with_the_time_to_retry(
    strict: Running, http: httpx.Client, engine: Engine
) -> None:
    body = infer_body([0] * 30, [1, 6, 5], num_samples=4096, seed=3)
    expected = engine.score(np.zeros((1, 6, 5), np.uint8), 4096, 3)["elbo"]

    def ask(_: int) -> httpx.Response:
        return http.post("/v2/models/score/infer", json=body)

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, range(48)))
    assert {answer.status_code for answer in answers} == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert answer.headers["retry-after"] == "1"
            assert "try again in a moment" in answer.json()["error"]
        else:
            found = np.array(answer.json()["outputs"][0]["data"], np.float32)
            assert found.tobytes() == expected.tobytes()


def test_health_answers_under_overload(strict: Running, http: httpx.Client) -> None:
    body = infer_body([0] * 30, [1, 6, 5], num_samples=4096)

    async def run() -> list[int]:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=strict.rest, timeout=30, limits=limits) as client:
            asked = [
                asyncio.create_task(client.post("/v2/models/score/infer", json=body))
                for _ in range(32)
            ]
            health = [(await client.get("/v2/health/ready")).status_code for _ in range(5)]
            await asyncio.gather(*asked)
            return health

    assert asyncio.run(run()) == [200] * 5
