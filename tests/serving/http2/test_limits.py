"""What a client may not do for long or in large numbers: floods, answers that it never reads."""

import pytest

from serving.http2 import frames, limits
from serving.http2.frames import Code
from serving.transport.limits import GREETING_S, PROGRESS, PROGRESS_S, REQUEST_S
from tests.serving.http2.wire import (
    ANSWER,
    BLOCK,
    GREETING,
    MIB,
    TRAILERS,
    Server,
    Wire,
    data,
    headers,
)


@pytest.mark.parametrize(
    "useless",
    [
        frames.frame(frames.PING, payload=bytes(8)),
        frames.settings_frame({}),
        frames.settings_frame({frames.INITIAL_WINDOW: 5}),
        frames.frame(frames.PRIORITY, stream=1, payload=bytes(5)),
        frames.frame(99),
        frames.number_frame(frames.WINDOW_UPDATE, 0, 1),
        frames.frame(frames.DATA, 0, 1),
        frames.frame(frames.DATA, frames.PADDED, 1, b"\3abc"),
        frames.goaway_frame(0, Code.NO_ERROR),
    ],
    ids=["ping", "settings", "window", "priority", "unknown", "update", "data", "pad", "goaway"],
)
def test_floods_of_frames_without_use_end_the_connection(
    wire: Wire, server: Server, useless: bytes
) -> None:
    wire.send(headers(1))
    for second in range(3):  # as many as are allowed each second
        server.now = float(second)
        wire.send(useless * (limits.TOKENS - 10))
        assert wire.failed() is None
    wire.send(useless * 2 * limits.TOKENS)
    assert wire.failed() is Code.ENHANCE_YOUR_CALM


def test_a_client_may_open_its_windows_and_ping_at_each_part_of_an_answer(wire: Wire) -> None:
    """That is what clients of gRPC do on a long stream."""
    wire.send(headers(1))
    (stream,) = wire.server.streams
    for _ in range(10 * limits.TOKENS):
        stream.send(b"part")
        wire.send(
            frames.number_frame(frames.WINDOW_UPDATE, 0, 4),
            frames.number_frame(frames.WINDOW_UPDATE, 1, 4),
            frames.frame(frames.PING, payload=bytes(8)),
        )
    assert wire.failed() is None


@pytest.mark.parametrize("ask", ["settings", "update"])
def test_a_client_that_asks_for_crumbs_of_an_answer_is_told_to_stop(ask: str) -> None:
    """CVE-2019-9511: each frame would earn the tokens that pay for the next."""
    server = answer_of(20 * limits.TOKENS)
    wire = server.connect()
    wire.send(GREETING, frames.settings_frame({frames.INITIAL_WINDOW: 0}))
    wire.send(headers(1, end=True), headers(3, end=True))
    for size in range(1, 3 * limits.TOKENS):
        if ask == "settings":
            wire.send(frames.settings_frame({frames.INITIAL_WINDOW: size}))
        else:
            wire.send(frames.number_frame(frames.WINDOW_UPDATE, 1, 1))
    assert wire.failed() is Code.ENHANCE_YOUR_CALM


def test_windows_of_many_streams_cost_more_to_change(server: Server) -> None:
    server.respond = lambda stream: None
    wire = server.connect()
    wire.send(GREETING, *(headers(number) for number in range(1, 2000, 2)))
    changes = [frames.settings_frame({frames.INITIAL_WINDOW: size}) for size in range(40)]
    wire.send(*changes[:10])
    assert wire.failed() is None
    wire.send(*changes[10:])
    assert wire.failed() is Code.ENHANCE_YOUR_CALM


def test_windows_of_streams_that_have_ended_cost_a_token(wire: Wire) -> None:
    wire.send(headers(1, end=True))
    wire.send(frames.number_frame(frames.WINDOW_UPDATE, 1, MIB) * 2 * limits.TOKENS)
    assert wire.failed() is Code.ENHANCE_YOUR_CALM


def test_a_client_may_open_its_windows_by_4_kib_at_a_time() -> None:
    """That is what Go's net/http does, for the connection and for the stream."""
    server = answer_of(2**25)
    wire = server.connect()
    wire.send(GREETING, headers(1, end=True))
    for _ in range(0, 2**25, 2**12):
        wire.send(frames.number_frame(frames.WINDOW_UPDATE, 0, 2**12))
        wire.send(frames.number_frame(frames.WINDOW_UPDATE, 1, 2**12))
    assert wire.failed() is None
    assert not wire.connection.streams


def test_streams_that_are_reset_at_once_end_the_connection(server: Server) -> None:
    """CVE-2023-44487: each costs the start of a call, and its client nothing."""
    server.respond = lambda stream: None
    wire = server.connect()
    wire.send(GREETING)
    for number in range(1, 4 * limits.TOKENS, 2):
        reset = frames.number_frame(frames.RST_STREAM, number, Code.CANCEL)
        wire.send(headers(number, end=True), reset)
    assert wire.failed() is Code.ENHANCE_YOUR_CALM
    assert len(server.streams) <= limits.TOKENS + 2
    assert all(stream.was_lost for stream in server.streams)


