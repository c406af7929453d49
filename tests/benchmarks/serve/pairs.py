"""Our server and another one in turns, cell by cell, with an echo on our transports beside them.

A machine's speed may change within seconds, so the two meet in every turn, and it is the ratios of
turns that are kept. The servers share a core; those that wait for their turn are idle. The other
server is started anew for each turn.
"""

import json
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median

import numpy as np

from tests.benchmarks.serve.catalog import AT_PEAK, ECHO, OURS, Peer
from tests.benchmarks.serve.cells import (
    ROWS,
    WARM_UP_S,
    Cell,
    Results,
    cells_of,
    checked_request,
    peak,
)
from tests.benchmarks.serve.inputs import Inputs
from tests.benchmarks.serve.load import Load
from tests.benchmarks.serve.noise import Quiet
from tests.benchmarks.serve.openloop import offer
from tests.benchmarks.serve.servers import NotMeasured, Server, running
from tests.benchmarks.serve.wires import Request, Wire

HALF_S = 5
"""Seconds at half of the peak: a stall may be the p99 of one turn, but the median turn is kept."""
FAILURES = (NotMeasured, ValueError, KeyError, OSError)


@dataclass(frozen=True, slots=True)
class Turn:
    """The loads of one turn."""

    ours: Load
    theirs: Load
    echo: Load | None = None
    """None at half of the peak, where there is no floor to be compared with."""


@dataclass(slots=True)
class Pair:
    """All turns of one cell, or of half of the peak in that cell."""

    cell: Cell
    turns: list[Turn] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """Reasons of the turns that gave no figures."""

    @property
    def ratios(self) -> list[float]:
        """Our requests a second by theirs, of each turn."""
        return [turn.ours.requests_s / turn.theirs.requests_s for turn in self.turns]

    @property
    def of_echo(self) -> list[float]:
        """Our requests a second by those of the echo, of each turn that has one."""
        return [turn.ours.requests_s / turn.echo.requests_s for turn in self.turns if turn.echo]

    @property
    def cpu_ratios(self) -> list[float]:
        """Our time of a core for a request by theirs, of each turn."""
        return [turn.ours.cpu_us / turn.theirs.cpu_us for turn in self.turns]

    @property
    def p99_ratios(self) -> list[float]:
        """Our p99 by theirs, of each turn."""
        return [turn.ours.p99_ms / turn.theirs.p99_ms for turn in self.turns]

    def middle(self, which: str, figure: str) -> float:
        """Return the median of a figure of `ours`, `theirs` or `echo`; NaN without turns."""
        loads = [load for turn in self.turns if (load := getattr(turn, which)) is not None]
        return median([getattr(load, figure) for load in loads] or [float("nan")])


@dataclass(slots=True)
class Comparison:
    """What was found about the other server."""

    peer: Peer
    version: str = ""
    """What it says of itself."""
    at_peak: list[Pair] = field(default_factory=list)
    at_half: list[Pair] = field(default_factory=list)

    def add_to(self, results: Results) -> None:
        """Add the other server's loads to those of all servers."""
        for pair in self.at_peak:
            for turn in pair.turns:
                results.add(pair.cell, turn.theirs)
            if pair.failed:
                results.failed[pair.cell] = pair.failed[-1]


