"""The bound of answers that clients do not take: who is ended, and what is refused."""

from typing import Any, cast

import pytest

from serving.errors import Overloaded
from serving.http1.connection import Connection
from serving.http1.exchange import Exchange
from serving.http1.limits import LOOK_S, MAX_HELD, MAX_UNSENT, SMALL
from serving.http1.server import Http1Server
from serving.transport.limits import IDLE_S
from tests.serving.http1.wire import GET, Transport, read_answers

MIB = 2**20


class Peer:
    """A client that takes nothing, until the test says so."""

    def __init__(self, server: "Held") -> None:
        self.transport = Transport()
        self.connection = Connection(server.http1)
        self.connection.connection_made(cast(Any, self.transport))

    def ask(self) -> None:
        self.connection.data_received(GET)
        self.transport.unsent = sum(map(len, self.transport.written))

    def read(self) -> None:
        self.transport.unsent = 0
        self.transport.written.clear()


class Held:
    """A server whose answers have `size` bytes, and whose clock a test sets."""

    def __init__(self, most: int = 100) -> None:
        self.http1 = Http1Server(self._handle, self._refuse, most)
        self.size = 8 * MIB
        self.now = 0.0
        self.http1.time = lambda: self.now

    def _handle(self, exchange: Exchange) -> None:
        exchange.respond(200, (), bytes(self.size))

    def _refuse(self, exchange: Exchange, status: int, reason: str) -> None:
        exchange.respond(status, (), reason.encode(), close=True)

    def look(self, now: float) -> None:
        self.now = now
        self.http1.check()


@pytest.fixture
def held() -> Held:
    return Held()


def test_the_client_that_is_stuck_for_longest_makes_room(held: Held) -> None:
    first, second, third = Peer(held), Peer(held), Peer(held)
    held.look(0.0)
    for place, peer in enumerate((second, first, third)):
        held.look(place * IDLE_S)
        held.size = MAX_UNSENT // 2 - 1000
        peer.ask()
    held.look(2.5 * IDLE_S)
    assert [peer.transport.aborted for peer in (first, second, third)] == [False, True, False]
    first.read()
    held.look(4 * IDLE_S)
    assert [peer.transport.aborted for peer in (first, second, third)] == [False, True, False]


def test_one_that_holds_more_goes_before_another_stuck_as_long(held: Held) -> None:
    small, large = Peer(held), Peer(held)
    held.look(0.0)
    held.size = MAX_UNSENT // 2
    small.ask()
    held.size = MAX_UNSENT
    large.ask()
    held.look(2 * IDLE_S)
    assert (small.transport.aborted, large.transport.aborted) == (False, True)


def test_nobody_is_ended_while_there_is_room(held: Held) -> None:
    peer = Peer(held)
    held.size = MAX_UNSENT - 1000
    peer.ask()
    held.look(3 * IDLE_S)
    assert not peer.transport.aborted


def test_a_client_that_reads_is_not_ended_for_others(held: Held) -> None:
    """However much it has to read."""
    peer = Peer(held)
    held.look(0.0)
    held.size = 2 * MAX_UNSENT
    peer.ask()
    for second in range(1, 10):
        peer.transport.unsent -= MIB
        held.look(second * IDLE_S)
    assert not peer.transport.aborted


def test_an_answer_counts_as_a_whole_until_all_of_it_has_left(held: Held) -> None:
    """The rest of it cannot be kept without the whole."""
    held.size = MAX_HELD - SMALL - 1024
    peer = Peer(held)
    peer.ask()
    peer.transport.unsent = 1
    held.http1.check()
    held.http1.check_room(SMALL)
    with pytest.raises(Overloaded):
        held.http1.check_room(SMALL + 1025)
    peer.read()
    held.http1.check_room(MAX_HELD)


def test_large_answers_are_refused_until_clients_have_read(held: Held) -> None:
    held.size = 8 * MIB - 1024  # with its head, no more than is unsent
    peers = [Peer(held) for _ in range(7)]
    for peer in peers:
        peer.ask()
        peer.transport.unsent = 8 * MIB
    held.http1.check_room(SMALL)
    with pytest.raises(Overloaded, match="too many bytes of answers are in memory"):
        held.http1.check_room(SMALL + 1)
    assert not any(peer.transport.aborted for peer in peers)
    for peer in peers[:2]:
        peer.read()
    held.http1.check_room(MAX_HELD - 5 * 8 * MIB)
    with pytest.raises(Overloaded):
        held.http1.check_room(MAX_HELD - 5 * 8 * MIB + 1)


def test_answers_count_as_unsent_only_until_the_next_look(held: Held) -> None:
    """What clients took at once would otherwise count until a second has passed."""
    peer = Peer(held)
    held.size = MAX_UNSENT // 4
    for turn in range(40):
        held.now = turn * LOOK_S / 4
        peer.ask()
        peer.read()
        held.http1.check_room(MAX_HELD)
    assert not peer.transport.aborted


def test_much_at_once_is_looked_at_before_the_second_is_over(held: Held) -> None:
    stuck = Peer(held)
    held.look(0.0)
    held.size = MAX_UNSENT
    stuck.ask()
    other = Peer(held)
    other.connection.check(0.0)
    held.now = 2 * IDLE_S
    other.ask()  # at its answer, the server hears of too many bytes
    assert stuck.transport.aborted
    assert not other.transport.aborted
    assert len(read_answers(b"".join(other.transport.written), "GET")) == 1


def test_looks_are_not_taken_at_each_answer(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    peer = Peer(held)
    monkeypatch.setattr(peer.connection, "check", looks.append)
    held.size = MAX_UNSENT + 1
    for now in (5.0, 5.0 + LOOK_S / 2, 5.01 + LOOK_S):
        held.now = now
        peer.ask()
    assert looks == [5.0, 5.01 + LOOK_S]


def test_a_connection_too_many_is_ended(held: Held) -> None:
    held = Held(most=1)
    busy = Peer(held)
    held.size = 0
    busy.connection.data_received(GET[:-2])
    refused = Peer(held)
    assert refused.transport.aborted
    assert not busy.transport.aborted
    busy.connection.data_received(b"\r\n")
    assert len(read_answers(b"".join(busy.transport.written), "GET")) == 1
