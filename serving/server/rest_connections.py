"""The connections of REST, as the kernel sees them: end those that are stuck, or idle in a crowd.

granian tells neither whether an answer has left nor how many connections there are, and it ends
none. Linux does tell, of every socket of this process; elsewhere nothing is done here. Sources:
tcp(7), TCP_INFO; tcp_info in linux/tcp.h.
"""

import contextlib
import os
import socket
import struct
import sys
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path

from serving.errors import Overloaded

MAX_UNSENT = 2**25
"""Bytes of answers in this process that clients do not take, before stuck ones are ended."""
MAX_HELD = 3 * 2**24
"""Bytes of answers in this process, before further ones are refused."""
SMALL = 2**16
"""Bytes of answers that are not refused, since few clients at a time keep many of them."""
STUCK_S = 1.0
"""Seconds without progress after which a client may be ended for the room of its answers."""
PROGRESS, PROGRESS_S = 2**14, 30.0
"""Bytes that a client takes at least of an answer, and within how many seconds."""
IDLE_MS = 1000
"""Milliseconds without a request, after which a connection gives way in a crowd."""
_DESCRIPTORS = Path("/proc/self/fd")
_OPEN = (1, 8)
"""TCP_ESTABLISHED and TCP_CLOSE_WAIT."""
_INFO = struct.Struct("=B43xI4xI64xQQ")
"""State, ms since data was sent and received, bytes acknowledged and received."""


@dataclass(slots=True)
class _Answers:
    """What is known of one connection."""

    handed: int = 0
    """Bytes of answers that granian was given."""
    last: int = 0
    """Bytes of the last of them, which stays in memory as a whole until all of it has left."""
    acked: int = 0
    """Bytes that had arrived at the last progress."""
    moved: float = 0.0
    """When that was."""
    unsent: int = 0
    """Bytes of answers that are in this process."""


@dataclass(frozen=True, slots=True)
class _Socket:
    """What the kernel knows of one connection."""

    descriptor: int
    client: str
    sent_ms: int
    received_ms: int
    acked: int
    received: int
    waiting: int
    """Bytes that the kernel holds for the client."""

    @property
    def idle(self) -> bool:
        """Whether it waits for a request; one whose request is not whole yet is not idle."""
        asked = self.received > 0 and self.sent_ms > self.received_ms
        return not self.waiting and not asked and self.received_ms >= IDLE_MS


class RestConnections:
    """Looks after the connections of one worker.

    Args:
        port: where they arrive.
        most: connections that granian holds; it accepts no more.
    """

    def __init__(self, port: int, most: int) -> None:
        self._port = port
        self._crowd = max(1, most - most // 16)
        self._keep = most // 2
        self._known: dict[str, _Answers] = {}
        self._unsent = self._handed = 0
        self._looked = float("-inf")
        self._crowded = False
        self.ended = 0
        """Connections that were ended."""

    def answered(self, client: str, size: int, now: float) -> None:
        """Count an answer that granian was given."""
        known = self._known.setdefault(client, _Answers(moved=now))
        known.handed, known.last = known.handed + size, size
        self._handed += size
        if self._unsent + self._handed > MAX_UNSENT and now - self._looked > STUCK_S / 10:
            self.look(now)

    def check(self, size: int, now: float) -> None:
        """Check that there is room for an answer of so many bytes; there always is for a small one.

        Raises:
            Overloaded: clients do not take what is there.
        """
        if size <= SMALL or self._unsent + self._handed + size <= MAX_HELD:
            return
        self.look(now)  # most of what was handed over may have left
        if self._unsent + size > MAX_HELD:
            raise Overloaded("too many bytes of answers are in memory: try again in a moment")

    def watch(self, now: float) -> None:
        """Look once a second, or in a crowd at each call."""
        if self._crowded or now - self._looked >= STUCK_S:
            self.look(now)

    def look(self, now: float) -> None:
        """Look at all connections, and end some."""
        self._looked, self._handed = now, 0
        if sys.platform != "linux":
            return
        sockets = {each.client: each for each in self._sockets()}
        self._known = {name: each for name, each in self._known.items() if name in sockets}
        self._end_stuck(sockets, now)
        self._crowded = len(sockets) >= self._crowd
        if self._crowded:
            idle = [each for each in sockets.values() if each.idle]
            idle.sort(key=lambda each: (each.received > 0, -each.received_ms))
            idle += self._unmoved(sockets, now)
            for each in idle[: len(sockets) - self._keep]:
                self._end(each)

    def _end_stuck(self, sockets: dict[str, _Socket], now: float) -> None:
        self._unsent = 0
        stuck = []
        for name, found in sockets.items():
            known = self._known.get(name)
            if not found.waiting and known is not None:
                known.moved, known.acked = now, found.acked
            elif found.waiting:
                known = self._known.setdefault(name, _Answers(acked=found.acked, moved=now))
                if found.acked - known.acked >= PROGRESS:
                    known.moved, known.acked = now, found.acked
                elif now - known.moved > PROGRESS_S:
                    self._end(found)
                    continue
                stuck.append((known, found))
            if known is not None:
                left = known.handed - found.acked - found.waiting
                known.unsent = max(left, known.last) if left > 0 else 0
                self._unsent += known.unsent
        stuck.sort(key=lambda each: (each[0].moved, -each[0].unsent))
        for known, found in stuck:
            if self._unsent <= MAX_UNSENT:
                break
            if known.unsent and now - known.moved >= STUCK_S:
                self._unsent -= known.unsent
                self._end(found)

    def _unmoved(self, sockets: dict[str, _Socket], now: float) -> list[_Socket]:
        """Return those whose clients have taken nothing of their answers for a while."""
        found = [each for each in sockets.values() if each.waiting]
        return [one for one in found if now - self._known[one.client].moved >= STUCK_S]

    def _sockets(self) -> Iterator[_Socket]:
        for name in os.listdir(_DESCRIPTORS):
            with contextlib.suppress(OSError, struct.error):
                if found := self._read(int(name)):
                    yield found

    def _read(self, descriptor: int) -> _Socket | None:
        one = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=descriptor)
        try:
            address = one.getsockname()  # bytes or text for sockets that are not of TCP
            if not isinstance(address, tuple) or address[1] != self._port:
                return None
            content = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            state, sent_ms, received_ms, acked, received = _INFO.unpack_from(content)
            if state not in _OPEN:
                return None
            (waiting,) = struct.unpack("i", ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))
            return _Socket(descriptor, _name(one), sent_ms, received_ms, acked, received, waiting)
        finally:
            one.detach()

    def _end(self, found: _Socket) -> None:
        """Shut a connection down; granian's threads may have closed it, and opened another."""
        with contextlib.suppress(OSError):
            copy = socket.socket(fileno=os.dup(found.descriptor))
            with copy:
                if _name(copy) == found.client:
                    copy.shutdown(socket.SHUT_RDWR)
                    self.ended += 1


def _name(one: socket.socket) -> str:
    host, port = one.getpeername()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
