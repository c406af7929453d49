"""One stream of a connection: a request that arrives, and the answer to it.

The application's own class derives from `Stream` and is told what arrives. What it raises beyond
a `StreamFault` ends its connection.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from serving.http2.budget import Budget
from serving.http2.frames import Code, StreamFault
from serving.http2.headers import Fields
from serving.http2.limits import STREAM_WINDOW

Parts = Sequence[bytes | memoryview]


class Carrier(Protocol):
    """The connection of a stream, as its stream sees it."""

    budget: Budget

    @property
    def initial_window(self) -> int:
        """Return the bytes that the client is ready to receive on a new stream."""

    def time(self) -> float:
        """Return the time of the event loop."""

    def grant(self, number: int, size: int) -> None:
        """Let the client send more."""

    def send(self, stream: "Stream", parts: Parts, headers: bytes, trailers: bytes) -> None:
        """Send header blocks and data."""

    def reset(self, stream: "Stream", code: Code) -> None:
        """End a stream without an answer."""


class Stream:
    """A stream, which a client opened.

    Args:
        connection: where it belongs.
        number: its number on the connection.
    """

    def __init__(self, connection: Carrier, number: int) -> None:
        self.connection = connection
        self.number = number
        self.since = connection.time()
        self.ended = False
        """Whether the request has arrived in full."""
        self.closed = False
        """Whether the answer was handed over in full, or the stream was reset."""
        self.window = connection.initial_window
        """Bytes that the client is ready to receive."""
        self.queue: deque[bytes | memoryview] = deque()
        """What the client is not ready to receive yet."""
        self.queued = self.cut = 0
        """Bytes of the queue, and those before them of its first part."""
        self.trailers = b""
        """The header block that follows the queue."""
        self._credit = STREAM_WINDOW
        self._taken = 0

    def opened(self) -> None:
        """Begin: the header fields have arrived."""

    def received(self, data: bytes) -> None:
        """Take a part of the request's body, and call `grant` once it needs no more memory."""

    def finished(self) -> None:
        """Answer: the request has arrived in full."""

    def drained(self) -> None:
        """Go on: all that was sent so far has left."""

    def overdue(self) -> None:
        """Go on or give up: the request has not arrived in full, and should have."""

    def lost(self) -> None:
        """Forget the request: the client or the connection ended the stream before its answer."""

    def receive(self, data: bytes, size: int) -> None:
        """Take a frame of DATA, which holds `size` bytes with its padding.

        Raises:
            StreamFault: the client has sent more than its window allows.
        """
        self._credit -= size
        if self._credit < 0:
            raise StreamFault(Code.FLOW_CONTROL_ERROR, "more was sent than the window allows")
        if data and not self.closed:
            self.received(data)

    def grant(self) -> None:
        """Let the client send again as much as it has sent, if that is most of its window."""
        if self._credit <= STREAM_WINDOW // 2 and not self.ended and not self.closed:
            self.connection.grant(self.number, STREAM_WINDOW - self._credit)
            self._credit = STREAM_WINDOW

    def send(self, *parts: bytes | memoryview, headers: bytes = b"", trailers: bytes = b"") -> None:
        """Send header blocks and data as soon as the client is ready; trailers end the answer."""
        if not self.closed:
            self.connection.send(self, parts, headers, trailers)

    def reset(self, code: Code) -> None:
        """End the stream without an answer, or without the rest of one."""
        if not self.closed:
            self.connection.reset(self, code)


class Owner(Protocol):
    """The server of a connection, as its connection sees it."""

    budget: Budget

    def time(self) -> float:
        """Return the time of the event loop."""

    def admit(self, connection: Any, /) -> bool:
        """Take a connection, or end it if there are too many."""

    def forget(self, connection: Any, /) -> None:
        """Drop a connection that has ended."""

    def read_head(self, fields: Fields, /) -> Any:
        """Make of header fields what a stream needs of them."""

    def make_stream(self, connection: Carrier, number: int, head: Any, /) -> Stream:
        """Make the stream of a request."""
