"""A connection without a socket: what a client sends goes in, what the server writes comes out."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, cast

import h11

from serving.http1.connection import Connection
from serving.http1.exchange import Exchange, Head
from tests.serving.transport.owner import Owner

GET = b"GET /a HTTP/1.1\r\nHost: test\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: test\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
REFUSAL = (("x-reason", "refused"),)


def post(body: bytes, *lines: bytes) -> bytes:
    length = b"Content-Length: %d\r\n" % len(body)
    return b"".join((POST, length, *lines, b"\r\n", body))


class Transport:
    """Keeps what is written, and whether it is read; `unsent` bytes of it have not left."""

    def __init__(self, *, half_closes: bool = True) -> None:
        self.written: list[bytes] = []
        self.closed = self.aborted = self.eof = False
        self.reading = True
        self.unsent = 0
        self._half_closes = half_closes

    def writelines(self, parts: tuple[bytes, ...]) -> None:
        assert not self.is_closing()
        assert not self.eof
        self.written += parts

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def get_extra_info(self, name: str) -> "Transport":
        return self

    def setsockopt(self, *option: int) -> None: ...

    def can_write_eof(self) -> bool:
        return self._half_closes

    def write_eof(self) -> None:
        assert self._half_closes
        self.eof = True

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        assert not self.is_closing()
        self.reading = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


class Server(Owner):
    """Keeps the exchanges of connections, and lets `respond` answer each."""

    def __init__(self, respond: Callable[[Exchange], None] = lambda exchange: None) -> None:
        super().__init__()
        self.respond = respond
        self.exchanges: list[Exchange] = []
        self.refusals: list[tuple[int, str]] = []
        self.head_s = 30.0
        self.bytes = 0

    def handle(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        self.respond(exchange)

    def refuse(self, exchange: Exchange, status: int, reason: str) -> None:
        self.refusals.append((status, reason))
        exchange.respond(status, REFUSAL, reason.encode(), close=True)

    def sent(self, size: int) -> None:
        self.bytes += size


class Wire:
    """One connection to a server, from the side of its client."""

    def __init__(self, server: Server, *, half_closes: bool = True) -> None:
        self.server = server
        self.transport = Transport(half_closes=half_closes)
        self.connection = Connection(server)
        self.connection.connection_made(cast(Any, self.transport))

    def send(self, *parts: bytes) -> None:
        self.connection.data_received(b"".join(parts))

    def take(self) -> bytes:
        """Return what the server has written since the last time."""
        written, self.transport.written = b"".join(self.transport.written), []
        return written

    def check(self, now: float) -> None:
        self.server.now = now
        self.connection.check(now)


class Got(NamedTuple):
    """An answer, as a client reads it."""

    status: int
    headers: dict[str, str]
    body: bytes


def read_answers(written: bytes, *methods: str, ended: bool = False) -> list[Got]:
    """Read the answers to requests of these methods with h11, which must leave nothing over."""
    client = h11.Connection(h11.CLIENT)
    found = []
    for place, method in enumerate(methods):
        if place:
            client.start_next_cycle()
        client.send(h11.Request(method=method, target="/", headers=[("host", "test")]))
        client.send(h11.EndOfMessage())
        if not place:
            client.receive_data(written)
            if ended:
                client.receive_data(b"")
        found.append(_read_answer(client))
    left, _ = client.trailing_data
    assert left == b""
    return found


def _read_answer(client: h11.Connection) -> Got:
    head, body = None, b""
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        assert not isinstance(event, h11.ConnectionClosed | type(h11.NEED_DATA)), event
        if isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
    assert head is not None
    headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
    return Got(head.status_code, headers, body)


def echo(exchange: Exchange) -> None:
    """Answer at once with the target, since the body may not be there yet."""
    exchange.respond(200, (), exchange.head.target)


def told(exchange: Exchange) -> tuple[Head, bytes, bool]:
    """Return the head, what has arrived of the body, and whether that is all."""
    return exchange.head, b"".join(exchange._parts), exchange.complete


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 20))


async def turn() -> None:
    """Let the event loop run what is ready."""
    for _ in range(3):
        await asyncio.sleep(0)
