"""Send answers within the windows of the client, without copies of what is large.

Source: RFC 9113, section 5.2.
"""

import asyncio
from collections.abc import Iterable

from serving.http2.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_SIZE,
    HEADERS,
    LARGEST_WINDOW,
    Code,
    ConnectionFault,
    StreamFault,
    frame,
    frame_header,
)
from serving.http2.limits import PAYING
from serving.http2.stream import Parts, Stream

TURN = 2**18
"""Bytes that are handed to the transport before it is asked whether it takes more."""


class Sender:
    """What one connection sends, in the order of its streams.

    Args:
        transport: where frames are written.
    """

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        self._window = 65_535
        self.initial_window = 65_535
        self.frame_size = FRAME_SIZE
        self.paused = False
        """Whether the transport holds more than it likes to."""
        self.sent = 0
        """Bytes of DATA that were handed to the transport."""
        self.frames = 0
        """Frames that carried it, or ended an answer, other than small ones that a window cut."""
        self.unsent = 0
        """Bytes of DATA that were not handed over."""
        self.cut = 0
        """Bytes of DATA that were, but are in memory since the rest of their part is."""
        self._waiting: dict[int, Stream] = {}

    def send(self, stream: Stream, parts: Parts, headers: bytes, trailers: bytes) -> bool:
        """Send blocks and data of a stream, or queue them; return whether all was sent."""
        size = sum(map(len, parts))
        number = stream.number
        if stream.queued or self.paused or size > min(self._window, stream.window):
            return self._queue(stream, parts, size, headers, trailers)
        if size > self.frame_size:
            return self._queue(stream, parts, size, headers, trailers)
        self._window -= size
        stream.window -= size
        self.sent += size
        self.frames += 1
        out: list[bytes | memoryview] = (
            [frame(HEADERS, END_HEADERS, number, headers)] if headers else []
        )
        if size:
            out += (frame_header(DATA, 0, number, size), *parts)
        if trailers:
            out.append(frame(HEADERS, END_HEADERS | END_STREAM, number, trailers))
        self._transport.write(b"".join(out))
        return True

    def _queue(
        self, stream: Stream, parts: Parts, size: int, headers: bytes, trailers: bytes
    ) -> bool:
        if headers:
            self._transport.write(frame(HEADERS, END_HEADERS, stream.number, headers))
        stream.queue.extend(part for part in parts if part)
        stream.queued += size
        stream.trailers = trailers
        self.unsent += size
        self._waiting.pop(stream.number, None)  # others go first if it sends again and again
        self._waiting[stream.number] = stream
        return bool(self._send_queued([stream]))

    def resume(self, stream: Stream | None = None) -> list[Stream]:
        """Send what has become possible, of one stream or of all; return those that sent all."""
        if stream is not None:
            return self._send_queued([stream]) if stream.number in self._waiting else []
        return self._send_queued([*self._waiting.values()])

    def _send_queued(self, streams: list[Stream]) -> list[Stream]:
        done: list[Stream] = []
        while not self.paused:
            out: list[bytes | memoryview] = []
            room = TURN
            for stream in streams:
                if stream.number not in self._waiting:
                    continue
                room -= self._take(stream, room, out)
                if not stream.queued:
                    del self._waiting[stream.number]
                    done.append(stream)
                    if stream.trailers:
                        flags = END_HEADERS | END_STREAM
                        out.append(frame(HEADERS, flags, stream.number, stream.trailers))
                if room <= 0 or self._window <= 0:
                    break
            if not out:
                break
            self._transport.writelines(out)
        return done

    def _take(self, stream: Stream, room: int, out: list[bytes | memoryview]) -> int:
        """Take as much of a stream as the client is ready for; return how many bytes."""
        queue = stream.queue
        taken = 0
        while stream.queued and taken < room:
            size = min(self._window, stream.window, self.frame_size, stream.queued)
            if size <= 0:
                break
            out.append(frame_header(DATA, 0, stream.number, size))
            left = size
            while left:
                part = queue[0]
                if len(part) <= left:
                    left -= len(part)
                    out.append(queue.popleft())
                    self.cut -= stream.cut
                    stream.cut = 0
                else:
                    part = memoryview(part)
                    out.append(part[:left])
                    queue[0] = part[left:]
                    self.cut += left
                    stream.cut += left
                    left = 0
            self._window -= size
            stream.window -= size
            stream.queued -= size
            taken += size
            if size >= PAYING or not stream.queued:  # else the client asked for crumbs
                self.frames += 1
        self.unsent -= taken
        self.sent += taken
        return taken

    def forget(self, stream: Stream) -> None:
        """Drop what a stream has not sent."""
        self._waiting.pop(stream.number, None)
        self.unsent -= stream.queued
        self.cut -= stream.cut
        stream.cut = 0
        stream.queue.clear()
        stream.queued = 0

    def enlarge(self, increment: int) -> list[Stream]:
        """Enlarge the window of the connection; return the streams that sent all thereby.

        Raises:
            ConnectionFault: it is too large then, or does not grow.
        """
        if not increment:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a window grows by at least 1")
        was_empty = self._window <= 0
        self._window += increment
        if self._window > LARGEST_WINDOW:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "the window is too large")
        return self.resume() if was_empty else []

    def enlarge_stream(self, stream: Stream, increment: int) -> list[Stream]:
        """Do the same for the window of a stream.

        Raises:
            StreamFault: it is too large then, or does not grow.
        """
        if not increment:
            raise StreamFault(Code.PROTOCOL_ERROR, "a window grows by at least 1")
        stream.window += increment
        if stream.window > LARGEST_WINDOW:
            raise StreamFault(Code.FLOW_CONTROL_ERROR, "the window is too large")
        return self.resume(stream)

    def set_window(self, size: int, streams: Iterable[Stream]) -> list[Stream]:
        """Change the window that streams begin with, and as much those of the streams there are.

        Raises:
            ConnectionFault: one of them is too large then.
        """
        change, self.initial_window = size - self.initial_window, size
        for stream in streams:
            stream.window += change
            if stream.window > LARGEST_WINDOW:
                raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "the window is too large")
        return self.resume() if change > 0 else []
