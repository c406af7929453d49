"""What calls hold in memory, and what they give back, whichever way they end."""

import asyncio
import gzip
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import Overloaded, VaeError
from serving.http2 import frames
from serving.http2.budget import Budget
from serving.http2.connection import Connection
from serving.http2.headers import write_block
from serving.server.grpc_call import BoundMethod, Call
from serving.server.grpc_wire import CallHead, Content, prefix, read_head
from serving.server.turns import Turns
from tests.serving.http2.wire import GREETING, REQUEST, Transport, data, headers

BLOCK = write_block([(name.encode(), value.encode()) for name, value in REQUEST])
MOST = 50_000


class Calls:
    """The server of one connection, whose calls answer with the size of what they got."""

    def __init__(self, *, streams: bool = False, max_received: int = 2**20) -> None:
        self.loop = asyncio.get_running_loop()
        self.budget = Budget(max_received, 2**24)
        self.max_bytes = MOST
        self.stopping = False
        self.full: VaeError | None = None
        self.turns = Turns(lambda: 0 if self.full else 1)
        self.tasks: list[Any] = []
        self.go = asyncio.Event()
        self.go.set()
        self.streams: set[Call] = set()
        self.calls: list[Call] = []
        self.got: list[int] = []
        self.time = self.loop.time
        self._method = BoundMethod(self.stream if streams else self.one, streams)
        self.transport = Transport()
        self.connection = Connection(self)
        self.connection.connection_made(cast(Any, self.transport))
        self.connection.data_received(GREETING)

    def admit(self, connection: Connection) -> bool:
        return True

    def forget(self, connection: Connection) -> None:
        pass

    async def one(self, call: Call, message: Content) -> None:
        self.got.append(len(message))
        await self.go.wait()
        call.answer(b"%d" % len(message))

    async def stream(self, call: Call, message: Content) -> None:
        self.tasks.append(asyncio.current_task())
        try:
            async for each in call.messages():
                self.got.append(len(each))
                await call.reply(b"%d" % len(each))
        except VaeError as err:
            call.refuse(err)
        call.end()

    def find(self, path: str) -> BoundMethod:
        return self._method

    def refuse_at_once(self, message: Content) -> VaeError | None:
        return self.full

    def read_head(self, fields: Any) -> CallHead:
        return read_head(fields)

    def make_stream(self, connection: Any, number: int, head: CallHead) -> Call:
        call = Call(self, connection, number, head)
        self.calls.append(call)
        return call

    async def send(self, *parts: bytes) -> None:
        self.connection.data_received(b"".join(parts))
        for _ in range(5):
            await asyncio.sleep(0)


def pieces(body: bytes, cuts: set[int]) -> list[bytes]:
    places = [0, *sorted(cut for cut in cuts if cut < len(body)), len(body)]
    return [data(1, body[a:b]) for a, b in pairwise(places)]


@settings(deadline=None)
@given(st.lists(st.integers(0, 300), max_size=20), st.sets(st.integers(1, 3000)))
def test_messages_of_a_stream_come_out_whole(sizes: list[int], cuts: set[int]) -> None:
    async def run() -> None:
        calls = Calls(streams=True)
        body = b"".join(prefix(size) + bytes(size) for size in sizes)
        await calls.send(headers(1, BLOCK))
        for piece in pieces(body, cuts):
            await calls.send(piece)
        await calls.send(data(1, b"", end=True))
        for _ in sizes:
            await asyncio.sleep(0)
        assert calls.got == sizes
        assert [call.status for call in calls.calls] == ["OK"]
        assert calls.budget.received == 0
        assert calls.streams == set()

    asyncio.run(run())


@pytest.mark.parametrize("streams", [False, True], ids=["one", "stream"])
@pytest.mark.parametrize("end", ["answer", "cancel", "lost", "too large", "overdue", "cut"])
def test_memory_is_given_back_however_a_call_ends(streams: bool, end: str) -> None:
    async def run() -> None:
        calls = Calls(streams=streams)
        await calls.send(headers(1, BLOCK), data(1, prefix(10_000) + bytes(9000)))
        assert calls.budget.received == 9005
        if end == "answer":
            await calls.send(data(1, bytes(1000), end=True))
        elif end == "cancel":
            await calls.send(frames.number_frame(frames.RST_STREAM, 1, 8))
        elif end == "lost":
            calls.connection.connection_lost(None)
        elif end == "too large":
            await calls.send(
                data(1, bytes(1000)), data(1, prefix(MOST + 1)), data(1, b"", end=True)
            )
        elif end == "overdue":
            calls.calls[0].overdue()
            calls.connection.connection_lost(None)
        else:
            await calls.send(data(1, b"", end=True))
        await asyncio.sleep(0)
        assert calls.budget.received == 0
        assert calls.calls[0].status
        assert calls.got == (
            [10_000] if end == "answer" or (end, streams) == ("too large", True) else []
        )

    asyncio.run(run())


def test_what_all_requests_hold_together_is_bounded() -> None:
    async def run() -> None:
        calls = Calls(max_received=100_000)
        for number in range(1, 9, 2):
            await calls.send(headers(number, BLOCK), data(number, prefix(40_000) + bytes(10_000)))
            await calls.send(data(number, bytes(16_000)), data(number, bytes(13_000)))
        assert [call.status for call in calls.calls] == ["", "", *["RESOURCE_EXHAUSTED"] * 2]
        assert calls.budget.received <= 100_000 + 16_000
        await calls.send(data(1, bytes(1000), end=True))
        assert calls.got == [40_000]

    asyncio.run(run())


