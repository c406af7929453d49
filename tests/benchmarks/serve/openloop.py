"""Open-loop load at a fixed rate: requests are sent when they are due, answered or not.

wrk has no fixed rate, and `h2load --rps` sends by a timer of 10 ms, in bursts. This is a plain
loop over epoll on its own core, which stays awake for the last 0.1 ms before a request is due,
because sleeps end late. Latency counts from when a request was due, so that a server that stalls
is charged for it.
"""

import gc
import select
import socket
from collections import deque
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Literal

import numpy as np

from tests.benchmarks.serve.exchanges import Answer, Exchange, open_exchange
from tests.benchmarks.serve.inputs import Array
from tests.benchmarks.serve.wires import Request

Arrivals = Literal["even", "poisson"]
PATIENCE_S = 10
AWAKE_S = 1e-4


@dataclass(frozen=True, slots=True)
class Offered:
    """The results of the requests; times in ms, one entry for each answer."""

    seconds: float
    status: Array
    latency_ms: Array
    late_ms: Array
    """How late the client sent the request although a connection was free."""
    unsent: int
    """Requests that were dropped, since no connection was free when they were due."""
    broken: int
    """Connections that ended, or gave no answer in time."""

    @property
    def sent_s(self) -> float:
        """Requests a second that were answered or broke."""
        return (len(self.status) + self.broken) / self.seconds

    @property
    def accepted(self) -> Array:
        """Tell which answers are a 200."""
        return np.equal(self.status, 200)

    @property
    def refused(self) -> Array:
        """Tell which answers say that the server is overloaded."""
        return np.isin(self.status, (429, 503))


class Connection:
    """A socket, its exchange, and the request in progress on it."""

    def __init__(self, port: int, request: Request, *, grpc: bool) -> None:
        self.exchange: Exchange = open_exchange(request, grpc=grpc)
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.due = self.late = 0.0
        self.unsent = b""
        self.send(self.exchange.opening)

    def send(self, data: bytes) -> None:
        """Send as much as the socket takes, and keep the rest."""
        data = self.unsent + data if self.unsent else data
        try:
            self.unsent = data[self.socket.send(data) :] if data else b""
        except BlockingIOError:
            self.unsent = data
        except ConnectionError:  # the server has closed it, but its last bytes must still be read
            self.unsent = b""

    def receive(self) -> Answer | None:
        """Read what has arrived; raise `ConnectionError` if the server has closed it."""
        data = self.socket.recv(2**18)
        if not data:
            raise ConnectionResetError("closed")
        back, answer = self.exchange.feed(data)
        if back:
            self.send(back)
        return answer


class _Pool:
    """The connections of one load: which are idle, and their results."""

    def __init__(self, count: int, port: int, request: Request, *, grpc: bool) -> None:
        self._open = partial(Connection, port, request, grpc=grpc)
        self._poll = select.epoll()
        self._by_fd: dict[int, Connection] = {}
        self._stuck = set[Connection]()
        self.idle = deque[Connection]()
        self.busy = set[Connection]()
        self.rows: list[tuple[int, float, float]] = []
        self.broken = 0
        self._free_at = 0.0
        """Time when the last wait for a connection ended."""
        for _ in range(count):
            self._add()

    def send(self, due: float, now: float) -> None:
        """Use the connection that has been idle longest."""
        one = self.idle.popleft()
        one.due, one.late = due, now - max(due, self._free_at)
        self.busy.add(one)
        one.send(one.exchange.request())
        if one.unsent:
            self._stuck.add(one)

    def turn(self, start: float, wait_s: float) -> None:
        """Send what was left over, and read what arrives within `wait_s`."""
        for one in [*self._stuck]:
            one.send(b"")
            if not one.unsent:
                self._stuck.remove(one)
        if wait_s > 0:  # select on the epoll itself: epoll counts in whole ms
            select.select([self._poll], [], [], wait_s)
        for fd, _ in self._poll.poll(0):
            one = self._by_fd[fd]
            try:
                answer = one.receive()
            except ConnectionError:
                self._replace(fd, one)
                continue
            if answer is not None and one in self.busy:
                now = perf_counter() - start
                self.rows.append((answer.status, now - one.due, one.late))
                self.busy.remove(one)
                self._free_at = self._free_at if self.idle else now
                self.idle.append(one)

    def close(self) -> None:
        """Close all connections; those still busy got no answer in time."""
        self.broken += len(self.busy)
        self._poll.close()
        for one in self._by_fd.values():
            one.socket.close()

    def _add(self) -> None:
        one = self._open()
        fd = one.socket.fileno()
        self._by_fd[fd] = one
        self._poll.register(fd, select.EPOLLIN)
        self.idle.append(one)

    def _replace(self, fd: int, one: Connection) -> None:
        self.broken += one in self.busy
        self.busy.discard(one)
        self._stuck.discard(one)
        if one in self.idle:
            self.idle.remove(one)
        self._poll.unregister(fd)
        del self._by_fd[fd]
        one.socket.close()
        self._add()


def offer(
    port: int,
    request: Request,
    rate: float,
    seconds: float,
    *,
    connections: int,
    grpc: bool = False,
    arrivals: Arrivals = "poisson",
    drop: bool = False,
    settle_s: float = 0.0,
) -> Offered:
    """Send `rate` requests a second.

    If no connection is free, a request waits, or is not sent if `drop`. The server has `settle_s`
    seconds to take the connections before the first request.
    """
    count = max(round(rate * seconds), 1)
    gaps = np.ones(count) if arrivals == "even" else np.random.default_rng(0).exponential(1, count)
    due = (np.cumsum(gaps) * (seconds / gaps.sum())).tolist()
    pool = _Pool(connections, port, request, grpc=grpc)
    at = unsent = 0
    settled = perf_counter() + settle_s
    while (left := settled - perf_counter()) > 0:
        pool.turn(0.0, left)
    gc.collect()
    gc.disable()  # a garbage collection takes longer than an answer
    now, start = 0.0, perf_counter()
    while (at < count or pool.busy) and now < seconds + PATIENCE_S:
        now = perf_counter() - start
        while at < count and due[at] <= now and (pool.idle or drop):
            if pool.idle:
                pool.send(due[at], now)
                now = perf_counter() - start
            else:
                unsent += 1
            at += 1
        pool.turn(start, (due[at] if at < count else now + PATIENCE_S) - now - AWAKE_S)
    gc.enable()
    pool.close()
    table = np.array(pool.rows, np.float64).reshape(-1, 3).T
    return Offered(seconds, table[0], table[1] * 1e3, table[2] * 1e3, unsent, pool.broken)


def ask(port: int, request: Request, *, grpc: bool) -> Answer:
    """Send one request, and return its answer."""
    one = Connection(port, request, grpc=grpc)
    one.socket.settimeout(PATIENCE_S)
    with one.socket:
        one.socket.sendall(one.exchange.request())
        while (answer := one.receive()) is None:
            pass
    return answer
