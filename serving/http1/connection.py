"""One connection of HTTP/1.1: its requests are answered one after the other, in their order.

Reading stops while answers wait for the client, or requests for their turn, so that a client can
make the server hold only so much. A request that is refused for its form ends the connection.
"""

import asyncio
import socket
from collections import deque
from typing import Any, Protocol, cast

from serving.errors import ClientLeft, DataRefused
from serving.http1.answers import CONTINUE, has_content, write_head
from serving.http1.exchange import Exchange, Fields, Head
from serving.http1.limits import (
    BODY_AHEAD,
    CHUNK,
    LINGER_BYTES,
    LINGER_S,
    MAX_BESIDE,
    MAX_WAITING,
)
from serving.http1.request_parser import RequestParser
from serving.transport.limits import IDLE_S
from serving.transport.progress import Progress

_SILENT = 2
"""How ready a client that has sent nothing is to give way to another; one that is idle: 1."""
_BROKEN_BODY = "the chunks of the body are broken"


class Owner(Protocol):
    """The server of a connection, as its connection sees it."""

    head_s: float

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
        self._parser = RequestParser(self)
        self._receiving: Exchange | None = None
        """The exchange whose body is arriving."""
        self._waiting: deque[Exchange | tuple[int, str]] = deque()
        """Those that nobody answers yet, and at the end perhaps the refusal of what followed."""
        self._current: Exchange | None = None
        """The exchange that is being answered."""
        self._reading, self._paused = True, False
        self._begun = self._draining = self._ended = False
        self._since = server.time()
        """When the last head began, or was read on after a pause, or the end."""
        self.progress = Progress(self._since)
        """Whether the client takes its answers."""
        self._sent = self._last = self._dropped = self._beside = 0
        self.idle = _SILENT
        """How ready it is to give way to a new connection."""

    @property
    def busy(self) -> bool:
        """Whether there is something to answer, or an answer that the client has not taken."""
        return self._asked or self.unsent > 0

    @property
    def _asked(self) -> bool:
        return self._current is not None or bool(self._waiting) or self._parser.in_head

    @property
    def unsent(self) -> int:
        """Return the bytes of answers that the client has not taken."""
        return self._transport.get_write_buffer_size()

    @property
    def held(self) -> int:
        """Return the bytes of answers in memory: one stays as a whole until all of it has left."""
        unsent = self.unsent
        return max(unsent, self._last) if unsent else 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        self._write = self._transport.writelines
        if self._server.admit(self):  # TCP finds out that a client is gone
            socket_ = transport.get_extra_info("socket")
            socket_.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell what answers."""
        self._leave()
        self._parser.end()
        self._server.forget(self)

    def eof_received(self) -> None:
        """End: a client that says no more does not read for long, either."""
        self._since = self._server.time()
        self._leave()  # not forgotten: it may be that the client never takes what is unsent

    def data_received(self, data: bytes) -> None:
        """Read what has arrived."""
        if self._parser.broken or self._ended:
            self._drop(len(data))
            return
        self._beside += len(data)
        self._parser.feed(data)
        if self._begun:
            self.idle = 0
        if self._receiving is not None and self._beside > MAX_BESIDE:
            self._parser.refuse(400, "")  # it is the body that is refused
        if self._waiting:
            self._begin()
        elif not (self._asked or self._receiving):
            self._drop(len(data))  # empty lines

    def pause_writing(self) -> None:
        """Answer nothing more: the client does not take what it has asked for."""
        self._paused = True
        self._pace()

    def resume_writing(self) -> None:
        """Go on."""
        self._paused = False
        self._begin()

    # requests, as the parser finds them

    def begun(self) -> None:
        """Note that a request begins."""
        self._begun, self._since = True, self._server.time()

    def opened(self, head: Head) -> None:
        """Take a request, whose body may follow."""
        if len(self._waiting) == MAX_WAITING:
            self._parser.refuse(429, f"{MAX_WAITING} requests wait: read their answers first")
            return
        self._receiving = Exchange(self, head)
        self._beside = 0
        self._waiting.append(self._receiving)

    def received(self, part: bytes) -> None:
        """Take a part of the body."""
        if self._receiving is not None:
            self._receiving.received(part)
            self._beside = max(0, self._beside - CHUNK * len(part))
            if self._receiving.ahead > BODY_AHEAD:
                self._pace()

    def completed(self) -> None:
        """Note that the body has arrived."""
        exchange, self._receiving = self._receiving, None
        if exchange is not None:
            exchange.finished()
            if not exchange.head.keeps:
                self._parser.broken = True  # the client has said that no more follows

    def refused(self, status: int, reason: str) -> None:
        """Refuse the body that is arriving, or what follows after what was asked before."""
        exchange, self._receiving = self._receiving, None
        if exchange is None:
            self._waiting.append((status, reason))
        else:
            exchange.fail(DataRefused(_BROKEN_BODY))

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
        self._write(parts)
        self._sent, self._last = self._sent + size, size
        if not keeps:
            self._end(linger=not exchange.complete)
        elif self._waiting:
            asyncio.get_running_loop().call_soon(self._begin)
        self._server.sent(size)

    def proceed(self) -> None:
        """Tell a client that waits for this to send the body."""
        if not self._ended:
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
                self._since = self._server.time()
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _drop(self, size: int) -> None:
        self._dropped += size
        if self._dropped > LINGER_BYTES:
            if self._asked and not self._ended:
                self._pace()
            else:
                self._transport.close()

    def _end(self, linger: bool = False) -> None:
        """Close once all has left, and if told to, once the client has sent what it was sending."""
        self._ended, self._since = True, self._server.time()
        self._waiting.clear()
        if not linger:
            self._transport.close()
            return
        if self._transport.can_write_eof():  # over TLS, the answer alone says that it is the last
            self._transport.write_eof()
        self._pace()

    def _leave(self) -> None:
        """Answer nothing more: the client has gone."""
        self._ended = True
        self._waiting.clear()
        exchange, self._current = self._current, None
        if exchange is not None:
            exchange.lost(ClientLeft("the client closed the connection"))

    def drain(self) -> None:
        """Answer what was asked, and close."""
        self._draining = True
        if not (self._asked or self._ended):
            self._end()

    def give_way(self) -> None:
        """End, to make room."""
        self.idle = 0  # it does so once
        self.abort()

    def abort(self) -> None:
        """End at once."""
        self._leave()
        self._transport.abort()

    def check(self, now: float) -> None:
        """End the connection if its client does not go on; called each second."""
        unsent = self.unsent
        if not self.progress.look(self._sent - unsent, unsent > 0, now):
            self.abort()
            return
        if self._ended and not unsent and now - self._since > LINGER_S:
            self._transport.close()
            return
        head_s = self._server.head_s
        if self._parser.in_head and self._reading and now - self._since > head_s:
            self._parser.refuse(408, f"the head of the request did not arrive within {head_s:g} s")
            self._begin()
        if self._begun:
            answering = self._current is not None or self._waiting or unsent
            still = self.progress.stands(now) if answering else now - self._since >= IDLE_S
            self.idle = int(still)
