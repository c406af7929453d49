"""Connections that are stuck or idle, on real sockets: which are ended, and which are not."""

import contextlib
import socket
import sys
import time
from collections.abc import Iterator

import pytest

from serving.errors import Overloaded
from serving.server import rest_connections
from serving.server.rest_connections import MAX_HELD, PROGRESS_S, STUCK_S, RestConnections

MIB = 2**20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells of sockets")


class Peers:
    """A port, and clients of which each has a socket at the server."""

    def __init__(self, most: int) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.connections = RestConnections(self.port, most)
        others = socket.socketpair()  # of another kind, as event loops have them
        self.open: list[socket.socket] = [self.listener, *others]

    def connect(self) -> tuple[socket.socket, socket.socket, str]:
        """Return both ends, and the client's name."""
        client = socket.create_connection(("127.0.0.1", self.port), 10)
        server, (host, port) = self.listener.accept()
        server.setblocking(False)
        self.open += [client, server]
        return client, server, f"{host}:{port}"


@pytest.fixture
def peers() -> Iterator[Peers]:
    made = Peers(most=8)
    yield made
    for one in made.open:
        one.close()


def fill(server: socket.socket) -> int:
    """Write until the kernel takes no more; return how many bytes it took."""
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += server.send(bytes(MIB))
    return sent


def is_closed(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        while client.recv(MIB):
            pass
    except BlockingIOError:
        return False
    return True


def test_a_client_that_takes_nothing_is_ended_in_time(peers: Peers) -> None:
    client, server, _ = peers.connect()
    other, _, _ = peers.connect()
    fill(server)
    peers.connections.look(0.0)
    peers.connections.look(PROGRESS_S - 1)
    assert peers.connections.ended == 0
    peers.connections.look(PROGRESS_S + 1)
    assert peers.connections.ended == 1
    assert is_closed(client)
    assert not is_closed(other)


def test_a_client_that_reads_slowly_is_kept(peers: Peers) -> None:
    client, server, _ = peers.connect()
    fill(server)
    for turn in range(5):
        peers.connections.look(turn * (PROGRESS_S - 1))
        before = server.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)[120:128]
        while server.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)[120:128] == before:
            client.recv(MIB)
        fill(server)
    assert peers.connections.ended == 0


def test_the_client_that_is_stuck_for_longest_makes_room(peers: Peers) -> None:
    """Only if it is needed: one mebibyte of answers harms nobody."""
    first, second = peers.connect(), peers.connect()
    for place, (_, server, name) in enumerate((first, second)):
        taken = fill(server)
        peers.connections.answered(name, taken + MIB, place / 10)
        peers.connections.look(place / 10)
    peers.connections.look(1 + STUCK_S)
    assert peers.connections.ended == 0
    peers.connections.answered(first[2], rest_connections.MAX_UNSENT, 2.0)
    peers.connections.look(2 + STUCK_S)
    assert (is_closed(first[0]), is_closed(second[0])) == (True, False)


def test_answers_that_nobody_takes_are_refused_until_there_is_room(peers: Peers) -> None:
    _, server, name = peers.connect()
    taken = fill(server)
    peers.connections.answered(name, taken + MAX_HELD + 1, 0.0)
    with pytest.raises(Overloaded, match="bytes of answers"):
        peers.connections.check(2**16 + 1, 0.0)
    peers.connections.check(2**16, 0.0)
    peers.connections.look(STUCK_S)
    peers.connections.check(2**16 + 1, STUCK_S)


def test_an_answer_counts_as_a_whole_until_all_of_it_has_left(peers: Peers) -> None:
    _, server, name = peers.connect()
    taken = fill(server)
    peers.connections.answered(name, taken + 1, 0.0)
    peers.connections.look(STUCK_S)
    assert peers.connections._unsent == taken + 1


def test_what_was_taken_does_not_count(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest_connections, "MAX_HELD", MIB)
    client, server, name = peers.connect()
    server.setblocking(True)
    for turn in range(10):
        server.sendall(bytes(MIB // 8))
        peers.connections.answered(name, MIB // 8, float(turn))
        client.recv(MIB // 8, socket.MSG_WAITALL)
        peers.connections.look(turn + 0.5)
        peers.connections.check(MIB // 4, turn + 0.5)
    assert peers.connections.ended == 0


def test_idle_connections_give_way_in_a_crowd(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest_connections, "IDLE_MS", 20)
    silent = [peers.connect()[0] for _ in range(5)]
    asked, _, _ = peers.connect()
    asked.sendall(b"GET / HTTP/1.1\r\n\r\n")
    answered, server, _ = peers.connect()
    answered.sendall(b"GET / HTTP/1.1\r\n\r\n")
    server.setblocking(True)
    server.recv(100)
    time.sleep(0.1)
    server.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
    time.sleep(0.1)
    peers.connections.look(1.0)
    assert peers.connections.ended == 0
    peers.connect()
    peers.connections.look(2.0)
    assert [is_closed(one) for one in silent] == [True] * 4 + [False]
    assert not is_closed(asked)
    assert not is_closed(answered)


def test_clients_that_read_nothing_give_way_in_a_crowd(peers: Peers) -> None:
    stuck = [peers.connect() for _ in range(8)]
    for _, server, _ in stuck:
        fill(server)
    peers.connections.look(1.0)
    assert peers.connections.ended == 0
    peers.connections.look(1.0 + STUCK_S)
    assert peers.connections.ended == 4
