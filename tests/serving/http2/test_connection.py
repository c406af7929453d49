"""One connection and its rules, spoken to with frames and with an independent client, `h2`."""

from random import Random

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded, TrailersReceived
from h2.settings import SettingCodes
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.http2 import frames, limits
from serving.http2.frames import Code
from serving.http2.headers import write_block
from tests.serving.http2.wire import (
    ANSWER,
    BLOCK,
    GREETING,
    MIB,
    REQUEST,
    TRAILERS,
    Server,
    Wire,
    data,
    headers,
)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(0, 40_000), min_size=1, max_size=4),
    st.sampled_from([1000, 65_535, MIB]),
    st.sampled_from([2**14, 2**15, 2**24 - 1]),
    st.randoms(use_true_random=False),
)
def test_an_independent_client_gets_its_bytes_back(
    sizes: list[int], window: int, frame: int, random: Random
) -> None:
    """Whatever the windows and frames of the client, and wherever its bytes are cut."""
    wire = Server().connect()
    client = H2Connection(H2Configuration(header_encoding=None))
    client.initiate_connection()
    client.update_settings(
        {SettingCodes.INITIAL_WINDOW_SIZE: window, SettingCodes.MAX_FRAME_SIZE: frame}
    )
    wire.send(client.data_to_send())
    client.receive_data(wire.take())  # by itself: it minds its own settings from the next call on
    bodies = {}
    for size in sizes:
        stream = client.get_next_available_stream_id()
        bodies[stream] = body = random.randbytes(size)
        client.send_headers(stream, REQUEST)
        for start in range(0, size, 10_000):
            client.send_data(
                stream, body[start : start + 10_000], pad_length=random.choice([None, 7])
            )
        client.send_data(stream, b"", end_stream=True)
    found = {stream: b"" for stream in bodies}
    ended: set[int] = set()
    while len(ended) < len(bodies):
        sent, received = client.data_to_send(), wire.take()
        assert sent or received, "nothing moves"
        cut = random.randint(0, len(sent))
        for part in (sent[:cut], sent[cut:]):
            wire.send(part)
        for event in client.receive_data(received):
            if isinstance(event, DataReceived):
                found[event.stream_id] += event.data
                client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if isinstance(event, StreamEnded):
                ended.add(event.stream_id)
            if isinstance(event, TrailersReceived):
                assert [*event.headers] == [(b"grpc-status", b"0")]
    assert found == bodies
    assert not wire.connection.streams
    assert wire.connection.sender.unsent == 0


def test_a_small_answer_is_one_write(wire: Wire) -> None:
    wire.send(headers(1), data(1, b"hello", end=True))
    assert len(wire.transport.written) == 1
    assert wire.frames() == [
        (frames.HEADERS, 4, 1, ANSWER),
        (frames.DATA, 0, 1, b"hello"),
        (frames.HEADERS, 5, 1, TRAILERS),
    ]


def test_unknown_frames_and_priorities_change_nothing(wire: Wire) -> None:
    wire.send(
        frames.frame(250, 255, 1, b"?"),
        frames.frame(frames.PRIORITY, stream=3, payload=bytes(5)),
        headers(1, bytes(5) + BLOCK, more=frames.WITH_PRIORITY),
        data(1, b"a", end=True),
    )
    assert [frame[0] for frame in wire.frames()] == [1, 0, 1]


def test_pings_are_answered(wire: Wire) -> None:
    wire.send(frames.frame(frames.PING, payload=b"12345678"))
    assert wire.frames() == [(frames.PING, frames.ACK, 0, b"12345678")]


def test_trailers_end_a_request(wire: Wire, server: Server) -> None:
    wire.send(headers(1), data(1, b"a"), headers(1, write_block([(b"b", b"c")]), end=True))
    assert server.streams[0].body == b"a"
    assert wire.frames()[-1] == (frames.HEADERS, 5, 1, TRAILERS)


