"""Blocks of header fields: read those of requests by `hpack`, write those of answers once.

Clients send the same block again and again, as indices into a table that both sides keep. What a
block says is kept by its bytes until the table changes, so that it is decoded and checked once.
Blocks of answers refer to the static table alone: they are constants. Source: RFC 7541.
"""

import re
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from hpack import Decoder, HPACKError
from hpack.table import HeaderTable

from serving.http2.frames import Code, ConnectionFault, StreamFault
from serving.http2.limits import LIST_SIZE

_KNOWN_BLOCKS = 32
_KNOWN_SIZE = 1024
_SIZE_UPDATE = 0b001
"""The first three bits of a block that changes the size of the table."""
_UPDATES = re.compile(rb"(?:[\x20-\x3e]|\x3f[\x80-\xff]*[\x00-\x7f]){3}")
"""More changes of the size than a block may begin with (RFC 7541, section 4.2)."""
_INDEXED_NAMES = {b":status": 8, b"content-type": 31}
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_BAD_VALUE = re.compile(rb"[\x00\r\n]|^[ \t]|[ \t]$")
_PSEUDO = frozenset((b":method", b":scheme", b":authority", b":path"))
_OF_HTTP_1 = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)

Fields = list[tuple[bytes, bytes]]
Head = TypeVar("Head")


class _Table(HeaderTable):
    """A table that counts what was added to it."""

    added = 0

    def add(self, name: bytes, value: bytes) -> None:
        super().add(name, value)
        self.added += 1


class HeadReader(Generic[Head]):
    """Reads the header blocks of one connection.

    Args:
        read: makes of the header fields of a request what the application needs of them.
    """

    def __init__(self, read: Callable[[Fields], Head]) -> None:
        self._read = read
        self._decoder = Decoder(LIST_SIZE)
        self._table = self._decoder.header_table = _Table()
        self._known: dict[bytes, Head] = {}

    def read(self, block: bytes) -> Head:
        """Return what the block of a request says.

        Raises:
            ConnectionFault: it cannot be decoded, or it is too long.
            StreamFault: its fields are not those of a request.
        """
        head = self._known.get(block)
        if head is not None:
            return head
        added = self._table.added
        fields = self.decode(block)
        check_request(fields)
        head = self._read(fields)
        if self._table.added == added and len(block) <= _KNOWN_SIZE:
            if len(self._known) >= _KNOWN_BLOCKS:
                self._known.clear()
            self._known[block] = head
        return head

    def decode(self, block: bytes) -> Fields:
        """Return the fields of any block, and follow what it does to the table."""
        added = self._table.added
        if _UPDATES.match(block):
            raise ConnectionFault(Code.COMPRESSION_ERROR, "header block: its table changes often")
        try:
            fields = [(name, value) for name, value in self._decoder.decode(block, raw=True)]
        except (HPACKError, IndexError) as err:
            raise ConnectionFault(Code.COMPRESSION_ERROR, f"header block: {err}") from err
        if self._table.added != added or (block and block[0] >> 5 == _SIZE_UPDATE):
            self._known.clear()
        return fields


def check_request(fields: Fields) -> None:
    """Check the header fields of a request.

    Raises:
        StreamFault: the request is malformed (RFC 9113, section 8.2).
    """
    names = [name for name, _ in fields]
    pseudo = [name for name in names if name.startswith(b":")]
    if names[: len(pseudo)] != pseudo or len(set(pseudo)) != len(pseudo) or set(pseudo) - _PSEUDO:
        raise malformed("its fields that begin with a colon")
    if not {b":method", b":scheme", b":path"} <= set(pseudo):
        raise malformed("it lacks a method, a scheme or a path")
    check_fields(fields[len(pseudo) :])
    if not all(value for name, value in fields[: len(pseudo)] if name != b":authority"):
        raise malformed("one of its fields is empty")


def check_fields(fields: Fields) -> None:
    """Check the fields of a request after those that begin with a colon, or its trailers.

    Raises:
        StreamFault: one of them may not be there.
    """
    for name, value in fields:
        if not _NAME.fullmatch(name) or name in _OF_HTTP_1 or _BAD_VALUE.search(value):
            raise malformed(f"the field {name[:40]!r}")
        if name == b"te" and value != b"trailers":
            raise malformed("its te")


def malformed(what: str) -> StreamFault:
    """Return the fault of a malformed request."""
    return StreamFault(Code.PROTOCOL_ERROR, f"the request is malformed: {what}")


def write_block(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Write a header block that changes no table, and is the same on every connection."""
    return b"".join(_write_field(name, value) for name, value in fields)


def _write_field(name: bytes, value: bytes) -> bytes:
    if (name, value) == (b":status", b"200"):
        return b"\x88"
    index = _INDEXED_NAMES.get(name)
    start = b"\0" + _write_text(name) if index is None else _write_integer(index, 4)
    return start + _write_text(value)


def _write_text(text: bytes) -> bytes:
    return _write_integer(len(text), 7) + text


def _write_integer(value: int, bits: int) -> bytes:
    most = (1 << bits) - 1
    if value < most:
        return bytes([value])
    value -= most
    parts = [most]
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
