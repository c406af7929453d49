"""Measure the cells of the table, and keep the best of several turns."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from tests.benchmarks.serve.catalog import Peer
from tests.benchmarks.serve.inputs import Inputs, check_answer
from tests.benchmarks.serve.load import Load, run_h2load, run_wrk
from tests.benchmarks.serve.noise import Quiet
from tests.benchmarks.serve.openloop import ask
from tests.benchmarks.serve.servers import Server
from tests.benchmarks.serve.wires import Request, Wire

ROWS = (1, 64)
CONNECTIONS = (1, 32)
WARM_UP_S = 1


@dataclass(frozen=True, slots=True)
class Cell:
    """One line of the table."""

    server: str
    wire: str
    rows: int
    connections: int


@dataclass(slots=True)
class Results:
    """The best load of every cell, or the reason why there is none."""

    best: dict[Cell, Load] = field(default_factory=dict)
    failed: dict[Cell, str] = field(default_factory=dict)

    def add(self, cell: Cell, load: Load) -> None:
        """Keep the faster load."""
        if cell not in self.best or load.requests_s > self.best[cell].requests_s:
            self.best[cell] = load

    def rate(self, server: str, wire: str, rows: int, connections: int) -> float:
        """Return the requests a second; NaN if they were not measured."""
        found = self.best.get(Cell(server, wire, rows, connections))
        return found.requests_s if found else float("nan")


def cells_of(peer: Peer) -> Iterator[tuple[Wire, Cell]]:
    """List every wire format, number of rows and number of connections."""
    for wire in peer.wires:
        for rows in ROWS:
            for connections in CONNECTIONS:
                yield wire, Cell(peer.name, wire.name, rows, connections)


def measure(
    peer: Peer, server: Server, inputs: Inputs, seconds: int, results: Results, quiet: Quiet
) -> None:
    """Check one answer of each kind, then measure the load; keep each failure's reason."""
    for wire, cell in cells_of(peer):
        try:
            request, answer_bytes = checked_request(server, wire, inputs, cell.rows)
            run = partial(peak, server, wire, request, cell.connections)
            run(WARM_UP_S, answer_bytes)
            load, others = quiet.measure(partial(run, seconds, answer_bytes), server)
            if not load.requests_s:
                raise ValueError(f"no answer in {seconds} s")
            results.add(cell, replace(load, others=others))
        except (ValueError, KeyError, OSError) as err:
            results.failed[cell] = f"{type(err).__name__}: {err}"


def checked_request(server: Server, wire: Wire, inputs: Inputs, rows: int) -> tuple[Request, int]:
    """Return the request, once its answer is correct, and the size of that answer."""
    request = wire.encode(inputs.x[:rows])
    answer = ask(server.port_of(wire), request, grpc=wire.grpc)
    if answer.status != 200:
        raise ValueError(f"status {answer.status}: {answer.body[:200]!r}")
    check_answer(inputs, rows, wire.decode(answer.headers, answer.body))
    return request, len(answer.body)


def peak(
    server: Server, wire: Wire, request: Request, connections: int, seconds: int, answer_bytes: int
) -> Load:
    """Measure the most requests that the server can answer."""
    port = server.port_of(wire)
    if wire.grpc:
        return run_h2load(port, request, connections, seconds, answer_bytes)
    return run_wrk(port, request, connections, seconds)
