"""Our server under ten times the load that it can take: who is served, who is refused, and after.

`python -m tests.benchmarks.serve.overload [--seconds N | --full]`. The flood is open loop: a
request that is due while all connections wait for an answer is not sent, and counted. One core in
Python offers some ten thousand requests a second; what was reached is printed.
"""

import argparse
import os
from collections.abc import Iterator
from functools import partial

import numpy as np

from tests.benchmarks.serve.catalog import AT_PEAK, BOUNDED, OURS
from tests.benchmarks.serve.cells import checked_request, peak
from tests.benchmarks.serve.inputs import Array, Inputs, prepare_inputs
from tests.benchmarks.serve.load import two_cores
from tests.benchmarks.serve.noise import Quiet
from tests.benchmarks.serve.openloop import offer
from tests.benchmarks.serve.servers import Server, running
from tests.benchmarks.serve.wires import Wire

FACTOR = 10
CONNECTIONS = 1000
"""Below the 1,024 that our server holds, so that it has to refuse requests, not connections."""
FLOODS = (("binary", 1), ("JSON", 1), ("gRPC", 1), ("binary", 64))
"""Wires and rows a request."""
CALM_S = 5


def measure(inputs: Inputs, quiet: Quiet, seconds: float) -> Iterator[str]:
    """A few lines for each flood, each on a fresh server."""
    yield f"setting   {BOUNDED.setting}"
    wires = {wire.name: wire for wire in OURS.wires}
    for name, rows in FLOODS:
        with running(BOUNDED, inputs, quiet.cores[0]) as server:
            try:
                yield from flood(server, wires[name], rows, inputs, quiet, seconds)
            except (ValueError, KeyError, OSError) as err:
                yield f"{name}, rows a request: {rows}, not measured: {type(err).__name__}: {err}"


def flood(
    server: Server, wire: Wire, rows: int, inputs: Inputs, quiet: Quiet, seconds: float
) -> Iterator[str]:
    """Calm, flood, and calm again."""
    port = server.port_of(wire)
    request, size = checked_request(server, wire, inputs, rows)
    load = partial(offer, port, request, grpc=wire.grpc)
    top = quiet.measure(partial(peak, server, wire, request, AT_PEAK, 3, size), server)[
        0
    ].requests_s
    calm = partial(load, top / 2, CALM_S, connections=AT_PEAK)
    before, _ = quiet.measure(calm, server)
    rss_before = server.rss_mib()
    run = partial(load, FACTOR * top, seconds, connections=CONNECTIONS, drop=True)
    many, others = quiet.once(run, server)
    rss_flood = server.rss_mib()
    after, rss_after = calm(), server.rss_mib()
    again = peak(server, wire, request, AT_PEAK, 3, size).requests_s
    accepted, refused = many.accepted, many.refused
    other = len(many.status) - int(accepted.sum()) - int(refused.sum())
    ratio = _p(many.latency_ms[accepted], 99) / _p(before.latency_ms, 99)
    yield f"{wire.name}, rows a request: {rows}, peak {top:,.0f} requests/s"
    yield (
        f"  offered   {many.sent_s:,.0f} requests/s for {seconds:.0f} s, {many.sent_s / top:.3g}x "
        f"the peak (wanted {FACTOR}x), on {CONNECTIONS} connections; "
        f"{many.unsent:,} due when none was free, not sent; others took {others:.2f} cores"
    )
    yield (
        f"  accepted  {accepted.sum():,} ({accepted.sum() / seconds:,.0f}/s), "
        f"{_show(many.latency_ms[accepted])}; calm: {_show(before.latency_ms)}; "
        f"p99 / calm p99 {ratio:.3g}"
    )
    yield f"  refused   {refused.sum():,} with 429 or 503, {_show(many.latency_ms[refused])}"
    yield f"  others    {other:,} other answers, {many.broken:,} without an answer"
    memory = f"{rss_before:.0f} MiB, {rss_flood:.0f} MiB right after, {rss_after:.0f} MiB later"
    yield f"  memory    {memory}"
    yield (
        f"  after     {_show(after.latency_ms)} right after, "
        f"{len(after.status) - int(after.accepted.sum()) + after.broken} failed; "
        f"peak {again:,.0f} requests/s, {again / top:.3g}x of before"
    )


def _p(values: Array, percent: float) -> float:
    return float(np.percentile(values, percent)) if len(values) else float("nan")


def _show(values: Array) -> str:
    return f"p50 {_p(values, 50):.3g} ms, p99 {_p(values, 99):.3g} ms"


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description="Flood our server")
    parser.add_argument("--seconds", type=int, default=20, help="of the flood")
    parser.add_argument("--full", action="store_true", help="120 seconds")
    parser.add_argument("--preset", default="seed", help="of the model")
    given = parser.parse_args()
    quiet = Quiet(two_cores())
    inputs = prepare_inputs(given.preset)
    os.sched_setaffinity(0, {quiet.cores[1]})
    seconds = 120 if given.full else given.seconds
    for line in measure(inputs, quiet, seconds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
