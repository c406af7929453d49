"""Listen for connections, look after them, and end them."""

import asyncio
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from serving.transport.limits import BACKLOG, CHECK_S, GOODBYE_S, GREETING_S, LISTENERS


class Served(Protocol):
    """A connection, as the listener sees it."""

    idle: int
    """How ready it is to give way to a new connection; 0 if it is not."""

    @property
    def busy(self) -> bool:
        """Whether there is something to answer."""

    def check(self, now: float) -> None:
        """End it if its client does not go on; called each second."""

    def drain(self) -> None:
        """Let the client send no more requests; those that it has sent are answered."""

    def give_way(self) -> None:
        """End it, to make room for another; afterwards it is not idle, but on its way out."""

    def abort(self) -> None:
        """End it at once."""


Made = TypeVar("Made", bound=Served)


class Listener(Generic[Made]):
    """Holds the connections of one port on the event loop that starts it.

    Args:
        make: makes a connection's protocol, which calls `admit` when it is connected, and
            `forget` when it is not any more.
        protocol: the name of what is spoken, for clients that ask in TLS (ALPN, RFC 7301).
        max_connections: connections at a time.
    """

    def __init__(
        self, make: Callable[[], asyncio.Protocol], protocol: str, max_connections: int
    ) -> None:
        self._make = make
        self._protocol = protocol
        self._max_connections = max_connections
        self.time: Callable[[], float] = time.monotonic
        """The time of the event loop, once it listens."""
        self.connections: dict[Made, None] = {}
        """In the order in which they came."""
        self._listeners: list[asyncio.Server] = []
        self._checking: asyncio.TimerHandle | None = None

    async def start(self, host: str, port: int, certificate: tuple[Path, Path] | None) -> None:
        """Listen, over TLS if given files of a certificate chain and its private key."""
        loop = asyncio.get_running_loop()
        self.time = loop.time
        context = None if certificate is None else _tls(*certificate, self._protocol)
        shared = hasattr(socket, "SO_REUSEPORT")  # by all workers, too
        for _ in range(LISTENERS if shared else 1):
            listener = await loop.create_server(
                self._make,
                host,
                port,
                ssl=context,
                backlog=BACKLOG,
                ssl_handshake_timeout=None if context is None else GREETING_S,
                reuse_port=shared or None,
            )
            self._listeners.append(listener)
        self._checking = loop.call_later(CHECK_S, self._check)

    def admit(self, connection: Made) -> bool:
        """Take a connection; if there are too many, in place of an idle one, or not at all."""
        if len(self.connections) >= self._max_connections:
            idle = max(self.connections, key=lambda each: each.idle)
            if not idle.idle:
                connection.abort()
                return False
            idle.give_way()
        self.connections[connection] = None
        return True

    def forget(self, connection: Made) -> None:
        """Drop a connection that has ended."""
        self.connections.pop(connection, None)

    def check(self) -> None:
        """Look at all connections."""
        for connection in [*self.connections]:
            connection.check(self.time())

    def _check(self) -> None:
        self._checking = asyncio.get_running_loop().call_later(CHECK_S, self._check)
        self.check()

    async def stop(self, grace_s: float) -> None:
        """Refuse new connections and requests; give those in progress `grace_s` seconds to end."""
        for listener in self._listeners:
            listener.close()
        for connection in [*self.connections]:
            connection.drain()
        now = self.time()
        goodbye, end = now + min(GOODBYE_S, grace_s), now + grace_s
        while self.connections and self.time() < end:
            if self.time() > goodbye and not any(each.busy for each in self.connections):
                break
            await asyncio.sleep(0.01)
        for connection in [*self.connections]:
            connection.abort()
        if self._checking is not None:
            self._checking.cancel()
        await asyncio.sleep(0)


def _tls(chain: Path, key: Path, protocol: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(chain, key)
    context.set_alpn_protocols([protocol])
    return context