UPDATE = frames.number_frame(frames.WINDOW_UPDATE, 0, 2**31 - 1)
STREAM_UPDATE = frames.number_frame(frames.WINDOW_UPDATE, 1, 2**31 - 1)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (data(1, b"a"), Code.PROTOCOL_ERROR),
        (frames.number_frame(frames.RST_STREAM, 1, 8), Code.PROTOCOL_ERROR),
        (frames.number_frame(frames.WINDOW_UPDATE, 1, 8), Code.PROTOCOL_ERROR),
        (frames.number_frame(frames.WINDOW_UPDATE, 0, 0), Code.PROTOCOL_ERROR),
        (UPDATE, Code.FLOW_CONTROL_ERROR),
        (headers(2), Code.PROTOCOL_ERROR),
        (frames.frame(frames.PUSH_PROMISE, 4, 1, bytes(4)), Code.PROTOCOL_ERROR),
        (frames.settings_frame({frames.ENABLE_PUSH: 2}), Code.PROTOCOL_ERROR),
        (frames.settings_frame({frames.MAX_FRAME: 100}), Code.PROTOCOL_ERROR),
        (frames.settings_frame({frames.INITIAL_WINDOW: 2**31}), Code.FLOW_CONTROL_ERROR),
        (headers(1, b"\x80"), Code.COMPRESSION_ERROR),
        (frames.frame(frames.DATA, frames.PADDED, 1, b"\5abc"), Code.PROTOCOL_ERROR),
    ],
)
def test_what_breaks_the_protocol_ends_the_connection(wire: Wire, sent: bytes, code: Code) -> None:
    wire.send(sent)
    assert wire.failed() is code
    assert wire.transport.closed
    wire.send(headers(1, end=True))
    assert wire.take() == b""


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (headers(1, write_block([(b":method", b"POST")])), Code.PROTOCOL_ERROR),
        (headers(1) + STREAM_UPDATE, Code.FLOW_CONTROL_ERROR),
        (headers(1) + frames.number_frame(frames.WINDOW_UPDATE, 1, 0), Code.PROTOCOL_ERROR),
        (headers(1) + headers(1), Code.PROTOCOL_ERROR),
        (headers(1, end=True) + data(1, b"a"), Code.STREAM_CLOSED),
        (headers(1, end=True) + headers(1, end=True), Code.STREAM_CLOSED),
    ],
)
def test_what_breaks_a_stream_ends_that_alone(wire: Wire, sent: bytes, code: Code) -> None:
    wire.send(sent)
    assert wire.resets() == [(1, code)]
    wire.send(headers(3), data(3, b"b", end=True))
    assert [frame[:3] for frame in wire.frames()] == [(1, 4, 3), (0, 0, 3), (1, 5, 3)]


