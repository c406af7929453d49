"""How many connections a server holds, and which it ends for another."""

from typing import Any, cast

import pytest

from serving.http2 import frames
from serving.http2.budget import Budget
from serving.http2.connection import Connection
from serving.http2.headers import Fields
from serving.http2.server import Http2Server
from serving.http2.stream import Carrier, Stream
from tests.serving.http2.wire import GREETING, Transport, headers, split


def pass_on(fields: Fields) -> Fields:
    return fields


def make_stream(carrier: Carrier, number: int, fields: Fields) -> Stream:
    return Stream(carrier, number)


class Peers:
    """A server of at most two connections, and what connects to it."""

    def __init__(self) -> None:
        self.server = Http2Server(pass_on, make_stream, Budget(2**20, 2**20), 2)
        self.now = 0.0
        self.server.time = lambda: self.now

    def connect(self, *sent: bytes) -> tuple[Connection, Transport]:
        connection, transport = Connection(self.server), Transport()
        connection.connection_made(cast(Any, transport))
        if not transport.aborted:
            connection.data_received(b"".join(sent))
        return connection, transport

    def look(self) -> None:
        self.now += 1
        for connection in [*self.server.connections]:
            connection.check(self.now)


@pytest.fixture
def peers() -> Peers:
    return Peers()


def test_one_connection_too_many_is_refused_while_the_others_are_busy(peers: Peers) -> None:
    for _ in range(2):
        peers.connect(GREETING, headers(1))
    for _ in range(3):
        peers.look()
    connection, transport = peers.connect()
    assert transport.aborted
    assert connection not in peers.server.connections
    assert len(peers.server.connections) == 2


@pytest.mark.parametrize("sent", [(), (GREETING,)], ids=["silent", "greeted"])
def test_a_new_connection_takes_the_place_of_an_idle_one(
    peers: Peers, sent: tuple[bytes, ...]
) -> None:
    _, busy = peers.connect(GREETING, headers(1))
    idle, closed = peers.connect(*sent)
    for _ in range(2):
        peers.look()
    _, taken = peers.connect(GREETING)
    assert (busy.closed, closed.closed, taken.aborted) == (False, True, False)
    assert split(b"".join(closed.written))[-1][0] == frames.GOAWAY
    idle.connection_lost(None)
    assert len(peers.server.connections) == 2


def test_a_connection_is_not_idle_in_its_first_second(peers: Peers) -> None:
    for _ in range(2):
        peers.connect()
    peers.look()
    _, transport = peers.connect()
    assert transport.aborted


def test_a_client_that_reads_nothing_gives_way(peers: Peers) -> None:
    _, busy = peers.connect(GREETING, headers(1))
    stuck, ended = peers.connect(GREETING, headers(1))
    ended.buffered = 2**20
    stuck.pause_writing()
    for _ in range(2):
        peers.look()
    _, taken = peers.connect(GREETING)
    assert (busy.aborted, ended.aborted, taken.aborted) == (False, True, False)
