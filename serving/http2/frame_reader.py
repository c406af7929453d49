"""Cut what arrives on a connection into frames; header blocks are put together.

Source: RFC 9113, sections 3.4, 4 and 6.10.
"""

from collections.abc import Callable

from serving.http2.frames import (
    CONTINUATION,
    END_HEADERS,
    FRAME_SIZE,
    HEADER_SIZE,
    HEADERS,
    NEVER,
    PADDED,
    PREFACE,
    SETTINGS,
    WITH_PRIORITY,
    Code,
    ConnectionFault,
    check_frame,
    read_header,
    strip_padding,
)
from serving.http2.limits import LIST_SIZE

Take = Callable[[int, int, int, bytes], bool]
"""Takes type, flags, stream and payload of a frame; returns whether to go on."""


class FrameReader:
    """Reads the frames of one connection, wherever their bytes were cut on the way.

    Args:
        take: is called with each frame; of HEADERS with the whole block, without padding.
    """

    def __init__(self, take: Take) -> None:
        self.greeted = False
        """Whether the client has sent the preface and its settings."""
        self._take = take
        self._rest = b""
        self._skip = len(PREFACE)
        self._stream = self._flags = 0
        self._block: bytearray | None = None
        """The start of a header block, of which CONTINUATION frames are missing."""

    def feed(self, data: bytes) -> None:
        """Read all whole frames, and keep the rest.

        Raises:
            ConnectionFault: this is not HTTP/2, or a frame may not be where it is.
        """
        if self._rest:
            data = self._rest + data
        at, size = self._skip, len(data)
        if at:
            if not PREFACE.startswith(data[:at]):
                raise ConnectionFault(Code.PROTOCOL_ERROR, "this server speaks gRPC over HTTP/2")
            if size < at:
                self._rest = data
                return
            self._skip = 0
        while size - at >= HEADER_SIZE:
            high, low, kind, flags, number = read_header(data, at)
            start = at + HEADER_SIZE
            stop = start + (high << 8 | low)
            if stop - start > FRAME_SIZE:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, "the frame is too large")
            if stop > size:
                break
            at = stop
            if not self._read(kind, flags, number & NEVER, data[start:stop]):
                return
        self._rest = data[at:]

    def _read(self, kind: int, flags: int, number: int, payload: bytes) -> bool:
        if not self.greeted:
            if kind != SETTINGS or flags:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "the first frame must be SETTINGS")
            self.greeted = True
        if kind:  # DATA is checked where its stream is looked for
            check_frame(kind, flags, number, len(payload))
        if self._block is not None or kind == CONTINUATION:
            return self._continue(kind, flags, number, payload)
        if kind == HEADERS:
            if flags & (PADDED | WITH_PRIORITY):
                payload = strip_padding(flags, payload)
            if not flags & END_HEADERS:
                self._block, self._stream, self._flags = bytearray(payload), number, flags
                return True
        return self._take(kind, flags, number, payload)

    def _continue(self, kind: int, flags: int, number: int, payload: bytes) -> bool:
        block = self._block
        if block is None or kind != CONTINUATION or number != self._stream:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a header block is whole, and goes on alone")
        block += payload
        if len(block) > 2 * LIST_SIZE:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "the header block is too long")
        if not self._take(CONTINUATION, flags, number, b""):
            return False
        if not flags & END_HEADERS:
            return True
        self._block = None
        return self._take(HEADERS, self._flags, number, bytes(block))
