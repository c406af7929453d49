"""Speak HTTP/2 to a server by `h2`, so that a test can send what clients of gRPC never do."""

import socket
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)

from tests.serving.running import Running

INFER = "/inference.GRPCInferenceService/ModelInfer"
Headers = Sequence[tuple[str, str]]


class Http2Client:
    """A connection to the port of gRPC."""

    def __init__(self, server: Running) -> None:
        host, _, port = server.grpc.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), 20)
        self.h2 = H2Connection(H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(2**24)
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def open(
        self,
        body: bytes = b"",
        more: Headers = (),
        *,
        path: str = INFER,
        method: str = "POST",
        content_type: str = "application/grpc",
        end: bool = True,
    ) -> int:
        """Send a request, and return the number of its stream."""
        stream: int = self.h2.get_next_available_stream_id()
        headers = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "a")]
        self.h2.send_headers(stream, [*headers, ("content-type", content_type), *more])
        self.h2.send_data(stream, body, end_stream=end)
        self.flush()
        return stream

    def events(self) -> list[Event]:
        """Wait for more; nothing if the server has closed the connection."""
        received = self.socket.recv(65_536)
        found: list[Event] = self.h2.receive_data(received) if received else []
        for event in found:
            if isinstance(event, DataReceived):
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        if received:
            self.flush()
        return found

    def answer(self, stream: int) -> tuple[dict[str, str], bytes]:
        """Return all header fields and trailers of an answer, and its body."""
        fields: dict[str, str] = {}
        body = b""
        while True:
            events = self.events()
            assert events or self.socket.fileno() >= 0, "the server has closed the connection"
            for event in events:
                if isinstance(event, ConnectionTerminated):
                    raise AssertionError(event)
                if getattr(event, "stream_id", 0) != stream:
                    continue
                if isinstance(event, ResponseReceived | TrailersReceived):
                    fields |= {str(name): str(value) for name, value in event.headers}
                elif isinstance(event, DataReceived):
                    body += event.data
                elif isinstance(event, StreamReset):
                    raise AssertionError(event)
                elif isinstance(event, StreamEnded):
                    return fields, body
