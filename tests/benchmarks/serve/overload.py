"""Load our server with ten times its peak: count answers and refusals, then measure it again.

`python -m tests.benchmarks.serve.overload [--seconds N | --full]`. The flood is open loop: a
request that is due while all connections wait for an answer is not sent, and counted. One core in
Python offers some ten thousand requests a second: ten times the peak where an answer takes
milliseconds to compute, as a score of many draws does. Of answers that take less than a refusal of
all the rest, one core cannot ask for ten times the peak: for these the server gets a part of its
core alone, calm or not. What was reached is printed.
"""

import argparse
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from serving.bundle import open_bundle
from serving.engine import Engine
from serving.protocol import open_inference_pb2 as pb
from serving.protocol.http_body import decode_response, encode_request
from serving.protocol.messages import InferRequest
from tests.benchmarks.serve.catalog import AT_PEAK, OURS, Peer
from tests.benchmarks.serve.cells import checked_request, peak
from tests.benchmarks.serve.exchanges import Answer
from tests.benchmarks.serve.inputs import Array, Inputs, prepare_inputs
from tests.benchmarks.serve.load import two_cores
from tests.benchmarks.serve.noise import Quiet
from tests.benchmarks.serve.openloop import ask, offer
from tests.benchmarks.serve.servers import NotMeasured, Server, running
from tests.benchmarks.serve.slow import slowed
from tests.benchmarks.serve.wires import (
    HEADER_LENGTH,
    V2_BINARY,
    V2_GRPC,
    V2_JSON,
    Request,
    Wire,
    grpc_request,
)

FACTOR = 10
SLOW = 24
"""Part of its core that the server gets where an answer is cheap."""
SETTLE_S = 4.0
"""Seconds in which a slow server takes the connections of the flood."""
WORST = 5
"""Limit of the p99 of accepted requests, as a multiple of the calm p99."""
CONNECTIONS = 1000
"""Below the 1,024 that our server holds, so that it refuses requests, not connections."""
CHEAP_CONNECTIONS = 320
"""Ten times those of the peak, where a refusal costs as much as an answer: each waits for all
others of its turn."""
CALM_CONNECTIONS = 32
CALM_S = 10


@dataclass(frozen=True, slots=True)
class Flood:
    """The request, and the server that gets it."""

    wire: Wire
    draws: int
    """Draws of `score`; 0 stands for `reconstruct`."""
    most: int
    """Requests that the server admits at a time; the connections of its peak."""
    slow: int = 1
    """The server gets one part of so many of its core."""

    @property
    def name(self) -> str:
        """Return operation and wire format."""
        what = f"score of {self.draws} draws" if self.draws else "reconstruct"
        core = f", on 1/{self.slow} of a core" if self.slow > 1 else ""
        return f"{what}, one row, {self.wire.name}{core}"

    @property
    def server(self) -> Peer:
        """Return our server, with this limit of requests."""
        return replace(OURS, command=(*OURS.command, "--max-requests", str(self.most)))


FLOODS = (
    *(Flood(wire, draws=200, most=6) for wire in (V2_BINARY, V2_JSON, V2_GRPC)),
    *(Flood(wire, draws=0, most=AT_PEAK, slow=SLOW) for wire in (V2_BINARY, V2_GRPC)),
    Flood(V2_BINARY, draws=0, most=AT_PEAK),
)


def measure(
    inputs: Inputs, quiet: Quiet, seconds: float, floods: Iterable[Flood] = FLOODS
) -> Iterator[str]:
    """Return a few lines for each overload, each on a new server."""
    for flood in floods:
        yield f"{flood.name}; --max-requests {flood.most}"
        with running(flood.server, inputs, quiet.cores[0]) as server:
            try:
                with slowed(server.processes(), flood.slow) if flood.slow > 1 else nullcontext():
                    yield from lines(server, flood, inputs, quiet, seconds)
            except (ValueError, KeyError, OSError, NotMeasured) as err:
                yield f"  not measured: {type(err).__name__}: {err}"


