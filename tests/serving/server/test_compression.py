"""Bodies in gzip and deflate are taken and given, damaged ones are refused."""

import asyncio
import gzip
import json
import zlib
from typing import Any

import httpx
import numpy as np
import pytest

from serving import Client
from serving.engine import Engine
from serving.errors import DataRefused
from serving.server.compression import SLICE, Inflater, accepted_coding, compress
from tests.serving.running import Running
from tests.serving.server.arrays import same
from tests.serving.server.rest_requests import arrays_of, body_of, refused

CONTENT = json.dumps({"parameters": {"seed": 7, "num_samples": 2}}).encode()
SAMPLE = "/v2/models/sample/infer"


def raw_deflate(content: bytes) -> bytes:
    return zlib.compress(content, wbits=-15)


WRITERS: dict[str, tuple[str, Any]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "capitals": ("GZIP", gzip.compress),
    "gzip with a name": ("gzip", lambda content: named_gzip(content)),
    "zlib": ("deflate", zlib.compress),
    "zlib without compression": ("deflate", lambda content: zlib.compress(content, 0)),
    "raw deflate": ("deflate", raw_deflate),
    "identity": ("identity", bytes),
}


def named_gzip(content: bytes) -> bytes:
    """Write the header's optional parts, as `gzip FILE` does."""
    plain = gzip.compress(content)
    return plain[:3] + b"\x08" + plain[4:10] + b"rows.json\0" + plain[10:]


def inflate(coding: str, body: bytes, size: int = 10_000) -> bytes:
    inflater = Inflater(coding)
    whole = b"".join(
        slice_
        for start in range(0, len(body), size)
        for slice_ in inflater.feed(body[start : start + size])
    )
    inflater.finish()
    return whole


@pytest.mark.parametrize(
    ("length", "size"),
    [(0, 1), (1, 1), (1000, 1), (1000, 3), (5 * SLICE, 10_000), (5 * SLICE, 10 * SLICE)],
    ids="{} bytes".format,
)
@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind != "identity"])
def test_a_body_is_decompressed(kind: str, length: int, size: int) -> None:
    content = np.random.default_rng(0).integers(0, 9, length).astype(np.uint8).tobytes()
    coding, write = WRITERS[kind]
    coding = "gzip" if "gzip" in coding.lower() else "deflate"
    assert inflate(coding, write(content), size) == content


def test_slices_are_small() -> None:
    inflater = Inflater("gzip")
    sizes = [len(slice_) for slice_ in inflater.feed(gzip.compress(bytes(10**8)))]
    assert max(sizes) == SLICE
    assert sum(sizes) == 10**8


@pytest.mark.parametrize("kind", ["gzip", "zlib", "raw deflate"])
def test_a_body_that_is_cut_anywhere_is_refused(kind: str) -> None:
    coding, write = WRITERS[kind]
    body = write(CONTENT)
    assert inflate(coding, body) == CONTENT
    for end in range(len(body)):
        with pytest.raises(DataRefused, match="ends too early"):
            inflate(coding, body[:end])


@pytest.mark.parametrize("size", [1, 10_000])
@pytest.mark.parametrize("kind", ["gzip", "zlib", "raw deflate"])
def test_what_follows_a_compressed_body_is_refused(kind: str, size: int) -> None:
    coding, write = WRITERS[kind]
    for tail in (b"\0", b"garbage", write(CONTENT)):
        with pytest.raises(DataRefused, match="bytes follow the end"):
            inflate(coding, write(CONTENT) + tail, size)


@pytest.mark.parametrize("kind", ["gzip", "zlib"])
def test_a_body_whose_bits_changed_is_refused(kind: str) -> None:
    """Checksum and length are read; some bits of gzip's header mean nothing."""
    coding, write = WRITERS[kind]
    body = bytearray(write(CONTENT))
    for place in range(10 if kind == "gzip" else 0, len(body)):
        changed = bytes([*body[:place], body[place] ^ 1, *body[place + 1 :]])
        with pytest.raises(DataRefused):
            inflate(coding, changed)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br, zstd", "gzip"),
        ("deflate, gzip", "gzip"),
        ("gzip;q=0.5, deflate;q=0.6", "deflate"),
        ("GZIP ; Q=0.5", "gzip"),
        ("x-gzip", "gzip"),
        ("*", "gzip"),
        ("gzip;q=0, *", "deflate"),
        ("gzip;q=0", ""),
        ("*;q=0", ""),
        ("br", ""),
        ("identity", ""),
        ("identity, gzip;q=0.5", ""),
        ("identity;q=0.5, gzip;q=0.5", "gzip"),
        ("identity;q=0", ""),
        ("", ""),
        (",, ,", ""),
        ("gzip;q=high", ""),
        ("gzip;level=1", ""),
        (";q=1", ""),
        ("br," * 200_000 + "gzip", ""),
    ],
    ids=lambda text: text[:30],
)
def test_the_coding_of_an_answer(accept: str, expected: str) -> None:
    """RFC 9110, section 12.5.3."""
    assert accepted_coding(accept) == expected


