"""Our latency at half of the peak, with arrivals at even distances and at random ones.

Beside it stands that of a server which only echoes, at the same rate on the same core: what the
machine and the client make of any server.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np

from tests.benchmarks.serve.catalog import Peer
from tests.benchmarks.serve.cells import WARM_UP_S, Results, checked_request
from tests.benchmarks.serve.inputs import Inputs
from tests.benchmarks.serve.noise import Quiet
from tests.benchmarks.serve.openloop import Arrivals, Offered, offer
from tests.benchmarks.serve.servers import Server, free_ports, wait_for_port
from tests.benchmarks.serve.wires import Request

CONNECTIONS = 32
SECONDS = 10
"""Seconds of one rate, so that one stall of the machine of some 50 ms is not the p99."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Latency at one rate; times in ms."""

    wire: str
    arrivals: Arrivals
    rate: float
    p50_ms: float
    p99_ms: float
    late_ms: float
    """Delay of the client itself, p99."""
    failed: int
    others: float
    """Cores that other programs used meanwhile."""
    echo_spread: float
    """p99 / p50 of the server that only echoes."""

    @property
    def spread(self) -> float:
        """p99 / p50."""
        return self.p99_ms / self.p50_ms


def ideal_spread() -> float:
    """p99 / p50 at half of the peak if all requests take the same time and arrivals are random.

    No server that takes one request after the other can do better (an M/D/1 queue).
    """
    gaps = np.random.default_rng(0).exponential(2, 10**6)  # in units of the service time
    ahead = np.cumsum(1 - gaps)
    p50, p99 = np.percentile(1 + ahead - np.minimum.accumulate(np.minimum(ahead, 0)), (50, 99))
    return float(p99 / p50)


def measure(
    peer: Peer, server: Server, inputs: Inputs, results: Results, quiet: Quiet
) -> list[Rate]:
    """Measure requests of one row, over each wire format that has a peak."""
    found = []
    for wire in peer.wires:
        half = results.rate(peer.name, wire.name, 1, CONNECTIONS) / 2
        if not half > 0:
            continue
        request, size = checked_request(server, wire, inputs, 1)
        load = partial(offer, server.port_of(wire), request, half, connections=CONNECTIONS)
        load(WARM_UP_S, grpc=wire.grpc)
        for arrivals in get_args(Arrivals):
            run = partial(load, SECONDS, grpc=wire.grpc, arrivals=arrivals)
            got, others = quiet.measure(run, server)
            p50, p99 = _percentiles(got)
            with echoing(size, quiet.cores[0]) as port:
                plain = Request("/", bytes(len(request.body)))
                beside = partial(offer, port, plain, half, SECONDS, connections=CONNECTIONS)
                echo_p50, echo_p99 = _percentiles(beside(arrivals=arrivals))
            late = float(np.percentile(got.late_ms, 99))
            failed = int((~got.accepted).sum()) + got.broken
            found.append(
                Rate(wire.name, arrivals, half, p50, p99, late, failed, others, echo_p99 / echo_p50)
            )
    return found


def _percentiles(got: Offered) -> tuple[float, float]:
    p50, p99 = np.percentile(got.latency_ms, (50, 99))
    return float(p50), float(p99)


@contextmanager
def echoing(size: int, core: int) -> Iterator[int]:
    """Run a server that answers with so many bytes; give its port."""
    (port,) = free_ports(1)
    program = [sys.executable, str(Path(__file__).with_name("echo.py")), str(port), str(size)]
    process = subprocess.Popen(["taskset", "-c", str(core), *program])
    try:
        wait_for_port(port)
        yield port
    finally:
        process.kill()
        process.wait()
