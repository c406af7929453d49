"""One request of HTTP/1.1, whose body may still arrive, and its answer."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol

from serving.errors import VaeError

Fields = Sequence[tuple[str, str]]


class Head(NamedTuple):
    """The line and the header fields of a request."""

    method: str = "GET"
    target: bytes = b"/"
    """As it was sent: a path, percent-encoded, with its query, or a whole address."""
    headers: dict[str, str] = {}  # noqa: RUF012 - nobody writes into it
    """By their names in lower case; the values of a name that came twice are joined by a comma."""
    version: str = "1.1"
    keeps: bool = False
    """Whether the client keeps the connection for another request."""


class Carrier(Protocol):
    """The connection of an exchange, as the exchange sees it."""

    def answer(
        self, exchange: "Exchange", status: int, fields: Fields, body: bytes, close: bool
    ) -> None:
        """Send the answer."""

    def proceed(self) -> None:
        """Tell a client that waits for this to send the body."""

    def taken(self) -> None:
        """Go on reading, since what had arrived of a body was taken."""


class Exchange:
    """A request and its answer.

    Args:
        connection: where it belongs.
        head: what has arrived before the body.
    """

    __slots__ = (
        "_connection", "_error", "_parts", "_proceeded", "_waiter",
        "ahead", "complete", "head", "task",
    )  # fmt: skip

    def __init__(self, connection: Carrier, head: Head) -> None:
        self.head = head
        self.complete = False
        """Whether the whole body has arrived."""
        self.ahead = 0
        """Bytes of the body that have arrived, and that nobody has taken."""
        self.task: asyncio.Task[None] | None = None
        """What answers it, if a task does; it is cancelled when the client leaves."""
        self._connection = connection
        self._parts: list[bytes] = []
        self._error: VaeError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._proceeded = False

    def received(self, part: bytes) -> None:
        """Take a part of the body."""
        self._parts.append(part)
        self.ahead += len(part)
        self._wake()

    def finished(self) -> None:
        """Note that the body has arrived."""
        self.complete = True
        self._wake()

    def fail(self, error: VaeError) -> None:
        """Let whoever reads the body find that the rest of it will not come."""
        if not self.complete and self._error is None:
            self._error = error
            self._wake()

    def lost(self, error: VaeError) -> None:
        """Stop: the client has gone."""
        if self._waiter is not None:
            self.fail(error)
        elif self.task is not None:
            self.task.cancel()

    async def read(self) -> bytes:
        """Read the whole body, of `BODY_AHEAD` bytes at most.

        Raises:
            VaeError: the rest of it will not come.
        """
        while not self.complete:
            await self._more()
        return self._take()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body in the pieces that have arrived.

        Raises:
            VaeError: the rest of it will not come.
        """
        while self._parts or not self.complete:
            if self._parts:
                yield self._take()
            else:
                await self._more()

    def respond(
        self, status: int, fields: Fields = (), body: bytes = b"", *, close: bool = False
    ) -> None:
        """Answer, and close the connection if told to, or if the client does not keep it."""
        self._connection.answer(self, status, fields, body, close)

    def _take(self) -> bytes:
        parts, self._parts, self.ahead = self._parts, [], 0
        self._connection.taken()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _more(self) -> None:
        if self._error is not None:
            raise self._error
        if not self._proceeded:
            self._proceeded = True
            expected = self.head.headers.get("expect", "").lower()
            if expected == "100-continue" and self.head.version != "1.0":
                self._connection.proceed()
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
