"""One connection: the order of answers, when it reads, and how it ends at each stage."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import ClientLeft, DataRefused
from serving.http1.answers import CONTINUE
from serving.http1.limits import (
    BODY_AHEAD,
    CHUNK,
    LINGER_BYTES,
    LINGER_S,
    MAX_BESIDE,
    MAX_WAITING,
)
from serving.transport.limits import IDLE_S, PROGRESS, PROGRESS_S
from tests.serving.http1.wire import (
    CHUNKED,
    GET,
    POST,
    REFUSAL,
    Server,
    Wire,
    echo,
    post,
    read_answers,
    run,
    told,
    turn,
)

CLOSE = GET[:-2] + b"Connection: close\r\n\r\n"
PART = b"GET /a HTTP/1.1\r\nHo"


def get(target: str) -> bytes:
    return GET.replace(b"/a", target.encode())


def test_a_request_gets_its_answer_and_the_connection_stays(wire: Wire, server: Server) -> None:
    for place in range(3):
        wire.send(post(b"body"))
        head, body, complete = told(server.exchanges[place])
        assert (head.method, head.target, body, complete) == ("POST", b"/a", b"body", True)
        server.exchanges[place].respond(201, [("x-a", "b")], b"answer")
        written = wire.take()
        (got,) = read_answers(written, "POST")
        assert (got.status, got.headers["x-a"], got.body) == (201, "b", b"answer")
        assert "connection" not in got.headers
    assert server.bytes == 3 * len(written)
    assert not wire.transport.closed
    assert wire.transport.reading


def test_pipelined_requests_are_answered_in_order_one_at_a_time(wire: Wire, server: Server) -> None:
    async def go() -> None:
        wire.send(get("/1"), post(b"two"), get("/3"))
        for place in range(3):
            assert len(server.exchanges) == place + 1
            assert wire.transport.reading == (place == 2)
            server.exchanges[place].respond(200, (), b"%d" % place)
            await turn()
        assert [got.body for got in read_answers(wire.take(), *"GPG")] == [b"0", b"1", b"2"]

    run(go())


def test_answers_at_once_are_in_order_too(server: Server) -> None:
    async def go() -> None:
        server.respond = echo
        wire = Wire(server)
        wire.send(*(get(f"/{place}") for place in range(MAX_WAITING)))
        for _ in range(MAX_WAITING):
            await turn()
        found = read_answers(wire.take(), *["GET"] * MAX_WAITING)
        assert [got.body for got in found] == [b"/%d" % place for place in range(MAX_WAITING)]
        assert wire.transport.reading

    run(go())


def test_too_many_requests_ahead_are_refused_behind_those_before(server: Server) -> None:
    async def go() -> None:
        server.respond = echo
        wire = Wire(server)
        wire.send(GET * (MAX_WAITING + 5))
        for _ in range(MAX_WAITING + 1):
            await turn()
        found = read_answers(wire.take(), *["GET"] * (MAX_WAITING + 1), ended=True)
        assert [got.status for got in found] == [200] * MAX_WAITING + [429]
        assert found[-1].headers["connection"] == "close"

    run(go())


def test_a_malformed_request_is_refused_behind_those_before(wire: Wire, server: Server) -> None:
    async def go() -> None:
        wire.send(GET, b"no request\r\n\r\n", GET)
        assert server.refusals == []
        server.exchanges[0].respond(200)
        await turn()
        ((status, reason),) = server.refusals
        assert status == 400
        found = read_answers(wire.take(), "GET", "GET", ended=True)
        assert [got.status for got in found] == [200, 400]
        assert found[1].headers[REFUSAL[0][0]] == REFUSAL[0][1]
        assert found[1].body == reason.encode()
        assert len(server.exchanges) == 1
        assert wire.transport.eof

    run(go())


def test_the_last_request_ends_the_connection_and_nothing_behind_it_is_read(
    wire: Wire, server: Server
) -> None:
    wire.send(CLOSE, GET)
    wire.send(GET)
    server.exchanges[0].respond(200, (), b"last")
    (got,) = read_answers(wire.take(), "GET", ended=True)
    assert (got.headers["connection"], got.body) == ("close", b"last")
    assert len(server.exchanges) == 1
    assert wire.transport.closed
    assert server.refusals == []


def test_a_request_of_http_1_0_is_kept_if_it_asks_for_that(wire: Wire, server: Server) -> None:
    old = b"GET / HTTP/1.0\r\n"
    wire.send(old + b"Connection: keep-alive\r\n\r\n")
    server.exchanges[0].respond(200, (), b"1")
    assert not wire.transport.closed
    (got,) = read_answers(wire.take(), "GET")
    assert got.headers["connection"] == "keep-alive"
    wire.send(old + b"\r\n")
    server.exchanges[1].respond(200, (), b"2")
    (got,) = read_answers(wire.take(), "GET", ended=True)
    assert (got.headers["connection"], got.body) == ("close", b"2")
    assert wire.transport.closed


def test_what_answers_can_end_the_connection(wire: Wire, server: Server) -> None:
    wire.send(GET, GET)
    server.exchanges[0].respond(200, close=True)
    (got,) = read_answers(wire.take(), "GET", ended=True)
    assert got.headers["connection"] == "close"
    assert wire.transport.closed
    assert len(server.exchanges) == 1


def test_a_second_answer_is_none(wire: Wire, server: Server) -> None:
    wire.send(GET)
    server.exchanges[0].respond(200)
    before = wire.take()
    server.exchanges[0].respond(500)
    wire.send(GET)
    server.exchanges[0].respond(500)
    assert wire.take() == b""
    assert len(read_answers(before, "GET")) == 1


# bodies


@given(st.lists(st.integers(0, 2**12), max_size=10))
def test_requests_in_pieces_are_those_of_the_whole(places: list[int]) -> None:
    chunks = CHUNKED + b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nt: u\r\n\r\n"
    upgrade = post(b"later", b"Upgrade: h2c\r\n", b"Connection: upgrade\r\n")
    content = b"".join((get("/1"), chunks, upgrade, b"\r\n", post(b"x" * 99), get("/5")))
    ends = [*sorted({place % len(content) for place in places}), len(content)]

    async def go() -> None:
        server = Server()
        wire = Wire(server)
        at = 0
        for end in ends:
            wire.send(content[at:end])
            at = end
            for _ in range(5):
                await turn()
                for exchange in server.exchanges:
                    if exchange.complete:
                        exchange.respond(200)
        assert [told(each)[:0:-1] for each in server.exchanges] == [
            (True, body) for body in (b"", b"abcdefg", b"later", b"x" * 99, b"")
        ]
        assert [got.status for got in read_answers(wire.take(), *"GPPPG")] == [200] * 5

    run(go())


def test_a_body_is_not_read_further_than_what_answers_goes(wire: Wire, server: Server) -> None:
    async def go() -> None:
        wire.send(POST + b"Content-Length: %d\r\n\r\n" % (3 * BODY_AHEAD))
        (exchange,) = server.exchanges
        pieces = exchange.pieces()
        wire.send(bytes(BODY_AHEAD))
        assert wire.transport.reading
        wire.send(b"1")
        assert not wire.transport.reading
        assert len(await anext(pieces)) == BODY_AHEAD + 1
        assert wire.transport.reading
        wire.send(bytes(2 * BODY_AHEAD - 1))
        assert not wire.transport.reading  # though nothing of this body is to come
        exchange.respond(200)
        wire.send(GET)
        assert len(server.exchanges) == 2

    run(go())


def test_the_body_of_a_waiting_request_is_bounded_too(wire: Wire, server: Server) -> None:
    async def go() -> None:
        wire.send(GET, POST, b"Content-Length: %d\r\n\r\n{" % BODY_AHEAD)
        assert not wire.transport.reading
        server.exchanges[0].respond(200)
        await turn()
        assert wire.transport.reading
        wire.send(bytes(BODY_AHEAD - 1))
        assert len(await server.exchanges[1].read()) == BODY_AHEAD

    run(go())


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_a_client_that_waits_is_told_to_go_on_once_its_body_is_wanted(
    server: Server, wire: Wire, version: bytes
) -> None:
    """HTTP/1.0 does not know such an answer (RFC 9110, section 10.1.1)."""

    async def go() -> None:
        head = post(b"", b"Expect: 100-Continue\r\n").replace(b": 0", b": 4")
        wire.send(head.replace(b"1.1", version))
        assert wire.take() == b""
        reading = asyncio.ensure_future(server.exchanges[0].read())
        await turn()
        assert wire.take() == (CONTINUE if version == b"1.1" else b"")
        wire.send(b"bo")
        await turn()
        wire.send(b"dy")
        assert await reading == b"body"
        assert wire.take() == b""

    run(go())


def test_a_client_that_does_not_wait_is_not_told_to_go_on(wire: Wire, server: Server) -> None:
    async def go() -> None:
        wire.send(post(b"body", b"Expect: 100-continue\r\n"))
        assert await server.exchanges[0].read() == b"body"
        assert wire.take() == b""

    run(go())


def test_a_body_that_breaks_off_is_refused(wire: Wire, server: Server) -> None:
    async def go() -> None:
        wire.send(CHUNKED, b"3\r\nabc\r\nzz\r\n")
        with pytest.raises(DataRefused, match="chunks of the body are broken"):
            await server.exchanges[0].read()
        server.exchanges[0].respond(400)
        assert read_answers(wire.take(), "POST", ended=True)[0].status == 400
        assert wire.transport.eof

    run(go())


@pytest.mark.parametrize(
    ("unit", "size"),
    [(b"1;" + b"x" * 99 + b"\r\na\r\n", 1), (b"2;%b\r\nab\r\n" % (b"x" * 8), 2)],
)
def test_chunks_that_are_mostly_something_else_are_refused(
    wire: Wire, server: Server, unit: bytes, size: int
) -> None:
    wire.send(CHUNKED)
    most = MAX_BESIDE // (len(unit) - size * CHUNK) if len(unit) > size * CHUNK else 10**4
    for _ in range(min(most, 5000)):
        wire.send(unit)
        server.exchanges[0]._parts.clear()
    assert not wire.connection._parser.broken
    for _ in range(2):
        wire.send(unit)
    assert wire.connection._parser.broken == (len(unit) > size * CHUNK)


def test_trailers_are_bounded(wire: Wire) -> None:
    wire.send(CHUNKED, b"0\r\n")
    for _ in range(MAX_BESIDE // 100):
        wire.send(b"x: " + b"y" * 95 + b"\r\n")
    assert not wire.connection._parser.broken
    wire.send(b"x: " + b"y" * 95 + b"\r\n")
    assert wire.connection._parser.broken


# the client leaves


def test_what_answers_is_cancelled_when_the_client_leaves(wire: Wire, server: Server) -> None:
    async def go() -> None:
        wire.send(GET, GET)
        (exchange,) = server.exchanges
        exchange.task = asyncio.ensure_future(asyncio.sleep(10))
        await turn()
        wire.connection.connection_lost(None)
        await turn()
        assert exchange.task.cancelled()
        exchange.respond(200)
        assert wire.take() == b""
        assert server.connections == {}
        assert len(server.exchanges) == 1

    run(go())


@pytest.mark.parametrize("how", ["lost", "end", "abort"])
def test_what_waits_for_a_body_is_told_that_the_client_left(
    wire: Wire, server: Server, how: str
) -> None:
    async def go() -> None:
        wire.send(POST + b"Content-Length: 4\r\n\r\nbo")
        reading = asyncio.ensure_future(server.exchanges[0].read())
        await turn()
        if how == "lost":
            wire.connection.connection_lost(None)
        elif how == "end":
            wire.connection.eof_received()
        else:
            wire.connection.abort()
        with pytest.raises(ClientLeft):
            await reading
        server.exchanges[0].respond(499)
        assert wire.take() == b""

    run(go())


def test_a_body_that_is_wanted_late_asks_nobody_to_go_on(wire: Wire, server: Server) -> None:
    async def go() -> None:
        wire.send(post(b"", b"Expect: 100-continue\r\n").replace(b": 0", b": 4"))
        wire.connection.connection_lost(None)
        reading = asyncio.ensure_future(server.exchanges[0].read())
        await turn()
        assert wire.take() == b""
        reading.cancel()

    run(go())


def test_a_client_that_says_no_more_is_looked_after_until_it_is_gone(
    wire: Wire, server: Server
) -> None:
    """It reads nothing, so its socket stays open for ever."""
    wire.send(GET)
    server.exchanges[0].respond(200, (), bytes(1000))
    wire.transport.unsent = 1000
    wire.connection.eof_received()
    wire.transport.close()  # as it does by itself
    assert wire.connection in server.connections
    wire.check(PROGRESS_S)
    assert not wire.transport.aborted
    wire.check(PROGRESS_S + 1)
    assert wire.transport.aborted


def test_a_pipelined_request_does_not_begin_after_the_end(wire: Wire, server: Server) -> None:
    async def go() -> None:
        wire.send(GET, GET)
        server.exchanges[0].respond(200)
        wire.connection.abort()
        await turn()
        assert len(server.exchanges) == 1

    run(go())


# answers before the whole request, and the end


@pytest.mark.parametrize("half_closes", [True, False], ids=["tcp", "tls"])
def test_a_client_that_still_sends_can_read_why_it_should_not(
    server: Server, half_closes: bool
) -> None:
    wire = Wire(server, half_closes=half_closes)
    wire.send(POST + b"Content-Length: 9999999\r\n\r\n", bytes(BODY_AHEAD + 1))
    assert not wire.transport.reading
    server.exchanges[0].respond(413, (), b"large")
    (got,) = read_answers(wire.take(), "POST", ended=True)
    assert (got.status, got.headers["connection"], got.body) == (413, "close", b"large")
    assert wire.transport.eof == half_closes
    assert wire.transport.reading
    assert not wire.transport.closed
    wire.send(bytes(LINGER_BYTES))
    assert not wire.transport.closed
    wire.send(b"1")
    assert wire.transport.closed
    assert len(server.exchanges) == 1


@pytest.mark.parametrize("half_closes", [True, False], ids=["tcp", "tls"])
def test_such_a_client_has_a_moment(server: Server, half_closes: bool) -> None:
    wire = Wire(server, half_closes=half_closes)
    wire.send(POST + b"Content-Length: 9\r\n\r\n")
    wire.check(1.0)
    server.exchanges[0].respond(413)
    wire.transport.unsent = 10
    wire.check(2.0 + LINGER_S)
    assert not wire.transport.closed  # it has not read the answer
    wire.transport.unsent = 0
    wire.check(2.5 + LINGER_S)
    assert wire.transport.closed


def test_a_refused_request_is_read_on_too(wire: Wire) -> None:
    wire.send(b"no request\r\n\r\n")
    assert wire.transport.eof
    wire.send(bytes(1000))
    assert not wire.transport.closed
    assert read_answers(wire.take(), "GET", ended=True)[0].status == 400


def test_much_behind_the_last_request_is_not_read(wire: Wire, server: Server) -> None:
    wire.send(CLOSE)
    for _ in range(LINGER_BYTES // 2**16):
        wire.send(bytes(2**16))
    assert wire.transport.reading
    wire.send(b"1")
    assert not wire.transport.reading
    server.exchanges[0].respond(200)
    assert read_answers(wire.take(), "GET", ended=True)[0].status == 200
    assert wire.transport.closed


def test_empty_lines_are_not_read_for_ever(wire: Wire) -> None:
    for _ in range(LINGER_BYTES // 2**16):
        wire.send(b"\r\n" * 2**15)
    assert not wire.transport.closed
    wire.send(b"\r\n")
    assert wire.transport.closed


# a client that does not read


def test_nothing_begins_while_the_client_takes_no_answers(server: Server) -> None:
    async def go() -> None:
        server.respond = echo
        wire = Wire(server)
        wire.send(GET)
        wire.connection.pause_writing()
        assert not wire.transport.reading
        wire.send(GET, GET)  # what had been read before
        await turn()
        assert len(server.exchanges) == 1
        wire.connection.resume_writing()
        await turn()
        assert len(server.exchanges) == 3
        assert wire.transport.reading

    run(go())


def test_a_pause_between_two_answers_is_kept(wire: Wire, server: Server) -> None:
    async def go() -> None:
        wire.send(GET, GET)
        wire.connection.pause_writing()
        server.exchanges[0].respond(200)
        await turn()
        assert len(server.exchanges) == 1
        wire.connection.resume_writing()
        assert len(server.exchanges) == 2
        assert wire.transport.reading

    run(go())


def test_a_client_that_takes_nothing_is_ended(wire: Wire, server: Server) -> None:
    wire.send(GET)
    wire.check(1.0)
    server.exchanges[0].respond(200, (), bytes(10 * PROGRESS))
    wire.transport.unsent = 10 * PROGRESS
    wire.check(1.0 + PROGRESS_S)
    assert not wire.transport.aborted
    wire.check(1.1 + PROGRESS_S)
    assert wire.transport.aborted


def test_a_client_that_takes_a_little_is_kept(wire: Wire, server: Server) -> None:
    wire.send(GET)
    server.exchanges[0].respond(200, (), bytes(10 * PROGRESS))
    for turns in range(9):
        wire.transport.unsent = (9 - turns) * PROGRESS
        wire.check(turns * PROGRESS_S)
    assert not wire.transport.aborted
    wire.check(10 * PROGRESS_S)
    assert wire.transport.aborted


# time


def test_a_slow_head_is_refused(wire: Wire, server: Server) -> None:
    wire.server.now = 5.0
    wire.send(PART)
    wire.check(5.0 + server.head_s)
    assert server.refusals == []
    wire.send(b"st: ")
    wire.check(5.1 + server.head_s)
    assert server.refusals == [(408, "the head of the request did not arrive within 30 s")]
    assert read_answers(wire.take(), "GET", ended=True)[0].status == 408


def test_a_slow_head_behind_a_request_is_refused_behind_its_answer(
    wire: Wire, server: Server
) -> None:
    async def go() -> None:
        wire.send(GET, PART)
        wire.check(server.head_s + 1)
        assert server.refusals == []
        server.exchanges[0].respond(200)
        await turn()
        found = read_answers(wire.take(), "GET", "GET", ended=True)
        assert [got.status for got in found] == [200, 408]

    run(go())


def test_a_head_is_not_late_while_the_server_does_not_read(wire: Wire, server: Server) -> None:
    async def go() -> None:
        wire.send(get("/1"), get("/2"), PART)
        wire.check(server.head_s + 1)
        server.exchanges[0].respond(200)
        await turn()
        assert wire.transport.reading
        wire.check(server.head_s + 2)
        wire.send(b"st: test\r\n\r\n")
        server.exchanges[1].respond(200)
        await turn()
        assert (len(server.exchanges), server.refusals) == (3, [])

    run(go())


def test_how_ready_a_connection_is_to_give_way(wire: Wire, server: Server) -> None:
    connection = wire.connection
    found = [connection.idle]
    for now, action in enumerate(
        (
            lambda: None,  # silent: 2
            lambda: wire.send(b"\r\n"),  # still: nothing was asked
            lambda: wire.send(GET),  # busy
            lambda: server.exchanges[0].respond(200, (), b"1"),  # has just asked, and now rests
            lambda: wire.send(PART),  # a head has begun, and does not go on
        ),
        start=1,
    ):
        action()
        found.append(connection.idle)
        wire.check(now * 1.01 * IDLE_S)
        found.append(connection.idle)
    assert found == [2, 2, 2, 2, 2, 0, 0, 0, 1, 0, 1]


def test_a_client_that_still_reads_its_answer_is_busy(wire: Wire, server: Server) -> None:
    wire.send(GET)
    server.exchanges[0].respond(200, (), bytes(9 * PROGRESS))
    for turns in range(1, 5):
        wire.transport.unsent = (9 - turns) * PROGRESS
        wire.check(turns * IDLE_S)
        assert wire.connection.idle == 0
        assert wire.connection.busy
    wire.check(6 * IDLE_S)  # now it takes nothing
    assert wire.connection.idle == 1


def test_a_connection_gives_way_once(wire: Wire) -> None:
    wire.connection.give_way()
    assert wire.connection.idle == 0
    assert wire.transport.aborted


# the end of the server


def test_an_idle_connection_ends_at_once_in_a_drain(wire: Wire, server: Server) -> None:
    wire.send(GET)
    server.exchanges[0].respond(200, (), bytes(10))
    wire.transport.unsent = 10  # which is still sent
    wire.connection.drain()
    assert wire.transport.closed
    assert not wire.transport.aborted
    assert wire.connection.busy


def test_a_drain_waits_for_what_was_asked(wire: Wire, server: Server) -> None:
    async def go() -> None:
        wire.send(GET, GET)
        wire.connection.drain()
        assert not wire.transport.closed
        server.exchanges[0].respond(200)
        await turn()
        (got,) = read_answers(wire.take(), "GET", ended=True)
        assert got.headers["connection"] == "close"
        assert wire.transport.closed

    run(go())


def test_a_drain_waits_for_a_head_that_has_begun(wire: Wire, server: Server) -> None:
    wire.send(PART)
    wire.connection.drain()
    wire.send(b"st: test\r\n\r\n")
    server.exchanges[0].respond(200, (), b"1")
    (got,) = read_answers(wire.take(), "GET", ended=True)
    assert (got.headers["connection"], got.body) == ("close", b"1")
    assert wire.transport.closed


def test_a_connection_that_is_not_admitted_does_nothing() -> None:
    class Full(Server):
        def admit(self, connection: object) -> bool:
            return False

    server = Full()
    wire = Wire(server)
    wire.connection.abort()
    wire.send(GET)
    assert server.exchanges == []


def test_an_answer_counts_as_progress_only_once_it_is_written(wire: Wire, server: Server) -> None:
    """The server looks at all connections when it hears of one more answer."""
    seen: list[int] = []

    def sent(size: int) -> None:
        seen.append(len(wire.take()))

    wire.send(GET)
    server.sent = sent  # type: ignore[method-assign]
    server.exchanges[0].respond(200, (), bytes(1000))
    assert seen[0] > 1000