def lines(
    server: Server, flood: Flood, inputs: Inputs, quiet: Quiet, seconds: float
) -> Iterator[str]:
    """Measure calm, overload, and calm again."""
    wire = flood.wire
    if flood.draws:
        request, size = checked_score(server, wire, inputs, flood.draws)
    else:
        request, size = checked_request(server, wire, inputs, 1)
    load = partial(offer, server.port_of(wire), request, grpc=wire.grpc)
    top_of = partial(peak, server, wire, request, flood.most, 3, size)
    top = quiet.measure(top_of, server)[0].requests_s
    calm = partial(load, top / 2, CALM_S, connections=CALM_CONNECTIONS)
    before, _ = quiet.measure(calm, server)
    rss_before = server.rss_mib()
    connections = CHEAP_CONNECTIONS if flood.slow > 1 else CONNECTIONS
    settle_s = SETTLE_S if flood.slow > 1 else 0.0
    run = partial(
        load, FACTOR * top, seconds, connections=connections, drop=True, settle_s=settle_s
    )
    many, others = quiet.once(run, server)
    rss_flood = server.rss_mib()
    after, rss_after = calm(), server.rss_mib()
    again = top_of().requests_s
    accepted, refused = many.accepted, many.refused
    other = len(many.status) - int(accepted.sum()) - int(refused.sum())
    calm_ms = before.latency_ms[before.accepted]
    ratio = _p(many.latency_ms[accepted], 99) / _p(calm_ms, 99)
    reached = many.sent_s / top
    holds = "holds" if ratio <= WORST and reached >= FACTOR * 0.99 else "does not hold"
    yield (
        f"  peak      {top:,.0f} requests/s; calm, at half of it: {_show(calm_ms)}, "
        f"{before.refused.sum():,} of {len(before.status):,} refused"
    )
    yield (
        f"  offered   {many.sent_s:,.0f} requests/s for {seconds:.0f} s, {reached:.3g}x "
        f"the peak (wanted {FACTOR}x), on {connections} connections; "
        f"{many.unsent:,} due when none was free, not sent; others took {others:.2f} cores"
    )
    yield (
        f"  accepted  {accepted.sum():,} ({accepted.sum() / seconds:,.0f}/s), "
        f"{_show(many.latency_ms[accepted])}; p99 / calm p99 {ratio:.3g}, "
        f"at most {WORST} at {FACTOR}x the peak: {holds}"
    )
    yield f"  refused   {refused.sum():,} with 429 or 503, {_show(many.latency_ms[refused])}"
    yield f"  others    {other:,} other answers, {many.broken:,} without an answer"
    memory = f"{rss_before:.0f} MiB, {rss_flood:.0f} MiB right after, {rss_after:.0f} MiB later"
    yield f"  memory    {memory}"
    failed = len(after.status) - int(after.accepted.sum()) + after.broken
    yield (
        f"  after     {_show(after.latency_ms[after.accepted])} right after, {failed} failed; "
        f"peak {again:,.0f} requests/s, {again / top:.3g}x of before"
    )


def checked_score(server: Server, wire: Wire, inputs: Inputs, draws: int) -> tuple[Request, int]:
    """Return the request, once its answer has the engine's bytes, and the answer's size."""
    x = inputs.x[:1]
    request = score_request(wire, x, draws)
    answer = ask(server.port_of(wire), request, grpc=wire.grpc)
    if answer.status != 200:
        raise ValueError(f"status {answer.status}: {answer.body[:200]!r}")
    right = Engine(open_bundle(inputs.bundle)).score(x, draws, seed=0)["elbo"]
    if (got := _elbo(wire, answer)).tobytes() != right.tobytes():
        raise ValueError(f"wrong answer: {got}, should be {right}")
    return request, len(answer.body)


def score_request(wire: Wire, x: Array, draws: int) -> Request:
    """Return a request to score rows of bytes with so many draws each."""
    parameters = {"num_samples": draws}
    if wire.grpc:
        message = pb.ModelInferRequest(model_name="score", raw_input_contents=[x.tobytes()])
        message.parameters["num_samples"].int64_param = draws
        message.inputs.add(name="x", datatype="UINT8", shape=x.shape)
        return grpc_request(message.SerializeToString())
    path = "/v2/models/score/infer"
    if wire is V2_JSON:
        data = x.ravel().tolist()
        tensor = {"name": "x", "shape": x.shape, "datatype": "UINT8", "data": data}
        body = json.dumps({"parameters": parameters, "inputs": [tensor]}).encode()
        return Request(path, body, {"content-type": "application/json"})
    body, length = encode_request(InferRequest("score", {"x": x}, parameters=parameters))
    return Request(path, body, {HEADER_LENGTH: str(length)})


def _elbo(wire: Wire, answer: Answer) -> Array:
    if not wire.grpc:
        return decode_response(answer.body, answer.headers.get(HEADER_LENGTH)).outputs["elbo"]
    reply = pb.ModelInferResponse.FromString(answer.body[5:])
    place = [output.name for output in reply.outputs].index("elbo")
    return np.frombuffer(reply.raw_output_contents[place], np.float32)


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
    parser.add_argument("--cheap", action="store_true", help="only the cheapest request, slowed")
    given = parser.parse_args()
    quiet = Quiet(two_cores())
    inputs = prepare_inputs(given.preset)
    os.sched_setaffinity(0, {quiet.cores[1]})
    seconds = 120 if given.full else given.seconds
    floods = tuple(each for each in FLOODS if each.slow > 1) if given.cheap else FLOODS
    for line in measure(inputs, quiet, seconds, floods):
        print(line, flush=True)


if __name__ == "__main__":
    main()