@pytest.mark.parametrize("length", [0, 10, 3 * SLICE + 1])
@pytest.mark.parametrize(
    ("coding", "read"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)]
)
def test_an_answer_is_compressed(coding: str, read: Any, length: int) -> None:
    content = np.random.default_rng(0).integers(0, 9, length).astype(np.uint8).tobytes()
    assert read(asyncio.run(compress(content, coding))) == content


@pytest.mark.parametrize("kind", WRITERS)
def test_a_compressed_request_is_answered(http: httpx.Client, engine: Engine, kind: str) -> None:
    coding, write = WRITERS[kind]
    response = http.post(SAMPLE, content=write(CONTENT), headers={"content-encoding": coding})
    same(arrays_of(response), {"x_loc": engine.sample(2, 7)})


@pytest.mark.parametrize("rows", [2, 2500])
def test_a_compressed_request_in_binary(
    http: httpx.Client, engine: Engine, x: np.ndarray, rows: int
) -> None:
    """The length of its JSON is that of the JSON itself."""
    body, headers = body_of({"x": x[:rows]}, ["x"])
    response = http.post(
        "/v2/models/encode/infer",
        content=gzip.compress(body),
        headers={**headers, "content-encoding": "gzip"},
    )
    same(arrays_of(response), engine.encode(x[:rows]))


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "deflate, gzip", "aws-chunked"])
def test_another_content_coding_is_415(http: httpx.Client, coding: str) -> None:
    """RFC 9110, section 15.5.16: Accept-Encoding says what is taken."""
    response = http.post(SAMPLE, content=CONTENT, headers={"content-encoding": coding})
    text = refused(response, 415)
    assert text == f"a body may have the content-encoding gzip or deflate, got {coding!r}"
    assert response.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    ("coding", "body", "text"),
    [
        ("gzip", CONTENT, "the body is not valid gzip"),
        ("deflate", CONTENT, "the body is not valid deflate"),
        ("gzip", zlib.compress(CONTENT), "the body is not valid gzip"),
        ("gzip", gzip.compress(CONTENT)[:-1], "the gzip body ends too early"),
        ("gzip", gzip.compress(CONTENT) * 2, "bytes follow the end of the gzip body"),
        ("gzip", gzip.compress(b"{"), "the body is not JSON"),
    ],
    ids=["plain gzip", "plain deflate", "zlib as gzip", "cut", "two members", "broken json"],
)
def test_a_damaged_body_is_400(http: httpx.Client, coding: str, body: bytes, text: str) -> None:
    response = http.post(SAMPLE, content=body, headers={"content-encoding": coding})
    assert text in refused(response, 400)


def test_no_body_needs_no_content_coding(http: httpx.Client) -> None:
    path = "/v2/repository/models/sample/load"
    assert http.post(path, headers={"content-encoding": "gzip"}).status_code == 200


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_an_answer_comes_in_the_coding_that_is_asked_for(
    http: httpx.Client, engine: Engine, coding: str, binary: bool
) -> None:
    parameters = {"seed": 3, "num_samples": 3000, "binary_data_output": binary}
    response = http.post(
        SAMPLE, json={"parameters": parameters}, headers={"accept-encoding": coding}
    )
    assert response.headers["content-encoding"] == coding
    assert response.headers["vary"] == "accept-encoding"
    same(arrays_of(response), {"x_loc": engine.sample(3000, 3)})


@pytest.mark.parametrize("accept", ["identity", "br", "gzip;q=0"])
def test_an_answer_that_may_be_compressed_says_so_to_caches(
    http: httpx.Client, engine: Engine, accept: str
) -> None:
    body = {"parameters": {"seed": 3, "num_samples": 100}}
    response = http.post(SAMPLE, json=body, headers={"accept-encoding": accept})
    assert "content-encoding" not in response.headers
    assert response.headers["vary"] == "accept-encoding"
    same(arrays_of(response), {"x_loc": engine.sample(100, 3)})


def test_small_answers_and_errors_are_sent_as_they_are(http: httpx.Client) -> None:
    headers = {"accept-encoding": "gzip"}
    name = "y" * 5000
    long = {"outputs": [{"name": name}]}
    for response in (
        http.post(SAMPLE, json={"parameters": {"binary_data_output": True}}, headers=headers),
        http.post(SAMPLE, json=long, headers=headers),
        http.get("/openapi.json", headers=headers),
    ):
        assert "content-encoding" not in response.headers
        assert "vary" not in response.headers


def test_our_client_asks_for_no_compression(server: Running, engine: Engine) -> None:
    with Client(server.rest) as client:
        answers: list[httpx.Response] = []
        client._http.event_hooks["response"].append(answers.append)
        assert client.sample(100, 3).tobytes() == engine.sample(100, 3).tobytes()
    assert answers[0].request.headers["accept-encoding"] == "identity"
    assert "content-encoding" not in answers[0].headers
