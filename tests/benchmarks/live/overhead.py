"""What sampling, shadow and capture cost the requests: a server with them beside one without.

Both run on the same core, the observer included, which is the hardest place for it: at the peak no
time is left, and it drops rows. The two take turns, request for request of the same kind, and the
best turn of each is compared, since the machine is noisy. The time of a core that all
processes but the observer take for a request hardly depends on the neighbours.
"""

import contextlib
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import httpx
import numpy as np

from serving.live.observer import NAME
from tests.benchmarks.serve.catalog import OURS, Peer
from tests.benchmarks.serve.cells import WARM_UP_S, checked_request, peak
from tests.benchmarks.serve.inputs import Inputs, prepare_inputs
from tests.benchmarks.serve.load import two_cores
from tests.benchmarks.serve.noise import Quiet
from tests.benchmarks.serve.openloop import offer
from tests.benchmarks.serve.servers import Server, running, stat_of
from tests.benchmarks.serve.wires import Request, Wire
from tests.e2e.versions import reseal

CONNECTIONS = 32
TURNS = 9
PEAK_S, RATE_S = 2, 4.0
WAIT_S = 60.0
"""Seconds to wait, over all turns, for other programs to leave the cores alone."""
LEAST_PEAK, MOST_P99 = 0.9, 1.1


@dataclass(frozen=True, slots=True)
class Ratio:
    """One figure of the server with an observer, beside that of the one without."""

    what: str
    measured: float
    beside: float
    ratio: float
    """Of the best turn of each."""
    spread: tuple[float, float]
    """The quartiles of the ratios of pairs of turns: what the neighbours make of it."""
    goal: str

    def __str__(self) -> str:
        """A line of the table."""
        low, high = self.spread
        figures = f"{self.measured:>10.2f}  {self.beside:>10.2f}"
        return f"{self.what:<58} {figures}  {self.ratio:>6.3f}x  {self.goal} ({low:.3f}-{high:.3f})"


def measure() -> Iterator[object]:
    """Yield the ratios of peak and of p99 at half of the peak, over each wire format."""
    server_core, load_core = two_cores()
    inputs = prepare_inputs("seed")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {load_core})
    quiet = Quiet((server_core, load_core), WAIT_S)
    try:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            plain, observed = (
                stack.enter_context(running(peer, inputs, server_core))
                for peer in _peers(inputs, Path(folder))
            )
            for wire in OURS.wires:
                yield from _compare(wire, plain, observed, inputs, quiet)
            yield from _counts(observed)
    finally:
        os.sched_setaffinity(0, before)


def _peers(inputs: Inputs, folder: Path) -> tuple[Peer, Peer]:
    """Return the server without an observer, and the one with all that it can do."""
    shutil.copytree(inputs.bundle, folder / "challenger")
    reseal(folder / "challenger", seed=1)
    options = (
        *("--watch-share", "0.05", "--shadow", str(folder / "challenger")),
        *("--capture", str(folder / "captured"), "--capture-share", "0.05"),
    )
    return (
        replace(OURS, command=(*OURS.command, "--watch-share", "0")),
        replace(OURS, command=(*OURS.command, *options)),
    )


def _compare(
    wire: Wire, plain: Server, observed: Server, inputs: Inputs, quiet: Quiet
) -> Iterator[object]:
    servers = observed, plain
    requests: list[Request] = []
    peaks: list[list[float]] = [[], []]
    p99s: list[list[float]] = [[], []]
    cpu_us: list[list[float]] = [[], []]
    busy: list[float] = []
    sizes = []
    for server in servers:
        request, size = checked_request(server, wire, inputs, 1)
        requests.append(request)
        sizes.append(size)
        peak(server, wire, request, CONNECTIONS, WARM_UP_S, size)
    for turn in range(TURNS):
        for place in (0, 1) if turn % 2 else (1, 0):
            run = partial(peak, servers[place], wire, requests[place], CONNECTIONS)
            load, _ = quiet.measure(partial(run, PEAK_S, sizes[place]), servers[place])
            peaks[place].append(load.requests_s)
    half = statistics.median(peaks[1]) / 2
    for turn in range(TURNS):
        for place in (0, 1) if turn % 2 else (1, 0):
            port = servers[place].port_of(wire)
            offered = partial(offer, port, requests[place], half, RATE_S, connections=CONNECTIONS)
            before = _cpu_s(servers[place])
            got, others = quiet.once(partial(offered, grpc=wire.grpc), servers[place])
            spent = _cpu_s(servers[place]) - before
            busy.append(others)
            cpu_us[place].append(spent / len(got.status) * 1e6)
            if got.broken or not got.accepted.all():
                raise ValueError(f"{wire.name}: requests failed")
            p99s[place].append(float(np.percentile(got.latency_ms, 99)))
    yield _ratio(f"live, {wire.name}: peak, requests/s", peaks, f"at least {LEAST_PEAK}", max)
    yield _ratio(f"live, {wire.name}: p99 at half of peak, ms", p99s, f"at most {MOST_P99}")
    yield _ratio(f"live, {wire.name}: core time for a request, µs", cpu_us, "near 1")
    yield f"live, {wire.name}: others used {statistics.median(busy):.2f} cores of the two"


def _cpu_s(server: Server) -> float:
    """Return the seconds of a core that all processes but the observer have taken."""
    ticks = 0
    for pid in server.processes():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() != NAME:
                ticks += sum(stat_of(pid)[11:13])
    return ticks / os.sysconf("SC_CLK_TCK")


def _ratio(
    what: str, turns: list[list[float]], goal: str, best: Callable[[list[float]], float] = min
) -> Ratio:
    low, high = np.percentile([one / other for one, other in zip(*turns, strict=True)], (25, 75))
    measured, beside = map(best, turns)
    return Ratio(what, measured, beside, measured / beside, (float(low), float(high)), goal)


def _counts(observed: Server) -> Iterator[str]:
    """Say what became of the rows that were chosen."""
    text = httpx.get(f"http://127.0.0.1:{observed.port}/metrics").text
    for line in text.splitlines():
        if line.startswith(("vae_watched", "vae_unwatched", "vae_captured", "vae_uncaptured")):
            yield f"live, {line}"
