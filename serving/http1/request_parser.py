"""Parse requests as they arrive: httptools finds their parts, and here they become heads.

What breaks the protocol is refused with a status, and nothing after it is read, since nobody can
tell where the next request begins (RFC 9112, section 2.2).
"""

import logging
from functools import lru_cache
from typing import Protocol

from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserUpgrade,
    HttpRequestParser,
)

from serving.http1.exchange import Head
from serving.http1.limits import HEAD_BYTES

LOG = logging.getLogger(__name__)
_FIELD = 32
"""Bytes that a header field counts beside its name and value, as in HTTP/2."""
_LONG = 64
"""Bytes of a header field's name that is not remembered."""
_VERSIONS = ("1.1", "1.0")
_LONG_HEAD = f"the line and header fields of a request may have {HEAD_BYTES} bytes: send less"


class Sink(Protocol):
    """What takes the requests."""

    def begun(self) -> None:
        """Note that the first byte of a head has come."""

    def opened(self, head: Head) -> None:
        """Take the head of a request, whose body may follow."""

    def received(self, part: bytes) -> None:
        """Take a part of the body."""

    def completed(self) -> None:
        """Note that the body has arrived."""

    def refused(self, status: int, reason: str) -> None:
        """Take no more: what has arrived breaks the protocol."""


class RequestParser:
    """The requests of one connection.

    Args:
        sink: what takes them.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.on_body = sink.received
        self.on_message_complete = sink.completed
        self._parser = HttpRequestParser(self)
        self.in_head = self.broken = False
        """Whether a head has begun that is not complete; whether no more is read."""
        self._headers: dict[str, str] = {}
        self._target = b""
        self._read = self._size = 0
        """Bytes that have arrived of the head, and those of its parts that are complete."""

    def feed(self, data: bytes) -> None:
        """Read what has arrived."""
        if self.in_head:
            self._read += len(data)
        try:
            while data and not self.broken:
                try:
                    self._parser.feed_data(data)
                    break
                except HttpParserUpgrade as offer:  # it has left the body out
                    data = self._without_upgrade() + data[offer.args[0] :]
        except HttpParserCallbackError:
            LOG.exception("internal error in a connection")
            self.refuse(500, "internal error")
        except HttpParserError as err:
            self.refuse(400, f"the request is malformed: {err}")
        if self.in_head and max(self._read, self._size) > HEAD_BYTES:
            self.refuse(431, _LONG_HEAD)

    def refuse(self, status: int, reason: str) -> None:
        """Read no more, and say why."""
        if not self.broken:
            self.broken, self.in_head = True, False
            self._sink.refused(status, reason)

    def end(self) -> None:
        """Read no more, and let go of the sink: a circle would live until it is collected."""
        self.broken, self.in_head = True, False
        del self._sink, self._parser, self.on_body, self.on_message_complete

    def _without_upgrade(self) -> bytes:
        """Write the last head again without its offer of another protocol, which is not taken.

        Java's client offers HTTP/2 in this way, and curl if it is told to (RFC 9110, section 7.8).
        """
        self._headers.pop("upgrade", None)
        method, version = self._parser.get_method().decode(), self._parser.get_http_version()
        line = f"{method} {self._target.decode('latin-1')} HTTP/{version}\r\n"
        lines = [f"{name}: {value}\r\n" for name, value in self._headers.items()]
        self._parser = HttpRequestParser(self)  # the old one may take no more
        return "".join((line, *lines, "\r\n")).encode("latin-1")

    # what httptools calls

    def on_message_begin(self) -> None:
        """Begin a head."""
        if not self.broken:
            self.in_head, self._headers, self._target = True, {}, b""
            self._read = self._size = 0
            self._sink.begun()

    def on_url(self, part: bytes) -> None:
        """Take a part of the target."""
        self._target += part
        self._size += len(part)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field; behind a body it is a trailer, which is dropped."""
        if self.in_head:
            self._size += len(name) + len(value) + _FIELD
            key = _name_of(name) if len(name) < _LONG else _lower(name)
            text = value.decode("latin-1").rstrip(" \t")
            before = self._headers.get(key)
            self._headers[key] = text if before is None else f"{before}, {text}"

    def on_headers_complete(self) -> None:
        """Hand the head on."""
        if self.broken:
            return
        self.in_head = False
        parser, headers = self._parser, self._headers
        method, version = parser.get_method(), parser.get_http_version()
        if self._size > HEAD_BYTES:
            self.refuse(431, _LONG_HEAD)
        elif method == b"CONNECT":
            self.refuse(501, "this is no proxy")
        elif version not in _VERSIONS:
            self.refuse(505, f"HTTP/1.1 and HTTP/1.0 are spoken here, got HTTP/{version}")
        elif parser.should_upgrade():
            pass  # the parser stops here
        elif "," in headers.get("host", "," if version == "1.1" else ""):
            self.refuse(400, "a request needs one header Host")
        elif version == "1.0" and "transfer-encoding" in headers:
            self.refuse(400, "HTTP/1.0 has no transfer-encoding")  # a proxy may see no body here
        else:
            keeps = parser.should_keep_alive()
            self._sink.opened(Head(method.decode(), self._target, headers, version, keeps))


def _lower(name: bytes) -> str:
    return name.decode("latin-1").lower()


_name_of = lru_cache(256)(_lower)
"""Remembers the names of header fields; nobody may fill the memory with long ones."""
