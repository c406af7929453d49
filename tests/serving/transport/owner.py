"""What the servers of the tests of HTTP/1.1 and of HTTP/2 have in common."""

from typing import Any


class Owner:
    """Takes every connection, and has the time that a test sets."""

    def __init__(self) -> None:
        self.connections: dict[Any, None] = {}
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def admit(self, connection: Any) -> bool:
        self.connections[connection] = None
        return True

    def forget(self, connection: Any) -> None:
        self.connections.pop(connection, None)
