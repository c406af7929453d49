"""One connection of HTTP/1.1: requests are parsed as they arrive, and answered one after the other.

A request that breaks the protocol is answered with 4xx, and ends its connection, since nobody can
tell where the next one begins (RFC 9112, section 2.2).
"""

import asyncio
import logging
import socket
from collections import deque
from functools import lru_cache
from typing import Any, Protocol, cast

from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserUpgrade,
    HttpRequestParser,
)

from serving.errors import ClientLeft, DataRefused
from serving.http1.answers import CONTINUE, has_content, write_head
from serving.http1.exchange import Exchange, Fields, Head
from serving.http1.limits import BODY_AHEAD, HEAD_BYTES, LINGER_BYTES, LINGER_S, MAX_WAITING
from serving.transport.limits import IDLE_S, REQUEST_S
from serving.transport.progress import Progress

LOG = logging.getLogger(__name__)
_SILENT = 2
"""How ready a client that has sent nothing is to give way to another; one that is idle: 1."""
_FIELD = 32
"""Bytes that a header field counts beside its name and value, as in HTTP/2."""
_LONG_HEAD = f"the line and header fields of a request may have {HEAD_BYTES} bytes: send less"
_BROKEN_BODY = "the chunks of the body are broken"


class Owner(Protocol):
    """The server of a connection, as its connection sees it."""

    def time(self) -> float:
        """Return the time of the event loop."""

    def admit(self, connection: Any, /) -> bool:
        """Take a connection, or end it if there are too many."""

    def forget(self, connection: Any, /) -> None:
        """Drop a connection that has ended."""

    def handle(self, exchange: Exchange, /) -> None:
        """Answer a request, now or later."""

    def refuse(self, exchange: Exchange, status: int, reason: str, /) -> None:
        """Answer a request that breaks the protocol."""

    def sent(self, size: int, /) -> None:
        """Count the bytes of an answer."""


