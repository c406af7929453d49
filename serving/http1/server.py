"""Answer requests of HTTP/1.1 on a port, with a bound on the answers that clients do not take."""

from collections.abc import Callable

from serving.errors import Overloaded
from serving.http1.connection import Connection
from serving.http1.exchange import Exchange
from serving.http1.limits import LOOK_S, MAX_HELD, MAX_UNSENT, SMALL
from serving.transport.listener import Listener


class Http1Server(Listener[Connection]):
    """Serves requests on the event loop that starts it.

    Args:
        handle: answers a request, at once or by a task that it puts into the exchange.
        refuse: answers a request that breaks the protocol, with this status and reason.
        max_connections: connections at a time.
        head_s: seconds within which the head of a request must arrive.
    """

    def __init__(
        self,
        handle: Callable[[Exchange], None],
        refuse: Callable[[Exchange, int, str], None],
        max_connections: int,
        head_s: float = 30.0,
    ) -> None:
        super().__init__(lambda: Connection(self), "http/1.1", max_connections)
        self.handle = handle
        self.refuse = refuse
        self.head_s = head_s
        self._held = self._handed = 0
        """Bytes of answers in memory at the last look, and those since then."""
        self._looked = float("-inf")

    def sent(self, size: int) -> None:
        """Count the bytes of an answer."""
        self._handed += size
        if self._held + self._handed > MAX_UNSENT and self.time() - self._looked > LOOK_S:
            self.check()

    def check_room(self, size: int) -> None:
        """Check that there is room for an answer of so many bytes; there always is for a small one.

        Raises:
            Overloaded: clients do not take what is there.
        """
        if size <= SMALL or self._held + self._handed + size <= MAX_HELD:
            return
        self.check()  # most of what was handed over may have left
        if self._held + size > MAX_HELD:
            raise Overloaded("too many bytes of answers are in memory: try again in a moment")

    def check(self) -> None:
        """Look at all connections; if they hold too much, end those that are stuck."""
        super().check()
        now = self._looked = self.time()
        self._handed, self._held = 0, sum(each.held for each in self.connections)
        if self._held <= MAX_UNSENT:
            return
        stuck = [each for each in self.connections if each.progress.stands(now)]
        for connection in sorted(stuck, key=lambda each: (each.progress.at, -each.held)):
            if self._held <= MAX_UNSENT:
                return
            self._held -= connection.held
            connection.abort()
