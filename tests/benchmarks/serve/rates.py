"""Our latency at half of the peak, with arrivals at even distances and at random ones."""

from dataclasses import dataclass
from functools import partial
from typing import get_args

import numpy as np

from tests.benchmarks.serve.catalog import Peer
from tests.benchmarks.serve.cells import WARM_UP_S, Results, checked_request
from tests.benchmarks.serve.inputs import Inputs
from tests.benchmarks.serve.noise import Quiet
from tests.benchmarks.serve.openloop import Arrivals, offer
from tests.benchmarks.serve.servers import Server

CONNECTIONS = 32
SECONDS = 10
"""So that one stall of the machine, of some 50 ms, is not the p99."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Latency at one rate; times in ms."""

    wire: str
    arrivals: Arrivals
    rate: float
    p50_ms: float
    p99_ms: float
    late_ms: float
    """By how much the client itself was late, p99."""
    failed: int
    others: float
    """Cores that other programs took meanwhile."""

    @property
    def spread(self) -> float:
        """p99 / p50."""
        return self.p99_ms / self.p50_ms


def ideal_spread() -> float:
    """p99 / p50 at half of the peak where every request takes just as long and arrivals are random.

    The best that any server can do which takes one request after the other (a queue M/D/1).
    """
    gaps = np.random.default_rng(0).exponential(2, 10**6)  # in times of service
    ahead = np.cumsum(1 - gaps)
    p50, p99 = np.percentile(1 + ahead - np.minimum.accumulate(np.minimum(ahead, 0)), (50, 99))
    return float(p99 / p50)


def measure(
    peer: Peer, server: Server, inputs: Inputs, results: Results, quiet: Quiet
) -> list[Rate]:
    """One row a request, each wire that has a peak."""
    found = []
    for wire in peer.wires:
        half = results.rate(peer.name, wire.name, 1, CONNECTIONS) / 2
        if not half > 0:
            continue
        request, _ = checked_request(server, wire, inputs, 1)
        load = partial(offer, server.port_of(wire), request, half, connections=CONNECTIONS)
        load(WARM_UP_S, grpc=wire.grpc)
        for arrivals in get_args(Arrivals):
            run = partial(load, SECONDS, grpc=wire.grpc, arrivals=arrivals)
            got, others = quiet.measure(run, server)
            p50, p99 = np.percentile(got.latency_ms, (50, 99))
            late = float(np.percentile(got.late_ms, 99))
            failed = int((~got.accepted).sum()) + got.broken
            found.append(
                Rate(wire.name, arrivals, half, float(p50), float(p99), late, failed, others)
            )
    return found
