"""What gRPC writes into HTTP/2, without a server."""

import gzip
import math
import re
import zlib
from urllib.parse import unquote

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import DataRefused, TooLarge, VaeError
from serving.http2.headers import Fields
from serving.server.grpc_wire import (
    STATUS_NUMBERS,
    CallRefused,
    decompress,
    prefix,
    read_head,
    size_of,
    status_fields,
)

REQUEST: Fields = [
    (b":method", b"POST"),
    (b":path", b"/a/B"),
    (b"content-type", b"application/grpc"),
]


def test_the_numbers_of_statuses_are_those_of_grpc() -> None:
    assert STATUS_NUMBERS == {code.name: code.value[0] for code in grpc.StatusCode}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"2H", 7200),
        (b"3M", 180),
        (b"10S", 10),
        (b"250m", 0.25),
        (b"99999999u", 99.999999),
        (b"7n", 7e-9),
        (b"", math.inf),
        (b"5", math.inf),
        (b"123456789S", math.inf),
        (b"-1S", math.inf),
        (b"\xb2S", math.inf),
    ],
)
def test_a_timeout_has_a_unit(text: bytes, seconds: float) -> None:
    head = read_head([*REQUEST, (b"grpc-timeout", text)])
    assert head.timeout_s == pytest.approx(seconds)


def test_metadata_is_what_does_not_begin_with_a_colon() -> None:
    head = read_head([*REQUEST, (b"x-api-key", b"k"), (b"x-api-key", b"\xe9")])
    assert (head.path, head.encoding) == ("/a/B", "identity")
    assert head.metadata[1:] == (("x-api-key", "k"), ("x-api-key", "\xe9"))


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        (b"application/grpc", 200),
        (b"application/grpc+proto", 200),
        (b"application/grpc;a=b", 200),
        (b"application/grpc-web", 415),
        (b"text/html", 415),
    ],
)
def test_other_content_is_not_grpc(content_type: bytes, status: int) -> None:
    assert read_head([*REQUEST[:2], (b"content-type", content_type)]).http_status == status
    assert read_head([(b":method", b"GET"), *REQUEST[1:]]).http_status == 405


@given(st.text())
def test_a_message_of_a_status_is_percent_encoded(text: str) -> None:
    fields = dict(status_fields("NOT_FOUND", text))
    assert fields[b"grpc-status"] == b"5"
    sent = fields.get(b"grpc-message", b"").decode("ascii")
    assert re.fullmatch(r"([ -$&-~]|%[0-9A-F]{2})*", sent)
    assert unquote(sent) == text


def test_a_prefix_is_read_as_it_is_written() -> None:
    assert size_of(prefix(70_000), 70_000) == 70_000
    with pytest.raises(TooLarge, match="larger than max: 70000 of 69999 bytes"):
        size_of(prefix(70_000), 69_999)


@pytest.mark.parametrize(
    ("encoding", "write"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_a_compressed_message_is_bounded_and_checked(encoding: str, write) -> None:  # type: ignore[no-untyped-def]
    sent = write(bytes(1000))
    assert decompress(sent, encoding, 1000) == bytes(1000)
    with pytest.raises(TooLarge, match="larger than max"):
        decompress(sent, encoding, 999)
    for damaged in (sent[:-1], sent + b"a", b"", b"?" + sent[1:]):
        with pytest.raises(DataRefused, match=f"not valid {encoding}"):
            decompress(damaged, encoding, 1000)


@pytest.mark.parametrize("encoding", ["identity", "snappy", ""])
def test_an_encoding_that_is_not_read_is_refused(encoding: str) -> None:
    with pytest.raises(CallRefused, match="gzip or deflate") as caught:
        decompress(b"", encoding, 1000)
    error: VaeError = caught.value
    assert error.grpc_status == "UNIMPLEMENTED"
