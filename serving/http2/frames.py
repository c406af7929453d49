"""The frames of HTTP/2: their numbers, their nine bytes of header, and what is wrong with one.

Source: RFC 9113, sections 4, 6 and 7.
"""

from enum import IntEnum
from struct import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_SIZE = 9
FRAME_SIZE = 2**14
"""Bytes of the largest frame that is read: the least that the protocol allows to announce."""
LARGEST_WINDOW = 2**31 - 1
NEVER = 2**31 - 1
"""The largest number of a stream."""

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = range(5)
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(5, 10)

END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 1, 1, 4, 8, 32

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_STREAMS, INITIAL_WINDOW, MAX_FRAME, MAX_HEADER_LIST = range(
    1, 7
)

read_header = Struct(">HBBBL").unpack_from
"""Size in two parts, type, flags, stream."""
_pack_header = Struct(">HBBBL").pack
NUMBER = Struct(">L")
SETTING = Struct(">HL")


class Code(IntEnum):
    """Why a stream or a connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11


class ConnectionFault(Exception):
    """The peer broke a rule that ends its connection."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


class StreamFault(Exception):
    """The peer broke a rule that ends one stream."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


def frame_header(kind: int, flags: int, stream: int, size: int) -> bytes:
    """Write the header of a frame."""
    return _pack_header(size >> 8, size & 255, kind, flags, stream)


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Write a frame."""
    return frame_header(kind, flags, stream, len(payload)) + payload


def settings_frame(settings: dict[int, int]) -> bytes:
    """Write a frame of settings."""
    return frame(SETTINGS, payload=b"".join(SETTING.pack(*item) for item in settings.items()))


def number_frame(kind: int, stream: int, number: int) -> bytes:
    """Write a frame of one number: the increment of a window, or the code of a reset."""
    return frame(kind, 0, stream, NUMBER.pack(number))


def goaway_frame(last: int, code: Code, message: str = "") -> bytes:
    """Announce that no stream after `last` is answered."""
    return frame(GOAWAY, payload=NUMBER.pack(last) + NUMBER.pack(code) + message.encode())


def strip_padding(flags: int, payload: bytes) -> bytes:
    """Return the payload of DATA or HEADERS without its padding and the fields of priority.

    Raises:
        ConnectionFault: it is shorter than they are.
    """
    start, stop = 0, len(payload)
    if flags & PADDED:
        start, stop = 1, stop - (payload[0] if payload else 0)
    if flags & WITH_PRIORITY:
        start += 5
    if start > stop:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "the padding is longer than the frame")
    return payload[start:stop]


_SIZES = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
_OF_STREAMS = frozenset((DATA, HEADERS, PRIORITY, RST_STREAM, CONTINUATION))
_OF_CONNECTIONS = frozenset((SETTINGS, PING, GOAWAY))


def check_frame(kind: int, flags: int, stream: int, size: int) -> None:
    """Check what each type prescribes of the stream and the size of its frames.

    Raises:
        ConnectionFault: they are others.
    """
    if (kind in _OF_STREAMS and not stream) or (kind in _OF_CONNECTIONS and stream):
        raise ConnectionFault(Code.PROTOCOL_ERROR, f"a frame of type {kind} on stream {stream}")
    right = size == _SIZES.get(kind, size)
    if kind == SETTINGS:
        right = size == 0 if flags & ACK else size % SETTING.size == 0
    if kind == GOAWAY:
        right = size >= 8
    if not right:
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"a frame of type {kind} with {size} bytes")


def read_settings(payload: bytes) -> dict[int, int]:
    """Read settings; the last of a kind counts.

    Raises:
        ConnectionFault: one has a value that it may not have.
    """
    settings: dict[int, int] = {}
    for key, value in SETTING.iter_unpack(payload):
        if key == ENABLE_PUSH and value > 1:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"ENABLE_PUSH is {value}")
        if key == MAX_FRAME and not FRAME_SIZE <= value < 2**24:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"MAX_FRAME_SIZE is {value}")
        if key == INITIAL_WINDOW and value > LARGEST_WINDOW:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE is {value}")
        settings[key] = value
    return settings