def test_a_client_may_cancel_about_as_much_as_it_gets_answered(server: Server) -> None:
    wire = server.connect()
    wire.send(GREETING)
    for number in range(1, 20_000, 4):
        reset = frames.number_frame(frames.RST_STREAM, number + 2, Code.CANCEL)
        wire.send(headers(number, end=True), headers(number + 2), reset)
    assert wire.failed() is None


def test_a_header_block_of_empty_parts_ends_the_connection(wire: Wire) -> None:
    more = frames.frame(frames.CONTINUATION, 0, 1)
    wire.send(frames.frame(frames.HEADERS, 0, 1, BLOCK), more * 2 * limits.TOKENS)
    assert wire.failed() is Code.ENHANCE_YOUR_CALM


def test_streams_at_a_time_are_bounded(server: Server) -> None:
    server.respond = lambda stream: None
    wire = server.connect()
    wire.send(GREETING)
    numbers = range(1, 2 * limits.MAX_STREAMS + 2, 2)
    wire.send(*(headers(number, end=True) for number in numbers))
    assert wire.resets() == [(numbers[-1], Code.REFUSED_STREAM)]
    server.streams[0].send(headers=ANSWER, trailers=TRAILERS)
    wire.send(headers(numbers[-1] + 2, end=True))
    assert wire.resets() == []


def answer_of(size: int) -> Server:
    return Server(lambda stream: stream.send(bytes(size), headers=ANSWER, trailers=TRAILERS))


def test_an_answer_waits_for_the_window_and_is_forgotten_with_its_stream() -> None:
    server = answer_of(100_000)
    wire = server.connect()
    wire.send(GREETING, headers(1, end=True))
    assert sum(len(payload) for kind, *_, payload in wire.frames() if kind == 0) == 65_535
    assert server.budget.unsent == 100_000
    wire.send(frames.number_frame(frames.RST_STREAM, 1, Code.CANCEL))
    wire.send(frames.number_frame(frames.WINDOW_UPDATE, 0, MIB))
    assert wire.take() == b""
    assert wire.connection.sender.unsent == server.budget.unsent == 0


