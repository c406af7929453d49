"""Our latency at half of the peak, with arrivals at even distances and at random ones."""

from dataclasses import dataclass
from typing import get_args

import numpy as np

from tests.benchmarks.serve.catalog import Peer
from tests.benchmarks.serve.cells import Results, checked_request
from tests.benchmarks.serve.inputs import Inputs
from tests.benchmarks.serve.openloop import Arrivals, offer
from tests.benchmarks.serve.servers import Server

CONNECTIONS = 32


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

    @property
    def spread(self) -> float:
        """p99 / p50."""
        return self.p99_ms / self.p50_ms


def measure(
    peer: Peer, server: Server, inputs: Inputs, seconds: int, results: Results, turns: int
) -> list[Rate]:
    """One row a request; of several turns, the one with the lowest p99."""
    found = []
    for wire in peer.wires:
        half = results.rate(peer.name, wire.name, 1, CONNECTIONS) / 2
        if not half > 0:
            continue
        request, _ = checked_request(server, wire, inputs, 1)
        for arrivals in get_args(Arrivals):
            best: Rate | None = None
            for _ in range(turns):
                got = offer(
                    server.port_of(wire),
                    request,
                    half,
                    seconds,
                    connections=CONNECTIONS,
                    grpc=wire.grpc,
                    arrivals=arrivals,
                )
                p50, p99 = np.percentile(got.latency_ms, (50, 99))
                late = float(np.percentile(got.late_ms, 99))
                failed = int((~got.accepted).sum()) + got.broken
                rate = Rate(wire.name, arrivals, half, float(p50), float(p99), late, failed)
                best = rate if best is None or rate.p99_ms < best.p99_ms else best
            if best:
                found.append(best)
    return found
