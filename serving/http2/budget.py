"""What all connections of a server may hold in memory: parts of requests, and unread answers."""

from typing import Protocol


class Holder(Protocol):
    """A connection, which can be ended."""

    def abort(self) -> None:
        """End it at once."""


class Budget:
    """Counts bytes; ends the connection that has been stuck for longest if there are too many.

    Args:
        max_received: bytes of requests that arrive, or are not answered yet.
        max_unsent: bytes of answers that clients do not take.
    """

    def __init__(self, max_received: int, max_unsent: int) -> None:
        self.max_received = max_received
        self.received = 0
        self._max_unsent = max_unsent
        self.unsent = 0
        self._stuck: dict[Holder, int] = {}
        """Bytes of each connection, since when it is stuck."""

    def receive(self, size: int) -> bool:
        """Count bytes of a request that arrived; return whether there is room for them."""
        self.received += size
        return self.received <= self.max_received

    def set_unsent(self, holder: Holder, size: int) -> None:
        """Count the bytes that a connection could not send; 0 if it has sent all."""
        before = self._stuck.pop(holder, 0) if not size else self._stuck.get(holder, 0)
        self.unsent += size - before
        if not size:
            return
        self._stuck[holder] = size  # a key that is there keeps its place
        while self.unsent > self._max_unsent:
            next(iter(self._stuck)).abort()  # which takes it out
