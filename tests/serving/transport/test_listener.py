"""Which connections give way in a crowd, and how a server listens and ends."""

import asyncio
import socket
from itertools import pairwise
from typing import cast

import pytest

from serving.transport import listener as module
from serving.transport.limits import GOODBYE_S
from serving.transport.listener import Listener

SILENT, IDLE, BUSY = 2, 1, 0


class Member(asyncio.Protocol):
    """A connection that is as ready to give way as a test says."""

    def __init__(self, idle: int = BUSY, *, busy: bool = False) -> None:
        self.idle, self.busy = idle, busy
        self.done: list[str] = []
        self.looks: list[float] = []
        self.home: Listener[Member] | None = None
        self.transport: asyncio.Transport | None = None

    def check(self, now: float) -> None:
        self.looks.append(now)

    def drain(self) -> None:
        self.done.append("drain")

    def give_way(self) -> None:
        self.idle = BUSY
        self.done.append("give way")

    def abort(self) -> None:
        self.done.append("abort")
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        assert self.home is not None
        self.home.admit(self)

    def connection_lost(self, error: Exception | None) -> None:
        assert self.home is not None
        self.home.forget(self)


def make_listener(most: int) -> Listener[Member]:
    return Listener(Member, "http/1.1", most)


def fill(*idles: int) -> tuple[Listener[Member], list[Member]]:
    members = [Member(idle) for idle in idles]
    listener = make_listener(len(members))
    assert all(listener.admit(member) for member in members)
    assert [each for each in members if each.done] == []
    return listener, members


def test_silent_ones_give_way_first_then_idle_ones_the_oldest_first_never_busy_ones() -> None:
    listener, members = fill(BUSY, IDLE, SILENT, IDLE, SILENT, BUSY)
    order = [2, 4, 1, 3]
    for count in range(1, 5):
        assert listener.admit(Member())
        gone = [place for place, member in enumerate(members) if member.done]
        assert gone == sorted(order[:count])
    refused = Member(SILENT)
    assert not listener.admit(refused)
    assert refused.done == ["abort"]
    assert refused not in listener.connections
    assert [members[0].done, members[5].done] == [[], []]


def test_one_that_gives_way_is_looked_after_until_it_has_gone() -> None:
    listener, (idle, busy) = fill(IDLE, BUSY)
    new = Member()
    listener.admit(new)
    listener.check()
    assert len(idle.looks) == 1
    listener.forget(idle)
    listener.forget(idle)
    assert [*listener.connections] == [busy, new]


def test_one_that_has_left_makes_room() -> None:
    listener, (first, _) = fill(BUSY, BUSY)
    listener.forget(first)
    assert listener.admit(Member())
    assert not listener.admit(Member())


def test_a_look_asks_all_even_if_some_end_by_it() -> None:
    listener, members = fill(BUSY, BUSY, BUSY)
    listener.time = lambda: 7.0
    members[0].check = lambda now: [listener.forget(each) for each in members[:2]]  # type: ignore
    listener.check()
    assert [member.looks for member in members] == [[], [7.0], [7.0]]
    assert [*listener.connections] == [members[2]]


def test_connections_are_looked_at_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECK_S", 0.001)
    member = Member()

    async def go() -> None:
        listener = make_listener(1)
        await listener.start("127.0.0.1", 0, None)
        listener.admit(member)
        while len(member.looks) < 3:
            await asyncio.sleep(0.001)
        await listener.stop(0.0)
        count = len(member.looks)
        await asyncio.sleep(0.01)
        assert len(member.looks) == count

    asyncio.run(asyncio.wait_for(go(), 20))
    assert all(before < after for before, after in pairwise(member.looks))
    assert member.done == ["drain", "abort"]


def test_two_listeners_share_a_port_and_a_stopped_one_leaves_it() -> None:
    async def go() -> None:
        with socket.create_server(("127.0.0.1", 0), reuse_port=True) as probe:
            port = probe.getsockname()[1]
            listener, made = make_listener(4), list[Member]()

            def make() -> Member:
                made.append(Member())
                made[-1].home = listener
                return made[-1]

            listener._make = make
            await listener.start("127.0.0.1", port, None)
            probe.close()
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            while not listener.connections:
                await asyncio.sleep(0)
            await listener.stop(0.01)
            assert client.recv(1) == b""
        assert made[0].done == ["drain", "abort"]
        assert listener.connections == {}
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 10)

    asyncio.run(asyncio.wait_for(go(), 20))


def stop(members: list[Member], grace_s: float, leave: dict[float, Member]) -> float:
    """Stop a listener of these; those in `leave` go at their time. Return when it had ended."""
    now = 100.0
    listener = make_listener(9)
    listener.time = lambda: now

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        for moment in [each for each in leave if 100.0 + each <= now]:
            listener.forget(leave.pop(moment))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "sleep", sleep)
        for member in members:
            listener.admit(member)
        asyncio.run(listener.stop(grace_s))
    return now - 100.0


def test_a_stop_waits_for_busy_ones_and_gives_others_a_moment() -> None:
    calm, busy = Member(), Member(busy=True)
    took = stop([calm, busy], 10.0, {3.0: busy})
    assert took == pytest.approx(3.0, abs=0.05)
    assert calm.done == ["drain", "abort"]
    assert busy.done == ["drain"]
    assert stop([Member()], 10.0, {}) == pytest.approx(GOODBYE_S, abs=0.05)


def test_a_stop_ends_when_all_have_gone_or_the_time_is_up() -> None:
    busy = Member(busy=True)
    assert stop([busy], 10.0, {0.5: busy}) == pytest.approx(0.5, abs=0.05)
    busy = Member(busy=True)
    assert stop([busy], 2.0, {}) == pytest.approx(2.0, abs=0.05)
    assert busy.done == ["drain", "abort"]
