"""Print the resident memory of each process of our server: at rest, under load, at rest again.

`python -m tests.benchmarks.serve.memory [--workers N]`. The largest requests have 4,096 rows, the
most that one may have; those of JSON would be larger than a body may be. The processes are the
parent, the one in which Python tracks resources, and the workers.
"""

import argparse
import time
from dataclasses import replace

from serving.protocol.messages import MAX_ROWS
from tests.benchmarks.serve.catalog import OURS
from tests.benchmarks.serve.cells import checked_request, peak
from tests.benchmarks.serve.inputs import prepare_inputs
from tests.benchmarks.serve.load import two_cores
from tests.benchmarks.serve.servers import Server, running
from tests.benchmarks.serve.wires import V2_BINARY, V2_GRPC, V2_JSON

LOADS = (
    (V2_BINARY, 64, 32),
    (V2_GRPC, 64, 32),
    (V2_BINARY, MAX_ROWS, 8),
    (V2_GRPC, MAX_ROWS, 8),
    (V2_JSON, 512, 8),
)
"""Wire, rows of a request, connections."""
SECONDS = 2
REST_S = 3.0
"""Seconds until the server counts as at rest."""


def main() -> None:
    """Start the server, load it, and print its memory before and after."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=1)
    workers = parser.parse_args().workers
    inputs = prepare_inputs("seed")
    core, _ = two_cores()
    ours = replace(OURS, command=(*OURS.command, "--workers", str(workers)))
    with running(ours, inputs, core) as server:
        time.sleep(REST_S)
        tell("at rest", server)
        for wire, rows, connections in LOADS:
            request, size = checked_request(server, wire, inputs, rows)
            peak(server, wire, request, connections, SECONDS, size)
            tell(f"{wire.name}, {rows} rows, {connections} connections", server)
        time.sleep(REST_S)
        tell("at rest again", server)


def tell(when: str, server: Server) -> None:
    """Print the memory of each process, and of all."""
    each = " + ".join(f"{mib:.0f}" for mib in server.rss_mib_of_each())
    print(f"{when}: {server.rss_mib():.0f} MiB = {each}")


if __name__ == "__main__":
    main()