def test_what_one_client_does_not_read_is_bounded() -> None:
    server = answer_of(MIB)
    wire = server.connect()
    wire.send(GREETING)
    for number in range(1, 2 * limits.MAX_UNSENT // MIB + 20, 2):
        wire.send(headers(number, end=True))
    assert {code for _, code in wire.resets()} == {Code.REFUSED_STREAM}
    assert wire.connection.sender.unsent <= limits.MAX_UNSENT + MIB


def test_what_all_clients_do_not_read_is_bounded_and_the_oldest_is_cut_off() -> None:
    server = answer_of(MIB)
    server.budget._max_unsent = 10 * MIB
    wires = [server.connect() for _ in range(30)]
    for wire in wires:
        wire.send(GREETING, headers(1, end=True))
    assert server.budget.unsent <= 10 * MIB
    cut = [wire.transport.aborted for wire in wires]
    assert cut == sorted(cut, reverse=True)
    assert 15 < sum(cut) < 25


def test_a_client_that_reads_nothing_is_cut_off_in_time() -> None:
    server = answer_of(MIB)
    slow, dead = server.connect(), server.connect()
    for wire in (slow, dead):
        wire.send(GREETING, headers(1, end=True))
    for server.now in range(0, 120, 5):
        slow.send(frames.number_frame(frames.WINDOW_UPDATE, 0, PROGRESS // 4))
        slow.send(frames.number_frame(frames.WINDOW_UPDATE, 1, PROGRESS // 4))
        for wire in (slow, dead):
            wire.connection.check(server.now)
    assert (slow.transport.aborted, dead.transport.aborted) == (False, True)
    assert all(stream.closed for stream in server.streams[1:])


def test_a_client_that_does_not_take_from_the_socket_is_cut_off() -> None:
    server = answer_of(1000)
    wire = server.connect()
    wire.send(GREETING)
    wire.connection.pause_writing()
    wire.transport.buffered = 70_000
    wire.send(headers(1, end=True))
    assert server.budget.unsent == 71_000
    for server.now in (0.0, PROGRESS_S, PROGRESS_S + 1):
        assert not wire.transport.aborted
        wire.connection.check(server.now)
    assert wire.transport.aborted


def test_what_the_socket_refused_is_sent_when_it_takes_more(wire: Wire) -> None:
    wire.connection.pause_writing()
    wire.send(headers(1), data(1, b"a", end=True))
    assert [kind for kind, *_ in wire.frames()] == [frames.HEADERS]
    wire.connection.resume_writing()
    assert [kind for kind, *_ in wire.frames()] == [frames.DATA, frames.HEADERS]
    assert not wire.connection.streams


def test_a_client_that_does_not_greet_is_cut_off(server: Server) -> None:
    wire = server.connect()
    wire.send(frames.PREFACE)
    wire.connection.check(GREETING_S)
    assert not wire.transport.aborted
    wire.connection.check(GREETING_S + 1)
    assert wire.transport.aborted


def test_a_request_that_does_not_arrive_is_overdue(wire: Wire, server: Server) -> None:
    late: list[int] = []
    wire.send(headers(1), headers(3))
    for stream in server.streams:
        stream.overdue = lambda number=stream.number: late.append(number)  # type: ignore
    wire.send(data(3, b"", end=True))
    wire.connection.check(REQUEST_S + 1)
    assert late == [1]


def test_data_on_its_way_to_a_stream_that_was_refused_costs_nothing(wire: Wire) -> None:
    """Twenty refused uploads at once would otherwise end the connection, and its other calls."""
    wire.send(headers(1))
    wire.server.streams[0].send(headers=ANSWER, trailers=TRAILERS)
    wire.take()
    for _ in range(2 * limits.TOKENS):
        wire.send(data(1, bytes(2**14)))
    found = wire.frames()
    assert {(kind, number) for kind, _, number, _ in found} == {(frames.WINDOW_UPDATE, 0)}
    sent = 2 * limits.TOKENS * 2**14
    credited = sum(int.from_bytes(payload) for *_, payload in found)
    assert sent - limits.CONNECTION_WINDOW // 2 < credited <= sent
    wire.send(data(3, bytes(2**14)))
    assert wire.failed() is Code.PROTOCOL_ERROR


def test_what_a_closed_connection_has_not_sent_counts_until_it_is_lost(wire: Wire) -> None:
    wire.transport.buffered = MIB
    wire.send(frames.frame(frames.PING, stream=1, payload=bytes(8)))
    assert wire.transport.closed
    assert wire.server.budget.unsent == MIB
    wire.connection.connection_lost(None)
    assert wire.server.budget.unsent == 0


def test_an_answer_that_is_too_much_for_the_budget_ends_its_connection() -> None:
    """Its last bytes make the transport full, so that it ends while it is being sent."""
    server = answer_of(1000)
    wire = server.connect()
    wire.send(GREETING, frames.settings_frame({frames.INITIAL_WINDOW: 0}), headers(1, end=True))
    wire.send(frames.settings_frame({frames.INITIAL_WINDOW: 1000}), headers(3))
    server.budget._max_unsent = MIB
    wire.transport.buffered = 2 * MIB
    wire.transport.on_write = wire.connection.pause_writing
    server.streams[1].send(bytes(10), headers=ANSWER, trailers=TRAILERS)
    assert wire.transport.aborted
    assert server.budget.unsent == 0


def test_a_client_that_says_no_more_is_closed_in_time(wire: Wire, server: Server) -> None:
    server.respond = lambda stream: None
    wire.send(headers(1, end=True))
    wire.connection.eof_received()
    assert server.streams[0].was_lost
    assert wire.transport.closed
    wire.connection.check(GREETING_S + 1)
    assert wire.transport.aborted


def test_a_client_is_pinged_now_and_then(wire: Wire) -> None:
    for now in (limits.PING_S, limits.PING_S + 1, limits.PING_S + 2):
        wire.connection.check(now)
    assert [kind for kind, *_ in wire.frames()] == [frames.PING]


def test_a_stream_of_answers_lets_others_go_first(server: Server) -> None:
    server.respond = lambda stream: None
    wire = server.connect()
    wire.send(GREETING, headers(1, end=True), headers(3, end=True))
    first, second = server.streams
    first.send(bytes(65_535 + 10), headers=ANSWER)
    second.send(bytes(10), headers=ANSWER, trailers=TRAILERS)
    first.send(bytes(10))
    wire.take()
    wire.send(frames.number_frame(frames.WINDOW_UPDATE, 1, MIB))
    wire.send(frames.number_frame(frames.WINDOW_UPDATE, 0, 10))
    assert [number for kind, _, number, _ in wire.frames() if kind == frames.DATA] == [3]


def test_a_part_that_was_sent_by_half_counts_as_a_whole(server: Server) -> None:
    """It stays in memory as a whole."""
    server.respond = lambda stream: None
    wire = server.connect()
    wire.send(GREETING, headers(1, end=True))
    server.streams[0].send(bytes(MIB), headers=ANSWER, trailers=TRAILERS)
    assert server.budget.unsent == MIB
    wire.send(frames.number_frame(frames.WINDOW_UPDATE, 0, MIB))
    wire.send(frames.number_frame(frames.WINDOW_UPDATE, 1, MIB // 2))
    assert server.budget.unsent == MIB
    wire.send(frames.number_frame(frames.WINDOW_UPDATE, 1, MIB))
    assert server.budget.unsent == 0
