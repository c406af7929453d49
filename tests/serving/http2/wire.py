"""A connection without a socket: what a client sends goes in, what the server writes comes out."""

from collections.abc import Callable
from typing import Any, cast

from serving.http2 import frames
from serving.http2.budget import Budget
from serving.http2.connection import Connection
from serving.http2.frames import Code
from serving.http2.headers import Fields, write_block
from serving.http2.stream import Carrier, Stream
from tests.serving.transport.owner import Owner

MIB = 2**20
REQUEST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/a/B"),
    (":authority", "test"),
    ("content-type", "application/grpc"),
]
BLOCK = write_block([(name.encode(), value.encode()) for name, value in REQUEST])
ANSWER = write_block([(b":status", b"200")])
TRAILERS = write_block([(b"grpc-status", b"0")])
GREETING = frames.PREFACE + frames.settings_frame({})


class Transport:
    """Keeps what is written; `full` makes it refuse more, as a socket that nobody reads."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = self.aborted = False
        self.buffered = 0
        self.on_write: Callable[[], None] = lambda: None

    def write(self, data: bytes) -> None:
        self.written.append(bytes(data))
        self.on_write()

    def writelines(self, parts: list[bytes]) -> None:
        self.write(b"".join(parts))

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


class Recorded(Stream):
    """Keeps what arrives, and answers what `respond` says when the request has ended."""

    def __init__(self, server: "Server", connection: Carrier, number: int, head: Fields) -> None:
        super().__init__(connection, number)
        self.server, self.head = server, head
        self.body = b""
        self.was_lost = False
        server.streams.append(self)

    def received(self, data: bytes) -> None:
        self.body += data
        self.grant()

    def finished(self) -> None:
        self.server.respond(self)

    def lost(self) -> None:
        self.was_lost = True


def echo(stream: Recorded) -> None:
    stream.send(stream.body, headers=ANSWER, trailers=TRAILERS)


class Server(Owner):
    """Makes the streams of connections, and one connection."""

    def __init__(self, respond: Callable[[Recorded], None] = echo, max_unsent: int = 2**27) -> None:
        super().__init__()
        self.budget = Budget(2**27, max_unsent)
        self.streams: list[Recorded] = []
        self.respond = respond

    def read_head(self, fields: Fields) -> Fields:
        return fields

    def make_stream(self, connection: Carrier, number: int, head: Fields) -> Recorded:
        return Recorded(self, connection, number, head)

    def connect(self) -> "Wire":
        return Wire(self)


class Wire:
    """One connection to a server, from the side of its client."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.transport = Transport()
        self.connection = Connection(server)
        self.connection.connection_made(cast(Any, self.transport))

    def send(self, *parts: bytes) -> None:
        self.connection.data_received(b"".join(parts))

    def take(self) -> bytes:
        """Return what the server has written since the last time."""
        written, self.transport.written = b"".join(self.transport.written), []
        return written

    def frames(self) -> list[tuple[int, int, int, bytes]]:
        """Return type, flags, stream and payload of the frames that it has written."""
        return split(self.take())

    def failed(self) -> Code | None:
        """Return the code of the GOAWAY that it has written, if there is one."""
        codes = [payload[4:8] for kind, _, _, payload in self.frames() if kind == frames.GOAWAY]
        return Code(int.from_bytes(codes[-1])) if codes else None

    def resets(self) -> list[tuple[int, Code]]:
        """Return the streams that it has reset, and why."""
        return [
            (stream, Code(int.from_bytes(payload)))
            for kind, _, stream, payload in self.frames()
            if kind == frames.RST_STREAM
        ]


def split(data: bytes) -> list[tuple[int, int, int, bytes]]:
    found, at = [], 0
    while at < len(data):
        high, low, kind, flags, number = frames.read_header(data, at)
        stop = at + frames.HEADER_SIZE + (high << 8 | low)
        found.append((kind, flags, number, data[at + frames.HEADER_SIZE : stop]))
        at = stop
    return found


def headers(number: int, block: bytes = BLOCK, *, end: bool = False, more: int = 0) -> bytes:
    flags = frames.END_HEADERS | (frames.END_STREAM if end else 0) | more
    return frames.frame(frames.HEADERS, flags, number, block)


def data(number: int, content: bytes, *, end: bool = False) -> bytes:
    return frames.frame(frames.DATA, frames.END_STREAM if end else 0, number, content)
