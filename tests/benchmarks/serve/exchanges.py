"""The client's side of one connection of HTTP/1.1 or gRPC, as bytes, without sockets.

It has what a load needs: one request at a time, and answers of a known length. A client library
would take more time than the servers that it measures.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from tests.benchmarks.serve.wires import Request

REFUSED_GRPC = 429
"""The status of a gRPC answer without a message; its grpc-status would need a HPACK decoder."""
_DATA, _HEADERS, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_FRAME = 16384


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, bytes of the head (HTTP/1.1 only), and body."""

    status: int
    head: bytes
    body: bytes

    @property
    def headers(self) -> Mapping[str, str]:
        """Return the headers, with names in lower case."""
        lines = [line.partition(": ") for line in self.head.decode("latin-1").split("\r\n")[1:]]
        return {name.lower(): value for name, _, value in lines}


class Exchange(Protocol):
    """The client's side of one connection."""

    opening: bytes
    """Return the bytes to send first."""

    def request(self) -> bytes:
        """Return the next request, after the answer to the last one."""

    def feed(self, data: bytes) -> tuple[bytes, Answer | None]:
        """Read bytes; return the bytes to send at once, and the answer when it is complete."""


class Http1:
    """HTTP/1.1 with a connection that is kept open."""

    opening = b""

    def __init__(self, request: Request) -> None:
        lines = [f"POST {request.path} HTTP/1.1", "host: 127.0.0.1"]
        lines += [f"{name}: {value}" for name, value in request.headers.items()]
        lines += [f"content-length: {len(request.body)}", "", ""]
        self._request = "\r\n".join(lines).encode() + request.body
        self._received = b""
        self._end = 0

    def request(self) -> bytes:
        return self._request

    def feed(self, data: bytes) -> tuple[bytes, Answer | None]:
        received = self._received = self._received + data if self._received else data
        if not self._end:
            head = received.find(b"\r\n\r\n")
            if head < 0:
                return b"", None
            at = received[:head].lower().find(b"\r\ncontent-length:")
            if at < 0:
                raise ValueError(f"an answer without a length: {received[:head]!r}")
            self._end = head + 4 + int(received[at + 17 : received.index(b"\r", at + 2)])
        if len(received) < self._end:
            return b"", None
        head = received.index(b"\r\n\r\n")
        answer = Answer(int(received[9:12]), received[:head], received[head + 4 : self._end])
        self._received, self._end = b"", 0
        return b"", answer


class Grpc:
    """gRPC over HTTP/2 without TLS; requests stay below the initial window of 64 KB."""

    opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

    def __init__(self, request: Request) -> None:
        if len(request.body) >= 2**16 - 1:
            raise ValueError("a request over 64 KB would have to wait for the server's window")
        # the largest windows: answers are never held back, and windows need not be counted here
        settings = (4).to_bytes(2, "big") + (2**31 - 1).to_bytes(4, "big")
        window = (2**31 - 2**16).to_bytes(4, "big")
        self.opening += _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW, 0, 0, window)
        # HPACK of the static table and literals only: the same bytes for every request
        block = b"\x83\x86\x04" + _text(request.path) + b"\x01" + _text("127.0.0.1")
        for name, value in request.headers.items():
            block += b"\0" + _text(name) + _text(value)
        self._block, self._body = block, request.body
        self._stream = -1
        self._received = b""
        self._message: list[bytes] = []

    def request(self) -> bytes:
        self._stream += 2
        self._message = []
        frames = [_frame(_HEADERS, _END_HEADERS, self._stream, self._block)]
        for at in range(0, len(self._body), _FRAME):
            last = _END_STREAM if at + _FRAME >= len(self._body) else 0
            frames.append(_frame(_DATA, last, self._stream, self._body[at : at + _FRAME]))
        return b"".join(frames)

    def feed(self, data: bytes) -> tuple[bytes, Answer | None]:
        # each byte is copied once: a client that takes long would be part of the latency
        received = self._received + data if self._received else data
        back, answer = b"", None
        at, end = 0, len(received)
        while at + 9 <= end:
            stop = at + 9 + int.from_bytes(received[at : at + 3], "big")
            if stop > end:
                break
            kind, flags = received[at + 3], received[at + 4]
            stream = int.from_bytes(received[at + 5 : at + 9], "big")
            payload, at = received[at + 9 : stop], stop
            if kind in (_SETTINGS, _PING) and not flags & _ACK:
                back += _frame(kind, _ACK, 0, payload if kind == _PING else b"")
            elif kind == _GOAWAY:
                raise ConnectionResetError("the server sent GOAWAY")
            elif stream == self._stream and kind in (_DATA, _HEADERS):
                if kind == _DATA:
                    self._message.append(payload)
                if flags & _END_STREAM:
                    status = 200 if self._message else REFUSED_GRPC
                    answer = Answer(status, b"", b"".join(self._message))
        self._received = received[at:]
        return back, answer


def open_exchange(request: Request, *, grpc: bool) -> Exchange:
    """Return the client's side of a new connection."""
    return Grpc(request) if grpc else Http1(request)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return (
        len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload
    )


def _text(value: str) -> bytes:
    return bytes((len(value),)) + value.encode()
