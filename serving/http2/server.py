"""Listen for connections of HTTP/2, look after them, and end them."""

import asyncio
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from serving.http2.budget import Budget
from serving.http2.connection import Connection
from serving.http2.frames import Code
from serving.http2.headers import Fields
from serving.http2.limits import GREETING_S
from serving.http2.stream import Carrier, Stream

BACKLOG = 1024
CHECK_S = 1.0
"""Seconds between two looks at all connections."""
GOODBYE_S = 1.0
"""Seconds in which clients without calls may say that they know of the end."""

Head = TypeVar("Head")


class Http2Server(Generic[Head]):
    """Serves streams on the event loop that starts it.

    Args:
        read_head: makes of the header fields of a request what `make_stream` needs. It is not
            called again for the same fields, so its result must not change.
        make_stream: makes the stream of a request.
        budget: what connections may hold in memory.
        max_connections: connections at a time.
    """

    def __init__(
        self,
        read_head: Callable[[Fields], Head],
        make_stream: Callable[[Carrier, int, Head], Stream],
        budget: Budget,
        max_connections: int,
    ) -> None:
        self.read_head = read_head
        self.make_stream = make_stream
        self.budget = budget
        self.max_connections = max_connections
        self.time: Callable[[], float] = time.monotonic
        """The time of the event loop, once it listens."""
        self.connections: set[Connection] = set()
        self._listener: asyncio.Server | None = None
        self._checking: asyncio.TimerHandle | None = None

    async def start(self, host: str, port: int, certificate: tuple[Path, Path] | None) -> None:
        """Listen, over TLS if given files of a certificate chain and its private key."""
        loop = asyncio.get_running_loop()
        self.time = loop.time
        context = None if certificate is None else _tls(*certificate)
        self._listener = await loop.create_server(
            lambda: Connection(self),
            host,
            port,
            ssl=context,
            backlog=BACKLOG,
            ssl_handshake_timeout=None if context is None else GREETING_S,
            reuse_port=hasattr(socket, "SO_REUSEPORT") or None,  # workers share the port
        )
        self._checking = loop.call_later(CHECK_S, self._check)

    def admit(self, connection: Connection) -> None:
        """Take a connection; if there are too many, in place of an idle one, or not at all.

        One whose client reads nothing counts as idle.
        """
        if len(self.connections) >= self.max_connections:
            idle = next((each for each in self.connections if each.idle), None)
            if idle is None:
                connection.abort()
                return
            if idle.streams:  # its client does not read
                idle.abort()
            else:
                idle.close(Code.NO_ERROR)
        self.connections.add(connection)

    def _check(self) -> None:
        loop = asyncio.get_running_loop()
        self._checking = loop.call_later(CHECK_S, self._check)
        for connection in [*self.connections]:
            connection.check(self.time())

    async def stop(self, grace_s: float) -> None:
        """Refuse new connections and streams; give streams `grace_s` seconds to end."""
        if self._listener is not None:
            self._listener.close()
        for connection in [*self.connections]:
            connection.drain()
        now = self.time()
        goodbye, end = now + min(GOODBYE_S, grace_s), now + grace_s
        while self.connections and self.time() < end:
            if self.time() > goodbye and not any(each.streams for each in self.connections):
                break
            await asyncio.sleep(0.01)
        for connection in [*self.connections]:
            connection.abort()
        if self._checking is not None:
            self._checking.cancel()
        await asyncio.sleep(0)


def _tls(chain: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(chain, key)
    context.set_alpn_protocols(["h2"])
    return context
