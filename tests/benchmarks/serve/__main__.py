"""Compare our server with others in one run: `make bench-serve`.

All have the same graph, machine and client; each server runs alone on the first core, the load on
the second. Machines are noisy: the servers take turns, and the best of each cell is compared.
This is a benchmark, not a test.
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterable
from functools import partial

from tests.benchmarks.serve import cells, inputs, overload, pairs, pairs_report, rates, report
from tests.benchmarks.serve.catalog import OURS, PEERS, TRITON
from tests.benchmarks.serve.load import Load, two_cores
from tests.benchmarks.serve.noise import Quiet
from tests.benchmarks.serve.servers import NotMeasured, install, running

NAMES = (*PEERS, "rates", "overload")


def main() -> None:
    """Install the servers, measure them in turns, and print the report."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and stop the servers
    given = parse()
    server_core, load_core = two_cores()
    unknown = set(given.only) - set(NAMES)
    if unknown:
        print(f"--only takes {', '.join(NAMES)}, got {', '.join(unknown)}", file=sys.stderr)
        sys.exit(2)
    peers = [peer for name, peer in PEERS.items() if name in given.only]
    absent: dict[str, str] = {}
    for peer in peers:
        say(f"installing {peer.name}")
        try:
            install(peer)
        except NotMeasured as err:
            absent[peer.name] = str(err)
    bench = inputs.prepare_inputs(given.preset)
    os.sched_setaffinity(0, {load_core})
    what = f"real MNIST rows of 784 bytes; reconstruct.onnx of preset {given.preset}, one epoch"
    show("", report.header(peers, server_core, load_core, what))

    quiet, results = Quiet((server_core, load_core)), cells.Results()
    floor = dict.fromkeys(cells.ROWS, Load(0, 0, 0))
    found: dict[str, report.Footprint] = {}
    for turn in range(given.turns):
        for rows in cells.ROWS:
            run = partial(inputs.floor, bench, rows, given.seconds, server_core)
            runs_s, others = quiet.measure(run)
            load = Load(runs_s, 0, 0, others)
            floor[rows] = max(floor[rows], load, key=lambda each: each.requests_s)
        for peer in peers:
            if peer.name in absent or peer.fragile:
                continue
            say(f"turn {turn + 1} of {given.turns}: {peer.name}")
            try:
                with running(peer, bench, server_core) as server:
                    before = server.rss_mib()
                    cells.measure(peer, server, bench, given.seconds, results, quiet)
                    times = server.ready_s, server.announced_s
                    found[peer.name] = report.Footprint(*times, before, server.rss_mib())
            except NotMeasured as err:
                absent[peer.name] = str(err)
    beside: list[pairs.Comparison] = []
    if TRITON in peers and TRITON.name not in absent:
        say(f"{TRITON.name} and {OURS.name} in turns, cell by cell")
        halves = "rates" in given.only
        try:
            beside.append(
                pairs.compare(TRITON, bench, given.seconds, given.pairs, quiet, tell, halves=halves)
            )
        except NotMeasured as err:
            absent[TRITON.name] = str(err)
    for one in beside:
        one.add_to(results)
    show("peak", report.loads(peers, results, absent, floor))
    show("readiness and memory", report.footprints(found))

    at_half: list[rates.Rate] = []
    if OURS in peers and OURS.name not in absent and "rates" in given.only:
        say("half of the peak")
        with running(OURS, bench, server_core) as server:
            at_half = rates.measure(OURS, server, bench, results, quiet)
        show("vae at half of its peak, one row a request, open loop", report.rates(at_half))
    for one in beside:
        show(f"{OURS.name} beside {one.version}", pairs_report.comparison(one))
    show("must hold", report.goals(results, floor, at_half))
    for one in beside:
        show("", pairs_report.goals(one))
    if OURS.name not in absent and "overload" in given.only:
        seconds = 120 if given.full else 20
        say(f"overload, {seconds} s for each flood")
        show("overload", overload.measure(bench, quiet, seconds))


def parse() -> argparse.Namespace:
    """Parse the arguments."""
    parser = argparse.ArgumentParser(description="Our server beside others")
    parser.add_argument("--seconds", type=int, default=3, help="of each cell  [default: 3]")
    parser.add_argument("--turns", type=int, default=2, help="of each server  [default: 2]")
    parser.add_argument(
        "--pairs", type=int, default=3, help="turns of each cell beside Triton  [default: 3]"
    )
    parser.add_argument("--preset", default="seed", help="of the model  [default: seed]")
    parser.add_argument("--full", action="store_true", help="overload for 120 s, not for 20 s")
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=list(NAMES), help=", ".join(NAMES)
    )
    return parser.parse_args()


def say(text: str) -> None:
    """Print progress to stderr."""
    print(text, file=sys.stderr, flush=True)


def tell(pair: pairs.Pair) -> None:
    """Print a pair to stderr when it is done, since all of them take minutes."""
    for line in pairs_report.summary(pair):
        say(f"  {line}")


def show(title: str, lines: Iterable[str]) -> None:
    """Print one section."""
    if title:
        print(f"\n{title}", flush=True)
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
