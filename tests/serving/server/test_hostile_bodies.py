"""Hostile bodies and heads: bombs, endless chunks, 100,000 headers. No worker grows or dies."""

import contextlib
import gzip
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.serving.running import Running
from tests.serving.server.raw_sockets import (
    connected,
    forget_peak,
    memory,
    read_all,
    send,
    statuses,
)
from tests.serving.server.strict import BODY_BYTES, GROWTH_BYTES, MIB, TIMEOUT_S

POST = b"POST /v2/models/sample/infer HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"
SAMPLE = "/v2/models/sample/infer"


@pytest.fixture
def http(strict_http: httpx.Client, unharmed: None) -> httpx.Client:
    return strict_http


def zeros(megabytes: int) -> bytes:
    """Return the start of a gzip body of so many zeros, about a thousandth of their number."""
    deflate = zlib.compressobj(9, wbits=-15)
    part = deflate.compress(bytes(MIB)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return gzip.compress(b"")[:10] + part * megabytes


def test_ten_gigabytes_of_zeros_in_ten_megabytes(server: Running) -> None:
    """Its content is read up to the limit of 16 MiB."""
    bomb = zeros(10_000)
    assert 9 * MIB < len(bomb) < 13 * MIB
    before = memory(server, "VmRSS")
    forget_peak(server)
    headers = {"content-encoding": "gzip", "connection": "close"}
    with contextlib.suppress(httpx.WriteError):  # the server may close before it has read all
        response = httpx.post(server.rest + SAMPLE, content=bomb, headers=headers, timeout=30)
        assert response.status_code == 413, response.text
        assert response.json() == {"error": f"a body may have {16 * MIB} bytes: send less"}
    assert memory(server, "VmHWM") - before < GROWTH_BYTES
    assert httpx.post(server.rest + SAMPLE, json={}).status_code == 200


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_many_bombs_at_once(http: httpx.Client, coding: str) -> None:
    bomb = zeros(900)
    if coding == "deflate":
        bomb = bomb[10:]

    def post(_: int) -> int:
        headers = {"content-encoding": coding}
        return http.post(SAMPLE, content=bomb, headers=headers).status_code

    with ThreadPoolExecutor(12) as pool:
        assert {*pool.map(post, range(24))} <= {413, 429}


def test_other_clients_are_answered_while_a_bomb_is_read(http: httpx.Client) -> None:
    headers = {"content-encoding": "gzip"}
    with ThreadPoolExecutor(4) as pool:
        bombs = [
            pool.submit(http.post, SAMPLE, content=zeros(900), headers=headers) for _ in range(8)
        ]
        found = {http.post(SAMPLE, json={}).status_code for _ in range(20)}
        assert {bomb.result().status_code for bomb in bombs} == {413}
    assert found == {200}


def test_empty_blocks_without_end(strict: Running, http: httpx.Client) -> None:
    """They decompress to nothing."""
    deflate = zlib.compressobj(wbits=-15)
    empty = deflate.flush(zlib.Z_FULL_FLUSH) * 600_000
    assert len(empty) > BODY_BYTES
    body = gzip.compress(b"")[:10] + empty
    content = CHUNKED + b"Content-Encoding: gzip\r\n\r\n%x\r\n%b\r\n" % (len(body), body)
    assert statuses(send(strict, content)) in ([413], [])


def endless(strict: Running, head: bytes, part: bytes) -> tuple[list[int], float]:
    """Send a part again and again, and return what the server answers, and after how long."""
    started = time.monotonic()
    with connected(strict) as connection, contextlib.suppress(OSError):
        connection.sendall(head)
        while time.monotonic() - started < 6 * TIMEOUT_S:
            connection.sendall(part)
            connection.settimeout(0.001)
            with contextlib.suppress(TimeoutError):
                received = connection.recv(1000)
                return statuses(received), time.monotonic() - started
            connection.settimeout(5)
    return [], time.monotonic() - started


@pytest.mark.parametrize(
    ("head", "part", "expected"),
    [
        (CHUNKED + b"\r\n", b"1\r\n \r\n" * 10, [[408], [413]]),
        (CHUNKED + b"\r\n", b"2\r\n  \r\n" * 10_000, [[408], [413], []]),
        (CHUNKED + b"\r\n", b"1;" + b"a" * 1000, [[400], []]),
        (CHUNKED + b"\r\n", b"0" * 1000, [[400], [408], []]),
        (CHUNKED + b"\r\n0\r\n", b"X-Y: z\r\n", [[400], [408], []]),
        (CHUNKED + b"Content-Encoding: gzip\r\n\r\n", b"1\r\n\x1f\r\n", [[400]]),
    ],
    ids=["one byte", "two bytes", "extension", "size", "trailers", "no gzip"],
)
def test_chunks_that_never_end(
    strict: Running, http: httpx.Client, head: bytes, part: bytes, expected: list[list[int]]
) -> None:
    found, seconds = endless(strict, head, part)
    assert found in expected
    assert seconds < 5 * TIMEOUT_S


def test_endless_chunks_keep_no_client_out(strict: Running, http: httpx.Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(endless, strict, CHUNKED + b"\r\n", b"1\r\n \r\n") for _ in range(8)]
        found = {http.post(SAMPLE, json={}).status_code for _ in range(20)}
        answers = [each.result()[0] for each in waiting]
    assert found == {200}
    assert all(answer in ([408], []) for answer in answers)


def hundred_thousand() -> Iterator[bytes]:
    yield POST
    for number in range(100_000):
        yield b"X-%d: y\r\n" % number
    yield b"\r\n"


HEADS: dict[str, Callable[[], bytes]] = {
    "100,000 headers": lambda: b"".join(hundred_thousand()),
    "100,000 equal headers": lambda: POST + b"Accept-Encoding: gzip\r\n" * 100_000 + b"\r\n",
    "a line of 10 MB": lambda: POST + b"X: " + b"y" * 10 * MIB + b"\r\n\r\n",
    "a name of 10 MB": lambda: POST + b"y" * 10 * MIB + b": x\r\n\r\n",
    "a path of 10 MB": lambda: b"GET /" + b"y" * 10 * MIB + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "a method of 1 MB": lambda: b"G" * MIB + b" / HTTP/1.1\r\nHost: a\r\n\r\n",
    "empty lines": lambda: b"\r\n" * 1_000_000,
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_huge_head_costs_its_connection(strict: Running, http: httpx.Client, kind: str) -> None:
    with connected(strict) as connection:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(HEADS[kind]())
        with contextlib.suppress(ConnectionResetError):
            found = statuses(read_all(connection))
            assert all(400 <= status < 500 for status in found)
