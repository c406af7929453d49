"""Reading a body as it arrives: whole, in pieces, broken off; nobody waits for ever."""

import asyncio
from typing import Any

import pytest

from serving.errors import BodyTimeout, ClientLeft, DataRefused
from serving.http1.exchange import Exchange, Fields, Head
from tests.serving.http1.wire import run, turn

WAITS = Head("POST", headers={"expect": "100-Continue"})


class Carried:
    """The connection of an exchange: counts what it is told."""

    def __init__(self) -> None:
        self.proceeded = self.taken_ = 0
        self.answers: list[tuple[Any, ...]] = []

    def answer(
        self, exchange: Exchange, status: int, fields: Fields, body: bytes, close: bool
    ) -> None:
        self.answers.append((exchange, status, fields, body, close))

    def proceed(self) -> None:
        self.proceeded += 1

    def taken(self) -> None:
        self.taken_ += 1


@pytest.fixture
def carried() -> Carried:
    return Carried()


@pytest.fixture
def exchange(carried: Carried) -> Exchange:
    return Exchange(carried, WAITS)


def test_a_whole_body_is_read_at_once(exchange: Exchange, carried: Carried) -> None:
    async def go() -> None:
        exchange.received(b"bo")
        exchange.received(b"dy")
        assert exchange.ahead == 4
        exchange.finished()
        assert await exchange.read() == b"body"
        assert (exchange.ahead, carried.taken_, carried.proceeded) == (0, 1, 0)
        assert await exchange.read() == b""

    run(go())


def test_a_body_is_awaited(exchange: Exchange, carried: Carried) -> None:
    async def go() -> None:
        reading = asyncio.ensure_future(exchange.read())
        for part in (b"b", b"od", b"y"):
            await turn()
            exchange.received(part)
            exchange.received(b"")
        await turn()
        assert not reading.done()
        exchange.finished()
        assert await reading == b"body"
        assert carried.proceeded == 1

    run(go())


def test_the_pieces_of_a_body_are_all_of_it(exchange: Exchange, carried: Carried) -> None:
    async def go() -> None:
        found: list[bytes] = []

        async def read() -> None:
            async for piece in exchange.pieces():
                found.append(piece)

        exchange.received(b"1")
        exchange.received(b"2")
        reading = asyncio.ensure_future(read())
        await turn()
        assert (found, exchange.ahead) == ([b"12"], 0)
        exchange.received(b"3")
        await turn()
        exchange.received(b"4")
        exchange.finished()
        await reading
        assert found == [b"12", b"3", b"4"]
        assert (carried.taken_, carried.proceeded) == (3, 1)

    run(go())


@pytest.mark.parametrize("before", [True, False], ids=["before", "while it is read"])
def test_a_body_that_fails_is_an_error(exchange: Exchange, before: bool) -> None:
    async def go() -> None:
        exchange.received(b"1")
        if before:
            exchange.fail(BodyTimeout("late"))
        reading = asyncio.ensure_future(exchange.read())
        await turn()
        exchange.fail(BodyTimeout("late"))
        exchange.fail(DataRefused("broken"))
        with pytest.raises(BodyTimeout):
            await reading
        assert exchange.task is None

    run(go())


def test_what_arrived_before_a_failure_is_yielded(exchange: Exchange) -> None:
    async def go() -> None:
        exchange.received(b"1")
        exchange.fail(DataRefused("broken"))
        pieces = exchange.pieces()
        assert await anext(pieces) == b"1"
        with pytest.raises(DataRefused, match="broken"):
            await anext(pieces)

    run(go())


def test_a_complete_body_cannot_fail(exchange: Exchange) -> None:
    async def go() -> None:
        exchange.received(b"1")
        exchange.finished()
        exchange.fail(DataRefused("broken"))
        assert await exchange.read() == b"1"

    run(go())


def test_a_lost_client_wakes_what_reads_and_cancels_what_does_not(exchange: Exchange) -> None:
    async def go() -> None:
        exchange.task = asyncio.ensure_future(exchange.read())  # type: ignore[arg-type]
        await turn()
        exchange.lost(ClientLeft("gone"))
        with pytest.raises(ClientLeft, match="gone"):
            await exchange.task
        exchange.task = asyncio.ensure_future(asyncio.sleep(10))
        await turn()
        exchange.lost(ClientLeft("gone"))
        with pytest.raises(asyncio.CancelledError):
            await exchange.task

    run(go())


def test_a_client_lost_as_the_body_completes_harms_nobody(exchange: Exchange) -> None:
    async def go() -> None:
        reading = asyncio.ensure_future(exchange.read())
        await turn()
        exchange.received(b"1")
        exchange.finished()
        exchange.lost(ClientLeft("gone"))
        assert await reading == b"1"

    run(go())


@pytest.mark.parametrize(
    ("head", "count"),
    [
        (Head("POST"), 0),
        (Head("POST", headers={"expect": "more"}), 0),
        (WAITS._replace(version="1.0"), 0),
        (WAITS, 1),
    ],
    ids=["no", "other", "1.0", "yes"],
)
def test_who_is_told_to_go_on(carried: Carried, head: Head, count: int) -> None:
    async def go() -> None:
        exchange = Exchange(carried, head)
        assert carried.proceeded == 0
        reading = asyncio.ensure_future(exchange.read())
        await turn()
        assert carried.proceeded == count
        exchange.received(b"1")
        await turn()
        exchange.finished()
        await reading
        assert carried.proceeded == count

    run(go())


def test_an_answer_goes_to_the_connection(exchange: Exchange, carried: Carried) -> None:
    exchange.respond(200, [("a", "b")], b"c", close=True)
    exchange.respond(204)
    assert carried.answers == [
        (exchange, 200, [("a", "b")], b"c", True),
        (exchange, 204, (), b"", False),
    ]
