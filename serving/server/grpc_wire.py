"""What gRPC writes into HTTP/2: header fields of a call, the frame of a message, the status.

Source: gRPC over HTTP2 (PROTOCOL-HTTP2.md), gRPC compression (compression.md).
"""

import math
import re
import zlib
from typing import NamedTuple
from urllib.parse import quote

from serving.errors import DataRefused, TooLarge, VaeError
from serving.http2.headers import Fields, write_block

OK = "OK"
STATUS_NUMBERS = {
    name: number
    for number, name in enumerate(
        (
            OK,
            "CANCELLED",
            "UNKNOWN",
            "INVALID_ARGUMENT",
            "DEADLINE_EXCEEDED",
            "NOT_FOUND",
            "ALREADY_EXISTS",
            "PERMISSION_DENIED",
            "RESOURCE_EXHAUSTED",
            "FAILED_PRECONDITION",
            "ABORTED",
            "OUT_OF_RANGE",
            "UNIMPLEMENTED",
            "INTERNAL",
            "UNAVAILABLE",
            "DATA_LOSS",
            "UNAUTHENTICATED",
        )
    )
}
ENCODINGS = {"gzip": 31, "deflate": 15}
"""Compressions that are read, and the `wbits` of zlib."""
_MOST_INFLATED = 1032
"""Bytes that deflate makes of one at most: 258 of two bits."""
_TIMEOUT = re.compile(r"(\d{1,8})([HMSmun])")
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
PREFIX = 5
"""Bytes before each message: whether it is compressed, and its size."""

ANSWER = write_block(
    (
        (b":status", b"200"),
        (b"content-type", b"application/grpc"),
        (b"grpc-accept-encoding", b"identity, deflate, gzip"),
    )
)
"""The header fields of an answer."""
OK_TRAILERS = write_block([(b"grpc-status", b"0")])

Content = bytes | bytearray
"""What has arrived: a large message is left where its parts were put together."""


class CallHead(NamedTuple):
    """The header fields of a call."""

    path: str
    metadata: tuple[tuple[str, str], ...]
    timeout_s: float = math.inf
    encoding: str = ""
    """How messages are compressed that say that they are."""
    http_status: int = 200
    """Another one if this is no call of gRPC."""


class CallRefused(VaeError):
    """The call is not one that this server has, or breaks a rule of gRPC."""

    status = 404
    grpc_status = "UNIMPLEMENTED"


def read_head(fields: Fields) -> CallHead:
    """Read the header fields of a call; what cannot be read is treated as if it were absent."""
    named = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in fields]
    found = dict(named)
    http_status = 200
    if found[":method"] != "POST":
        http_status = 405
    elif not re.match(r"application/grpc($|[+;])", found.get("content-type", "")):
        http_status = 415
    timeout = _TIMEOUT.fullmatch(found.get("grpc-timeout", ""))
    return CallHead(
        found[":path"],
        tuple((name, value) for name, value in named if not name.startswith(":")),
        math.inf if timeout is None else int(timeout[1]) * _UNITS[timeout[2]],
        found.get("grpc-encoding", "identity"),
        http_status,
    )


def prefix(size: int) -> bytes:
    """Write what stands before a message of `size` bytes that is not compressed."""
    return b"\0" + size.to_bytes(4)


def size_of(content: Content, most: int) -> int:
    """Read the size of the message that begins here.

    Raises:
        TooLarge: it is above `most`.
    """
    size = int.from_bytes(content[1:PREFIX])
    if size > most:
        raise TooLarge(f"the message is larger than max: {size} of {most} bytes")
    return size


def most_inflated(content: Content) -> int:
    """Return the most bytes that a message may hold once it is decompressed (RFC 1951)."""
    return len(content) * _MOST_INFLATED


def decompress(content: Content, encoding: str, most: int) -> bytes:
    """Decompress a message.

    Raises:
        CallRefused: the encoding is not one that is read.
        DataRefused: the message is damaged.
        TooLarge: it holds more than `most` bytes.
    """
    if encoding not in ENCODINGS:
        raise CallRefused(f"messages may be compressed with {' or '.join(ENCODINGS)}")
    inflate = zlib.decompressobj(ENCODINGS[encoding])
    try:
        whole = inflate.decompress(content, most + 1)
    except zlib.error as err:
        raise DataRefused(f"the message is not valid {encoding}: {err}") from err
    if len(whole) > most:
        raise TooLarge(f"the message is larger than max: it holds more than {most} bytes")
    if not inflate.eof or inflate.unused_data:
        raise DataRefused(f"the message is not valid {encoding}: it has another end")
    return whole


def status_fields(status: str, message: str) -> list[tuple[bytes, bytes]]:
    """Return the header fields of a status; its message is encoded as gRPC wants it."""
    fields = [(b"grpc-status", b"%d" % STATUS_NUMBERS[status])]
    if message:
        fields.append((b"grpc-message", quote(message, safe=_PRINTABLE).encode()))
    return fields