@dataclass(frozen=True, slots=True)
class Bench:
    """What all measurements of a comparison share."""

    peer: Peer
    inputs: Inputs
    quiet: Quiet
    ours: Server
    echo: Server

    def turn_at_peak(self, wire: Wire, cell: Cell, seconds: int) -> Turn:
        """Measure the most requests of each of the three."""
        with running(self.peer, self.inputs, self.quiet.cores[0]) as theirs:
            loads = []
            for server in (self.ours, theirs):
                request, size = checked_request(server, wire, self.inputs, cell.rows)
                loads.append(self._peak(server, wire, cell, request, seconds, size))
            request = replace(request, path=f"/{size}")
            loads.append(self._peak(self.echo, wire, cell, request, seconds, size))
        return Turn(*loads)

    def turn_at_half(self, wire: Wire, pair: Pair) -> Turn:
        """Measure each at half of its own peak, with random arrivals."""
        with running(self.peer, self.inputs, self.quiet.cores[0]) as theirs:
            return Turn(
                self._half(self.ours, wire, pair.cell.rows, pair.middle("ours", "requests_s")),
                self._half(theirs, wire, pair.cell.rows, pair.middle("theirs", "requests_s")),
            )

    def _peak(
        self, server: Server, wire: Wire, cell: Cell, request: Request, seconds: int, size: int
    ) -> Load:
        run = partial(peak, server, wire, request, cell.connections)
        run(WARM_UP_S, size)
        before = server.cpu_s()
        load, others = self.quiet.once(partial(run, seconds, size), server)
        if not load.requests_s:
            raise ValueError(f"no answer in {seconds} s")
        cpu_us = (server.cpu_s() - before) / (load.requests_s * seconds) * 1e6
        return replace(load, others=others, cpu_us=cpu_us)

    def _half(self, server: Server, wire: Wire, rows: int, at_peak: float) -> Load:
        request, _ = checked_request(server, wire, self.inputs, rows)
        run = partial(offer, server.port_of(wire), request, at_peak / 2, grpc=wire.grpc)
        run(WARM_UP_S, connections=AT_PEAK)
        got, others = self.quiet.once(partial(run, HALF_S, connections=AT_PEAK), server)
        if failed := int((~got.accepted).sum()) + got.broken:
            raise ValueError(f"{failed} requests failed")
        p50, p99 = np.percentile(got.latency_ms, (50, 99))
        return Load(got.sent_s, float(p50), float(p99), others)


def compare(
    peer: Peer,
    inputs: Inputs,
    seconds: int,
    turns: int,
    quiet: Quiet,
    tell: Callable[[Pair], None],
    *,
    halves: bool,
) -> Comparison:
    """Measure every cell in turns, and then half of each peak; `tell` of each when it is done.

    Raises:
        NotMeasured: our server, the echo, or the other server cannot be started.
    """
    found, core = Comparison(peer), quiet.cores[0]
    with running(OURS, inputs, core) as ours, running(ECHO, inputs, core) as echo:
        with running(peer, inputs, core) as theirs:
            found.version = version_of(theirs)
        bench = Bench(peer, inputs, quiet, ours, echo)
        for wire, cell in cells_of(peer):
            take = partial(bench.turn_at_peak, wire, cell, seconds)
            found.at_peak.append(repeat(cell, [take] * turns))
            tell(found.at_peak[-1])
        for wire, pair in peaks(peer, found.at_peak) if halves else ():
            take = partial(bench.turn_at_half, wire, pair)
            found.at_half.append(repeat(pair.cell, [take] * turns))
            tell(found.at_half[-1])
    return found


def repeat(cell: Cell, takes: Sequence[partial[Turn]]) -> Pair:
    """Take turns, and keep the reasons of those that fail."""
    pair = Pair(cell)
    for take in takes:
        try:
            pair.turns.append(take())
        except FAILURES as err:
            pair.failed.append(f"{type(err).__name__}: {err}")
    return pair


def peaks(peer: Peer, found: Sequence[Pair]) -> Iterator[tuple[Wire, Pair]]:
    """Yield those cells that have a peak: every wire format and number of rows."""
    for wire in peer.wires:
        for rows in ROWS:
            wanted = Cell(peer.name, wire.name, rows, AT_PEAK)
            yield from ((wire, pair) for pair in found if pair.cell == wanted and pair.turns)


def version_of(server: Server) -> str:
    """Return the name and version that a server of the Open Inference Protocol gives."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/v2", timeout=10) as answer:
        found = json.load(answer)
    return f"{found['name']} {found['version']}"
