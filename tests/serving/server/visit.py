"""A request that reaches `RestServer` without a socket, and its answer."""

import asyncio
from collections.abc import Mapping

from serving.errors import ClientLeft
from serving.http1.exchange import Exchange, Fields, Head
from serving.server.rest_server import RestServer


class Visit:
    """The connection of one request, all of which has arrived."""

    def __init__(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes = b""
    ) -> None:
        self.exchange = Exchange(self, Head(method, path.encode(), dict(headers), keeps=True))
        self.exchange.received(body)
        self.exchange.finished()
        self.status = self.reads = 0
        self.headers: dict[str, str] = {}
        self.content = b""
        self.answers = 0

    async def to(self, server: RestServer) -> None:
        """Let a server answer it."""
        server.handle(self.exchange)
        while not self.answers:
            await asyncio.sleep(0)

    def leave(self) -> None:
        """Close the connection."""
        self.exchange.lost(ClientLeft("the client closed the connection"))

    def answer(
        self, exchange: Exchange, status: int, fields: Fields, body: bytes, close: bool
    ) -> None:
        self.status, self.headers, self.content = status, dict(fields), body
        self.answers += 1

    def proceed(self) -> None:
        raise AssertionError("the body is there")

    def taken(self) -> None:
        self.reads += 1