class Connection(asyncio.Protocol):
    """The server's end of a connection."""

    def __init__(self, server: Owner) -> None:
        self._server = server
        self._parser = HttpRequestParser(self)
        self._headers: dict[str, str] = {}
        self._target = b""
        self._in_head = False
        self._head_read = self._head_size = 0
        """Bytes that have arrived of the head, and those of its parts that are complete."""
        self._receiving: Exchange | None = None
        """The exchange whose body is arriving."""
        self._waiting: deque[Exchange | tuple[int, str]] = deque()
        """Those that nobody answers yet, and at the end perhaps the refusal of what followed."""
        self._current: Exchange | None = None
        """The exchange that is being answered."""
        self._reading, self._paused = True, False
        self._begun = self._broken = self._draining = self._ended = False
        self._since = server.time()
        """When the last head began, or the end."""
        self._progress = Progress(self._since)
        self._sent = self._dropped = 0
        self.idle = _SILENT
        """How ready it is to give way to a new connection."""

    @property
    def busy(self) -> bool:
        """Whether there is something to answer."""
        return self._current is not None or bool(self._waiting) or self._in_head

    @property
    def unsent(self) -> int:
        """Return the bytes of answers that the client has not taken."""
        return self._transport.get_write_buffer_size()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        self._write = self._transport.writelines
        if self._server.admit(self):  # TCP finds out that a client is gone
            socket_ = transport.get_extra_info("socket")
            socket_.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell what answers."""
        self._ended = True
        self._server.forget(self)
        exchange, self._current = self._current, None
        self._waiting.clear()
        if exchange is not None:
            exchange.lost(ClientLeft("the client closed the connection"))

    def eof_received(self) -> None:
        """End: a client that says no more does not read for long, either."""
        self.connection_lost(None)

    def data_received(self, data: bytes) -> None:
        """Read what has arrived."""
        if self._broken or self._ended:
            self._drop(len(data))
            return
        self.idle = 0
        if self._in_head:
            self._head_read += len(data)
        self._parse(data)
        if self._in_head and max(self._head_read, self._head_size) > HEAD_BYTES:
            self._refuse(431, _LONG_HEAD)
        if self._waiting:
            self._begin()

    def pause_writing(self) -> None:
        """Answer nothing more: the client does not take what it has asked for."""
        self._paused = True
        self._pace()

    def resume_writing(self) -> None:
        """Go on."""
        self._paused = False
        self._begin()

    def _parse(self, data: bytes) -> None:
        try:
            while data:
                try:
                    self._parser.feed_data(data)
                    return
                except HttpParserUpgrade as offer:  # h2c, say: go on with HTTP/1.1
                    data = data[offer.args[0] :]
        except HttpParserCallbackError:
            LOG.exception("internal error in a connection")
            self.abort()
        except HttpParserError as err:
            self._refuse(400, f"the request is malformed: {err}")

    # what the parser calls

    def on_message_begin(self) -> None:
        """Begin a head."""
        if self._broken:
            return
        self._in_head, self._headers, self._target = True, {}, b""
        self._head_read = self._head_size = 0
        self._since = self._server.time()
        self._begun = True

    def on_url(self, part: bytes) -> None:
        """Take a part of the target."""
        self._target += part
        self._head_size += len(part)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field; in a body's end, it is a trailer, which is dropped."""
        if not self._in_head:
            return
        self._head_size += len(name) + len(value) + _FIELD
        key, text = _name_of(name), value.decode("latin-1")
        before = self._headers.get(key)
        self._headers[key] = text if before is None else f"{before}, {text}"

    def on_headers_complete(self) -> None:
        """Take a request, whose body may follow."""
        if self._broken:
            return
        self._in_head = False
        parser, headers = self._parser, self._headers
        version = parser.get_http_version()
        if self._head_size > HEAD_BYTES:
            self._refuse(431, _LONG_HEAD)
            return
        if len(self._waiting) >= MAX_WAITING:
            self._refuse(429, f"{MAX_WAITING} requests wait: read their answers first")
            return
        if version == "1.1" and ("host" not in headers or "," in headers["host"]):
            self._refuse(400, "a request needs one header Host")
            return
        method = parser.get_method().decode()
        keeps = parser.should_keep_alive()
        exchange = Exchange(self, Head(method, self._target, headers, version, keeps))
        self._receiving = exchange
        self._waiting.append(exchange)

    def on_body(self, part: bytes) -> None:
        """Take a part of the body."""
        if self._receiving is not None:
            self._receiving.received(part)
            if self._receiving.ahead > BODY_AHEAD:
                self._pace()

    def on_message_complete(self) -> None:
        """Note that the body has arrived."""
        exchange, self._receiving = self._receiving, None
        if exchange is not None:
            exchange.finished()
            self._broken = self._broken or not exchange.head.keeps  # it said that no more follows

    # answers

    def _begin(self) -> None:
        """Let the next request be answered, if none is."""
        if self._waiting and self._current is None and not self._paused and not self._ended:
            found = self._waiting.popleft()
            if isinstance(found, Exchange):
                self._current = found
                self._server.handle(found)
            else:
                self._current = Exchange(self, Head())
                self._server.refuse(self._current, *found)
        self._pace()

    def _refuse(self, status: int, reason: str) -> None:
        """Read no further; say why after what was asked before."""
        if self._broken:
            return
        self._broken, self._in_head = True, False
        exchange, self._receiving = self._receiving, None
        if exchange is None:
            self._waiting.append((status, reason))
        else:
            exchange.fail(DataRefused(_BROKEN_BODY))

    def answer(
        self, exchange: Exchange, status: int, fields: Fields, body: bytes, close: bool
    ) -> None:
        """Send the answer of an exchange, unless its client has gone."""
        if exchange is not self._current:
            return
        self._current = None
        method, _, _, version, keeps = exchange.head
        keeps = keeps and exchange.complete and not (close or self._draining)
        head = write_head(version, status, fields, len(body), keeps)
        parts = (head, body) if body and has_content(method, status) else (head,)
        size = sum(map(len, parts))
        self._sent += size
        self._server.sent(size)
        self._write(parts)
        if not keeps:
            self._end(linger=not exchange.complete)
        elif self._waiting:
            asyncio.get_running_loop().call_soon(self._begin)

    def proceed(self) -> None:
        """Tell a client that waits for this to send the body."""
        self._write((CONTINUE,))

    def taken(self) -> None:
        """Go on reading, since what had arrived of a body was taken."""
        if not self._reading:
            self._pace()

    # the end, and the pace

    def _pace(self) -> None:
        """Read only what can be answered soon."""
        receiving = self._receiving
        full = receiving is not None and receiving.ahead > BODY_AHEAD
        full = full or self._dropped > LINGER_BYTES
        reading = self._ended or not (self._paused or self._waiting or full)
        if reading != self._reading and not self._transport.is_closing():
            self._reading = reading
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _drop(self, size: int) -> None:
        self._dropped += size
        if self._dropped > LINGER_BYTES:
            if self._ended:
                self._transport.close()
            else:
                self._pace()

    def _end(self, linger: bool = False) -> None:
        """Close once all has left, and if told to, once the client has sent what it was sending."""
        self._ended, self._since = True, self._server.time()
        self._waiting.clear()
        if linger and self._transport.can_write_eof():
            self._transport.write_eof()
            self._pace()
        else:
            self._transport.close()

    def drain(self) -> None:
        """Answer what was asked, and close."""
        self._draining = True
        if not (self.busy or self._ended):
            self._end()

    def give_way(self) -> None:
        """End, to make room."""
        self.abort()

    def abort(self) -> None:
        """End at once."""
        self._ended = True
        self._transport.abort()

    def check(self, now: float) -> None:
        """End the connection if its client does not go on; called each second."""
        unsent = self.unsent
        gone = self._ended and not unsent and now - self._since > LINGER_S
        if gone or not self._progress.look(self._sent - unsent, unsent > 0, now):
            self.abort()
            return
        if self._in_head and now - self._since > REQUEST_S:
            self._refuse(408, f"the request's head did not arrive within {REQUEST_S:g} s")
            self._begin()
        if self._begun:
            answering = self._current is not None or self._waiting
            still = self.stands(now) if answering else now - self._since >= IDLE_S
            self.idle = int(still)

    def stands(self, now: float) -> bool:
        """Whether the client takes nothing of the answers that wait for it."""
        return self._progress.stands(now)

    @property
    def stuck_since(self) -> float:
        """Return when the client took the last of its answers."""
        return self._progress.at


@lru_cache(256)
def _name_of(name: bytes) -> str:
    return name.decode("latin-1").lower()
