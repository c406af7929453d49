"""Clients that never read their answers: what they take of the server's memory, and of others.

`python -m tests.benchmarks.serve.unread [--clients N] [--seconds N]`. Each client asks for six
megabytes of samples in two requests and reads nothing; meanwhile another client asks as usual.
"""

import argparse
import json
import os
import select
import socket
import time
from collections.abc import Iterator

from serving.protocol import open_inference_pb2 as pb
from tests.benchmarks.serve.catalog import OURS
from tests.benchmarks.serve.cells import checked_request
from tests.benchmarks.serve.exchanges import open_exchange
from tests.benchmarks.serve.inputs import Inputs, prepare_inputs
from tests.benchmarks.serve.load import two_cores
from tests.benchmarks.serve.openloop import ask
from tests.benchmarks.serve.servers import Server, running
from tests.benchmarks.serve.wires import V2_BINARY, V2_GRPC, Request, Wire, grpc_request

DRAWS = 1024
REQUESTS = 2
FIRST = 200
"""Usual requests before it begins, so that the observer of live rows is there, too."""


def lines(
    server: Server, wire: Wire, inputs: Inputs, clients: int, seconds: float
) -> Iterator[str]:
    """Connect all, ask, and watch for some seconds."""
    port = server.port_of(wire)
    usual, _ = checked_request(server, wire, inputs, 1)
    for _ in range(FIRST):
        ask(port, usual, grpc=wire.grpc)
    time.sleep(3)
    before = peak = server.rss_mib()
    poll, open_sockets = select.poll(), dict[int, socket.socket]()
    failed, served, slowest, refused = 0, 0, 0.0, 0
    start = time.perf_counter()

    def others() -> None:
        nonlocal failed, served, slowest, refused, peak
        at = time.perf_counter()
        try:
            status = ask(port, usual, grpc=wire.grpc).status
            served, refused = served + (status == 200), refused + (status == 429)
            failed += status not in (200, 429)
        except OSError:
            failed += 1
        slowest = max(slowest, time.perf_counter() - at)
        peak = max(peak, server.rss_mib())

    greedy = greedy_request(wire)
    for place in range(clients):
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.setblocking(False)
        one.connect_ex(("127.0.0.1", port))
        open_sockets[one.fileno()] = one
        poll.register(one, select.POLLOUT)
        if place % 50 == 49:
            start_all(poll, open_sockets, greedy, wire)
            others()
    closed = 0
    while time.perf_counter() - start < seconds:
        start_all(poll, open_sockets, greedy, wire)
        others()
        time.sleep(0.2)
    for one in open_sockets.values():  # a reset or the end is behind what was never read
        info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)
        closed += info[0] != 1
        one.close()
    time.sleep(3)
    yield f"{wire.name}: {clients} clients that never read, {seconds:.0f} s"
    yield f"  memory  {before:.0f} MiB before, at most {peak:.0f}, {server.rss_mib():.0f} after"
    yield f"  closed  {closed} of them by the server"
    yield (
        f"  others  {served} served, {refused} refused with 429, {failed} without an answer; "
        f"the slowest took {slowest:.2f} s"
    )


def start_all(
    poll: select.poll, sockets: dict[int, socket.socket], request: Request, wire: Wire
) -> None:
    """Send the requests on each socket that has been connected."""
    for descriptor, event in poll.poll(0):
        poll.unregister(descriptor)
        if event & (select.POLLERR | select.POLLHUP):
            continue
        exchange = open_exchange(request, grpc=wire.grpc)
        content = exchange.opening + b"".join(exchange.request() for _ in range(REQUESTS))
        try:
            sockets[descriptor].send(content)
        except OSError:
            continue


def greedy_request(wire: Wire) -> Request:
    """Return a small request with a large answer."""
    if wire.grpc:
        message = pb.ModelInferRequest(model_name="sample")
        message.parameters["num_samples"].int64_param = DRAWS
        return grpc_request(message.SerializeToString())
    content = {"parameters": {"num_samples": DRAWS, "binary_data_output": True}}
    kind = {"content-type": "application/json"}
    return Request("/v2/models/sample/infer", json.dumps(content).encode(), kind)


def main() -> None:
    """Print the lines of both wires, each on a new server."""
    parser = argparse.ArgumentParser(description="Clients that never read")
    parser.add_argument("--clients", type=int, default=2000)
    parser.add_argument("--seconds", type=int, default=45)
    parser.add_argument("--preset", default="seed", help="of the model")
    given = parser.parse_args()
    server_core, load_core = two_cores()
    inputs = prepare_inputs(given.preset)
    os.sched_setaffinity(0, {load_core})
    for wire in (V2_BINARY, V2_GRPC):
        with running(OURS, inputs, server_core) as server:
            for line in lines(server, wire, inputs, given.clients, given.seconds):
                print(line, flush=True)


if __name__ == "__main__":
    main()
