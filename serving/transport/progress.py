"""Whether a client takes its answers."""

from serving.transport.limits import IDLE_S, PROGRESS, PROGRESS_S


class Progress:
    """What a client has taken of its answers, and when.

    Args:
        now: the time of the event loop.
    """

    def __init__(self, now: float) -> None:
        self._left = 0
        self.at = now
        """When it last took some, or had taken all."""

    def look(self, left: int, waiting: bool, now: float) -> bool:
        """Return whether the client goes on, or may be given up.

        Args:
            left: bytes that have left, since the connection was opened.
            waiting: whether more are ready to leave.
            now: the time of the event loop.
        """
        if not waiting or left - self._left >= PROGRESS:
            self._left, self.at = left, now
        return now - self.at <= PROGRESS_S

    def stands(self, now: float) -> bool:
        """Whether it has taken nothing for a moment."""
        return now - self.at >= IDLE_S
