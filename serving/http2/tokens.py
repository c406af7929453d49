"""What a connection pays for frames that cost the server work, and its client nothing."""

from serving.http2.frames import Code, ConnectionFault
from serving.http2.limits import TOKENS, TOKENS_OF_A_FRAME

_MOST = 10 * TOKENS


class Tokens:
    """The tokens of one connection.

    Args:
        now: the time of the event loop.
    """

    def __init__(self, now: float) -> None:
        self._left = TOKENS
        self._at, self._sent = now, 0

    def spend(self, tokens: int) -> bool:
        """Spend some; return whether there were as many."""
        self._left -= tokens
        return self._left >= 0

    def earn(self, now: float, sent: int) -> None:
        """Earn those of the time since the last call, and of what was sent in it.

        Args:
            now: the time of the event loop.
            sent: frames of answers that the connection has sent since it was opened.

        Raises:
            ConnectionFault: they do not pay for what was spent.
        """
        earned = int((now - self._at) * TOKENS) + (sent - self._sent) * TOKENS_OF_A_FRAME
        self._left += min(earned, _MOST)
        self._at, self._sent = now, sent
        if self._left < 0:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "too many frames without use")