def test_more_than_the_window_allows_is_refused(server: Server) -> None:
    wire = server.connect()
    wire.send(GREETING, headers(1))
    stream = server.streams[0]
    stream.grant = lambda: None  # type: ignore[method-assign]  # which takes nothing
    for _ in range(limits.STREAM_WINDOW // 2**14):
        wire.send(data(1, bytes(2**14)))
    assert wire.resets() == []
    wire.send(data(1, b"a"))
    assert wire.resets() == [(1, Code.FLOW_CONTROL_ERROR)]
    assert stream.was_lost


def test_a_client_may_send_on_when_what_it_sent_was_taken(wire: Wire) -> None:
    wire.send(headers(1), *[data(1, bytes(2**14))] * 40)
    ((kind, _, stream, payload),) = wire.frames()
    assert (kind, stream, int.from_bytes(payload)) == (frames.WINDOW_UPDATE, 1, MIB // 2)


def test_a_drain_answers_what_was_sent_before_the_client_knew(server: Server) -> None:
    server.respond = lambda stream: None
    wire = server.connect()
    wire.send(GREETING, headers(1, end=True))
    wire.take()
    wire.connection.drain()
    goaway, ping = wire.frames()
    assert goaway == (frames.GOAWAY, 0, 0, (2**31 - 1).to_bytes(4) + bytes(4))
    wire.send(headers(3, end=True))
    wire.send(frames.frame(frames.PING, frames.ACK, payload=ping[3]))
    assert wire.frames() == [(frames.GOAWAY, 0, 0, (3).to_bytes(4) + bytes(4))]
    wire.send(headers(5, end=True))
    assert len(server.streams) == 2
    for stream in server.streams:
        assert not wire.transport.closed
        stream.send(b"a", headers=ANSWER, trailers=TRAILERS)
    assert wire.transport.closed


def test_a_lost_connection_tells_its_streams(server: Server) -> None:
    server.respond = lambda stream: None
    wire = server.connect()
    wire.send(GREETING, headers(1), headers(3, end=True))
    wire.connection.connection_lost(None)
    assert all(stream.was_lost and stream.closed for stream in server.streams)
    assert server.connections == {}
    server.streams[1].send(b"late", headers=ANSWER, trailers=TRAILERS)


def test_an_answer_before_the_end_of_the_request_stops_the_client(server: Server) -> None:
    wire = server.connect()
    wire.send(GREETING, headers(1), data(1, b"a"))
    wire.take()
    server.streams[0].send(headers=ANSWER, trailers=TRAILERS)
    assert wire.resets() == [(1, Code.NO_ERROR)]
    wire.send(data(1, b"still on its way"))
    assert wire.failed() is None


@given(
    st.lists(
        st.builds(
            frames.frame,
            st.integers(0, 11),
            st.sampled_from([0, 1, 4, 5, 8, 32, 45, 255]),
            st.sampled_from([0, 1, 2, 3, 5, 2**31 - 1]),
            st.one_of(st.binary(max_size=20), st.just(BLOCK), st.just(bytes(4)), st.just(bytes(8))),
        ),
        max_size=30,
    )
)
def test_whatever_is_sent_the_server_goes_on_or_says_why(sent: list[bytes]) -> None:
    server = Server()
    wire = server.connect()
    wire.send(GREETING, *sent)
    assert wire.failed() is not Code.INTERNAL_ERROR
    assert server.budget.unsent >= 0
    wire.connection.connection_lost(None)
    assert server.budget.unsent == 0
    assert all(stream.closed for stream in server.streams)


@pytest.mark.parametrize("narrow", [0, 1], ids=["connection", "stream"])
def test_an_answer_keeps_to_both_windows(wire: Wire, server: Server, narrow: int) -> None:
    server.respond = lambda stream: stream.send(bytes(MIB), headers=ANSWER, trailers=TRAILERS)
    wide = frames.settings_frame({frames.INITIAL_WINDOW: 2**24})
    wire.send(frames.number_frame(frames.WINDOW_UPDATE, 0, 2**24) if narrow else wide)
    wire.send(headers(1, end=True))

    def sent() -> int:
        return sum(len(payload) for kind, *_, payload in wire.frames() if kind == frames.DATA)

    assert sent() == 65_535
    for increment in (1, 30_000):
        wire.send(frames.number_frame(frames.WINDOW_UPDATE, narrow, increment))
        assert sent() == increment
    assert wire.connection.sender.frames == 4 + 2  # the frame of one byte does not count


def test_new_settings_change_the_windows_of_streams_that_are_open(
    wire: Wire, server: Server
) -> None:
    """A window may become negative; it must be positive again before more is sent."""
    server.respond = lambda stream: stream.send(bytes(MIB), headers=ANSWER, trailers=TRAILERS)
    wire.send(frames.number_frame(frames.WINDOW_UPDATE, 0, 2**24), headers(1, end=True))
    (stream,) = server.streams
    for size, window, sent in ((1000, 1000 - 65_535, 0), (66_000, 0, 465), (70_000, 0, 4000)):
        before = stream.queued
        wire.send(frames.settings_frame({frames.INITIAL_WINDOW: size}))
        assert (stream.window, before - stream.queued) == (window, sent)