def test_a_stream_waits_for_a_client_that_does_not_read() -> None:
    async def run() -> None:
        calls = Calls(streams=True)

        async def talk(call: Call, message: Content) -> None:
            for _ in range(100):
                calls.got.append(1)
                await call.reply(bytes(MOST))
            call.end()

        calls._method = BoundMethod(talk, streams=True)
        await calls.send(headers(1, BLOCK, end=True))
        assert 20 < len(calls.got) < 30
        update = frames.number_frame(frames.WINDOW_UPDATE, 0, 2**24)
        await calls.send(update, frames.number_frame(frames.WINDOW_UPDATE, 1, 2**24))
        for _ in range(100):
            await asyncio.sleep(0)
        assert calls.calls[0].status == "OK"
        assert not calls.connection.streams

    asyncio.run(run())


def test_a_stream_that_there_is_no_room_for_ends_its_task() -> None:
    """A task that waited on would keep its place among the calls in progress."""

    async def run() -> None:
        calls = Calls(streams=True, max_received=20_000)
        await calls.send(headers(1, BLOCK), data(1, prefix(40_000)))
        assert not calls.tasks[0].done()
        await calls.send(data(1, bytes(16_000)), data(1, bytes(16_000)))
        assert [call.status for call in calls.calls] == ["RESOURCE_EXHAUSTED"]
        assert calls.tasks[0].done()
        assert calls.budget.received == 0

    asyncio.run(run())


def test_a_message_counts_until_its_call_is_answered() -> None:
    async def run() -> None:
        calls = Calls(max_received=100_000)
        calls.go.clear()
        for number in range(1, 7, 2):
            await calls.send(headers(number, BLOCK), data(number, prefix(40_000)))
            await calls.send(*[data(number, bytes(10_000))] * 4, data(number, b"", end=True))
        assert calls.got == [40_000] * 2
        assert [call.status for call in calls.calls] == ["", "", "RESOURCE_EXHAUSTED"]
        assert calls.budget.received == 2 * 40_005
        calls.go.set()
        await calls.send()
        assert [call.status for call in calls.calls[:2]] == ["OK", "OK"]
        assert calls.budget.received == 0

    asyncio.run(run())


def test_messages_are_not_decompressed_without_room_for_what_they_may_hold() -> None:
    """Hundreds of small ones, which end at once, would otherwise hold gigabytes."""

    async def run() -> None:
        calls = Calls(max_received=4 * MOST)
        calls.go.clear()
        packed = gzip.compress(bytes(MOST))
        body = b"\1" + prefix(len(packed))[1:] + packed
        block = BLOCK + write_block([(b"grpc-encoding", b"gzip")])
        numbers = range(1, 41, 2)
        await calls.send(*(headers(n, block) + data(n, body) for n in numbers))
        await calls.send(*(data(n, b"", end=True) for n in numbers))
        assert calls.got == [MOST] * 3
        assert [call.status for call in calls.calls[3:]] == ["RESOURCE_EXHAUSTED"] * 17
        calls.go.set()
        await calls.send()
        assert calls.budget.received == 0

    asyncio.run(run())


def test_each_message_of_a_stream_says_whether_it_is_compressed() -> None:
    async def run() -> None:
        calls = Calls(streams=True)
        packed = gzip.compress(bytes(3000))
        body = b"\1" + prefix(len(packed))[1:] + packed + prefix(7) + bytes(7)
        block = BLOCK + write_block([(b"grpc-encoding", b"gzip")])
        await calls.send(headers(1, block), data(1, body[:9]), data(1, body[9:], end=True))
        assert calls.got == [3000, 7]

    asyncio.run(run())


def test_what_follows_the_only_message_is_refused_before_the_request_has_ended() -> None:
    async def run() -> None:
        calls = Calls()
        await calls.send(headers(1, BLOCK), data(1, prefix(10) + bytes(10)))
        assert calls.calls[0].status == ""
        await calls.send(data(1, b"a"))
        assert calls.calls[0].status == "UNIMPLEMENTED"
        assert calls.budget.received == 0

    asyncio.run(run())


def test_the_refusal_that_calls_share_does_not_keep_them() -> None:
    """An exception that is raised holds the frames that it passed, and so their messages."""

    async def run() -> None:
        calls = Calls()
        calls._method = calls._method._replace(counted=True)
        calls.full = Overloaded("full")
        await calls.send(headers(1, BLOCK), data(1, prefix(10) + bytes(10), end=True))
        await asyncio.sleep(0)  # its turn
        assert calls.calls[0].status == "RESOURCE_EXHAUSTED"
        assert calls.full.__traceback__ is None

    asyncio.run(run())


def test_a_stream_of_tiny_messages_lets_others_have_their_turn() -> None:
    """A mebibyte of them, which are answered without a wait, took seconds in one turn."""

    async def run() -> None:
        calls = Calls(streams=True)
        await calls.send(headers(1, BLOCK))
        await calls.send(data(1, prefix(0) * 1000, end=True))
        assert 64 <= len(calls.got) < 1000
        for _ in range(20):
            await calls.send()
        assert len(calls.got) == 1000
        assert calls.calls[0].status == "OK"

    asyncio.run(run())
