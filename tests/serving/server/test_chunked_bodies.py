"""Bodies in chunks are read like others, and one that is broken anywhere is never half read."""

import gzip
import json
from collections.abc import Iterator, Mapping

import httpx
import numpy as np
import pytest

from serving.engine import Engine
from tests.serving.running import Running
from tests.serving.server.arrays import same
from tests.serving.server.raw_sockets import connected, read_all, send, statuses
from tests.serving.server.rest_requests import LENGTH, arrays_of, body_of

CHUNKED = "Transfer-Encoding: chunked"
LAST = b"0\r\n\r\n"
SAMPLE = "/v2/models/sample/infer"


def request(path: str, *chunks: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """Write a request whose body comes in these chunks."""
    lines = [f"POST {path} HTTP/1.1", "Host: a", CHUNKED, "Connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    head = "\r\n".join((*lines, "", "")).encode()
    body = [b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks if chunk]
    return b"".join((head, *body, LAST))


def pieces(body: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


def kinds(x: np.ndarray) -> dict[str, tuple[str, bytes, dict[str, str]]]:
    """Return path, body and headers of each kind of body."""
    sample = json.dumps({"parameters": {"seed": 7, "num_samples": 2}}).encode()
    encode = "/v2/models/encode/infer"
    return {
        "json": (SAMPLE, sample, {}),
        "json of a tensor": (encode, *body_of({"x": x[:1]})),
        "binary": (encode, *body_of({"x": x[:2]}, ["x"])),
        "raw": (encode, x[:3].tobytes(), {LENGTH: "0"}),
        "gzip": (SAMPLE, gzip.compress(sample), {"Content-Encoding": "gzip"}),
        "unload": ("/v2/repository/models/sample/unload", b"", {}),
        "unload with a body": ("/v2/repository/models/sample/unload", b'{"parameters": {}}', {}),
        "index": ("/v2/repository/index", b'{"ready": true}', {}),
    }


KINDS = list(kinds(np.zeros((3, 6, 5), np.uint8)))


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_body_may_come_in_chunks(
    http: httpx.Client, server: Running, x: np.ndarray, kind: str, size: int
) -> None:
    path, body, headers = kinds(x)[kind]
    try:
        chunked = httpx.post(server.rest + path, content=pieces(body, size), headers=headers)
        whole = http.post(path, content=body, headers=headers)
    finally:
        http.post("/v2/repository/models/sample/load")
    assert chunked.status_code == 200, chunked.text
    assert chunked.content == whole.content


def test_a_large_body_in_chunks(server: Running, engine: Engine, x: np.ndarray) -> None:
    body, headers = body_of({"x": x}, ["x"])
    url = f"{server.rest}/v2/models/encode/infer"
    response = httpx.post(url, content=pieces(body, 1000), headers=headers)
    same(arrays_of(response), engine.encode(x))


def test_a_connection_is_kept_after_a_body_in_chunks(server: Running, engine: Engine) -> None:
    with httpx.Client(base_url=server.rest) as client:
        streams = set()
        for seed in range(5):
            body = json.dumps({"parameters": {"seed": seed}}).encode()
            response = client.post(SAMPLE, content=pieces(body, 9))
            same(arrays_of(response), {"x_loc": engine.sample(1, seed)})
            streams.add(id(response.extensions["network_stream"]))
    assert len(streams) == 1


def answers(http: httpx.Client) -> list[str]:
    """Return the counts of all inferences that were answered."""
    lines = http.get("/metrics").text.splitlines()
    return [line for line in lines if line.startswith("vae_requests_total") and '"200"' in line]


@pytest.mark.slow(8)
@pytest.mark.parametrize("kind", KINDS)
def test_a_body_in_chunks_that_is_cut_at_any_byte_does_nothing(
    http: httpx.Client, server: Running, x: np.ndarray, kind: str
) -> None:
    """RFC 9112, section 8: the message is incomplete without the last chunk."""
    path, body, headers = kinds(x)[kind]
    whole = request(path, *pieces(body, 50), headers=headers)
    start = whole.index(b"\r\n\r\n") + 4
    before = answers(http)
    for end in range(start, len(whole)):
        found = statuses(send(server, whole[:end], half_close=True))
        assert found in ([], [400]), (end, found)
    assert answers(http) == before
    assert http.get("/v2/models/sample/ready").status_code == 200


@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_that_ends_after_a_chunk_does_nothing(
    http: httpx.Client, server: Running, x: np.ndarray, kind: str
) -> None:
    """The content is complete, and only the last chunk is missing."""
    path, body, headers = kinds(x)[kind]
    whole = request(path, body, headers=headers).removesuffix(LAST)
    before = answers(http)
    for _ in range(20):
        with connected(server) as connection:
            connection.sendall(whole)
    assert statuses(send(server, whole, half_close=True)) in ([], [400])
    assert answers(http) == before
    assert http.get("/v2/models/sample/ready").status_code == 200


@pytest.mark.parametrize(
    "end",
    [
        b"zz\r\n",
        b"-1\r\n",
        b"0x0\r\n\r\n",
        b"fffffffffffffffff\r\n",
        b"\r\n",
        b"2\r\nabc\r\n0\r\n\r\n",
    ],
    ids=["no number", "negative", "0x", "huge", "empty", "longer than declared"],
)
def test_a_broken_chunk_is_400_and_costs_its_connection(
    http: httpx.Client, server: Running, end: bytes
) -> None:
    content = request(SAMPLE, b"{}").removesuffix(LAST).replace(b"Connection: close\r\n", b"")
    before = answers(http)
    with connected(server) as connection:  # both ends stay open: the server closes
        connection.sendall(content + end)
        received = read_all(connection)
    assert statuses(received) == [400]
    assert json.loads(received.split(b"\r\n\r\n", 1)[1]) == {
        "error": "the chunks of the body are broken"
    }
    assert answers(http) == before


def test_extensions_of_chunks_are_ignored(server: Running) -> None:
    content = request(SAMPLE, b"{}").replace(b"2\r\n{}", b'2;a=b;c="d e"\r\n{}')
    assert statuses(send(server, content)) == [200]


TRAILERS = b"X-Checksum: 1\r\nX-Other: 2\r\n\r\n"


@pytest.mark.parametrize(
    "declared", [{}, {"Trailer": "X-Checksum"}], ids=["undeclared", "declared"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_trailers_are_ignored(
    http: httpx.Client, server: Running, x: np.ndarray, kind: str, declared: dict[str, str]
) -> None:
    """RFC 9112, section 7.1.2: a recipient may discard them."""
    path, body, headers = kinds(x)[kind]
    content = request(path, body, headers={**headers, **declared}).removesuffix(b"\r\n")
    try:
        received = send(server, content + TRAILERS)
        whole = http.post(path, content=body, headers=headers)
    finally:
        http.post("/v2/repository/models/sample/load")
    assert statuses(received) == [200], received
    assert received.split(b"\r\n\r\n", 1)[1] == whole.content


@pytest.mark.parametrize("kind", KINDS)
def test_trailers_that_are_cut_do_nothing(
    http: httpx.Client, server: Running, x: np.ndarray, kind: str
) -> None:
    path, body, headers = kinds(x)[kind]
    content = request(path, body, headers=headers).removesuffix(b"\r\n")
    before = answers(http)
    for trailers in (TRAILERS[:-2], TRAILERS[:5], b"no colon\r\n\r\n"):
        found = statuses(send(server, content + trailers, half_close=True))
        assert found in ([], [400]), trailers
    assert answers(http) == before
    assert http.get("/v2/models/sample/ready").status_code == 200


@pytest.mark.parametrize(
    "lines",
    [f"Content-Length: 4\r\n{CHUNKED}", f"{CHUNKED}\r\nContent-Length: 4"],
    ids=["length first", "chunked first"],
)
def test_nothing_is_smuggled_behind_two_lengths(server: Running, lines: str) -> None:
    """RFC 9112, section 6.3: the chunks count, and the connection is closed afterwards."""
    smuggled = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"
    head = f"POST {SAMPLE} HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n".encode()
    received = send(server, head + b"2\r\n{}\r\n0\r\n\r\n" + smuggled)
    assert statuses(received) in ([200], [400])
    assert b"connection: close" in received.lower()


@pytest.mark.parametrize(
    "coding", ["gzip, chunked", "gzip\r\nTransfer-Encoding: chunked", "chunked, chunked"]
)
def test_another_transfer_coding_is_refused(server: Running, coding: str) -> None:
    content = request(SAMPLE, b"{}").replace(b": chunked", f": {coding}".encode())
    assert statuses(send(server, content)) == [400]
