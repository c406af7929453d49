"""Let inferences begin in turns: accepted ones get their steps, and the newest come first.

An event loop reads whatever has arrived before it goes on with what it has. Of a thousand requests
at once, most are refused, and all of that would come before the next step of those that were
accepted; an answer takes several steps. So a turn of the loop begins no more than there is room
for, and refuses only a few. Those that wait longest are refused, and those that have just come are
accepted: then no accepted request has waited behind all the refused ones (adaptive LIFO: Maurer,
Fail at Scale, ACM Queue 13(8), 2015).
"""

import asyncio
from collections import deque
from collections.abc import Callable

TURN = 64
"""Requests that begin in one turn at most; a larger batch would gain little."""
REFUSALS = 16
"""Requests that are refused in one turn."""

Begin = Callable[[bool], None]
"""Begins a request, or refuses it if told to."""


class Turns:
    """The turns of one transport of a worker.

    Args:
        room: returns how many more requests the service would accept.
    """

    def __init__(self, room: Callable[[], int]) -> None:
        self._room = room
        self._left = 0
        self._waiting: deque[Begin] = deque()
        self._scheduled = False

    def take(self, loop: asyncio.AbstractEventLoop, begin: Begin) -> None:
        """Begin now, or in a later turn."""
        if not self._scheduled:
            self._scheduled = True
            self._left = min(TURN, self._room())
            loop.call_soon(self._turn, loop)
        if self._left > 0 and not self._waiting:
            self._left -= 1
            begin(False)
        else:
            self._waiting.append(begin)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        waiting, room = self._waiting, max(0, self._room())
        most = min(TURN, room, len(waiting))
        excess = len(waiting) - room
        if excess > 0:
            chosen = [waiting.pop() for _ in range(most)][::-1]
        else:
            chosen = [waiting.popleft() for _ in range(most)]
        refused = [waiting.popleft() for _ in range(min(REFUSALS, excess))]
        self._left = min(TURN, room) - most
        self._scheduled = bool(waiting)
        if waiting:
            loop.call_soon(self._turn, loop)
        for begin in chosen:
            begin(False)
        for begin in refused:
            begin(True)
