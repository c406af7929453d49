"""Serve streams of HTTP/2 on a port."""

from collections.abc import Callable
from typing import Generic, TypeVar

from serving.http2.budget import Budget
from serving.http2.connection import Connection
from serving.http2.headers import Fields
from serving.http2.stream import Carrier, Stream
from serving.transport.listener import Listener

Head = TypeVar("Head")


class Http2Server(Listener[Connection], Generic[Head]):
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
        super().__init__(lambda: Connection(self), "h2", max_connections)
        self.read_head = read_head
        self.make_stream = make_stream
        self.budget = budget
