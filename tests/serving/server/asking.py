"""Clients that send requests in a loop and compare every answer with the version it names."""

import contextlib
import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import numpy as np

from serving import Client
from serving.engine import Engine
from serving.protocol import open_inference_pb2 as pb
from serving.protocol.messages import DATATYPES
from tests.serving.running import Running

PATIENCE_S = 30
PAUSE_S = 0.002
"""Seconds between two requests of a client, so that the server is not overloaded."""
RENEW = 25
"""Requests on one connection; a new one may reach another worker."""

Answer = tuple[str, Mapping[str, bytes]]
"""The version that an answer names, and the bytes of its outputs."""


@dataclass(frozen=True, slots=True)
class Case:
    """A request to any operation."""

    operation: str
    inputs: Mapping[str, np.ndarray]
    parameters: Mapping[str, int] = field(default_factory=dict)

    def answer_of(self, engine: Engine) -> dict[str, bytes]:
        """Return the bytes that a version must answer."""
        if self.operation == "sample":
            outputs = {"x_loc": engine.sample(**self.parameters)}
        elif self.operation == "score":
            outputs = engine.score(self.inputs["x"], **self.parameters)
        else:
            outputs = engine.run(self.operation, self.inputs)
        return {name: array.tobytes() for name, array in outputs.items()}


_X = np.random.default_rng(5).integers(0, 256, (9, 6, 5), dtype=np.uint8)
CASES = (
    Case("encode", {"x": _X[:2]}),
    Case("decode", {"z": np.random.default_rng(6).standard_normal((3, 3)).astype(np.float32)}),
    Case("reconstruct", {"x": _X[2:3]}),
    Case("sample", {}, {"num_samples": 2, "seed": 11}),
    Case("score", {"x": _X[3:7]}, {"num_samples": 3, "seed": 12}),
)

Ask = Callable[[Case], Answer]


@contextmanager
def binary(server: Running) -> Iterator[Ask]:
    """Send requests over REST in binary, with our own client."""
    with Client(server.rest) as client:

        def ask(case: Case) -> Answer:
            answer = client.infer(case.operation, case.inputs, **case.parameters)
            return answer.version, {n: array.tobytes() for n, array in answer.outputs.items()}

        yield ask


@contextmanager
def plain(server: Running) -> Iterator[Ask]:
    """Send requests over REST in JSON, with a client of HTTP."""
    with httpx.Client(base_url=server.rest, timeout=PATIENCE_S) as client:

        def ask(case: Case) -> Answer:
            answer = client.post(f"/v2/models/{case.operation}/infer", json=body(case))
            assert answer.status_code == 200, f"{answer.status_code} {answer.text}"
            content = answer.json()
            outputs = {
                output["name"]: np.array(output["data"], np.float32).tobytes()
                for output in content["outputs"]
            }
            return content["model_version"], outputs

        yield ask


@contextmanager
def over_grpc(server: Running) -> Iterator[Ask]:
    """Send requests over gRPC with raw tensors."""
    # a channel of its own: grpc shares connections between channels to one address
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(server.grpc, options=options) as channel:
        call: Any = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )

        def ask(case: Case) -> Answer:
            reply = call(message(case), timeout=PATIENCE_S)
            names = [output.name for output in reply.outputs]
            return reply.model_version, dict(zip(names, reply.raw_output_contents, strict=True))

        yield ask


Transport = Callable[[Running], AbstractContextManager[Ask]]
TRANSPORTS: Mapping[str, Transport] = {"binary": binary, "json": plain, "grpc": over_grpc}


def body(case: Case) -> dict[str, Any]:
    """Return the request in JSON."""
    inputs = [
        {
            "name": name,
            "datatype": DATATYPES[array.dtype],
            "shape": array.shape,
            "data": array.ravel().tolist(),
        }
        for name, array in case.inputs.items()
    ]
    return {"inputs": inputs, "parameters": dict(case.parameters)}


def message(case: Case) -> pb.ModelInferRequest:
    """Return the request for gRPC."""
    request = pb.ModelInferRequest(model_name=case.operation)
    for name, array in case.inputs.items():
        request.inputs.add(name=name, datatype=DATATYPES[array.dtype], shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    for name, value in case.parameters.items():
        request.parameters[name].int64_param = value
    return request


@dataclass(slots=True)
class AnswerCounts:
    """The results of the requests."""

    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Correct answers, by transport and version."""
    wrong: list[str] = field(default_factory=list)
    """Answers whose bytes are not those of the version that they name."""
    failed: list[str] = field(default_factory=list)
    """Requests that got no answer, or an error."""

    def more_than(self, before: Mapping[tuple[str, str], int], version: str) -> bool:
        """Whether a version has answered over every transport since `before`."""
        keys = [(transport, version) for transport in TRANSPORTS]
        return all(self.answers[key] > before.get(key, 0) + 3 for key in keys)

    def by(self, transport: str) -> set[str]:
        """Return the versions that answered over one transport."""
        return {version for name, version in self.answers if name == transport}


@contextmanager
def asking(
    server: Running, engines: Mapping[str, Engine], transports: Sequence[str] = tuple(TRANSPORTS)
) -> Iterator[AnswerCounts]:
    """Send requests over all transports while the block runs; `engines` has every version's."""
    expected = {
        version: [case.answer_of(engine) for case in CASES] for version, engine in engines.items()
    }
    counts, stop = AnswerCounts(), threading.Event()

    def ask_on(transport: str) -> None:
        number = 0
        while not stop.is_set():
            with TRANSPORTS[transport](server) as ask:
                for _ in range(RENEW):
                    number += 1
                    place = number % len(CASES)
                    try:
                        version, outputs = ask(CASES[place])
                    except Exception as err:  # noqa: BLE001 - every failure counts
                        counts.failed.append(f"{transport}, {CASES[place].operation}: {err!r}")
                        break
                    if outputs == expected.get(version, [{}] * len(CASES))[place]:
                        counts.answers[(transport, version)] += 1
                    else:
                        counts.wrong.append(f"{transport}, {CASES[place].operation}, {version}")
                    if stop.wait(PAUSE_S):
                        break

    threads = [threading.Thread(target=ask_on, args=(transport,)) for transport in transports]
    with ExitStack() as stack:
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
        stack.callback(stop.set)
        yield counts


def wait_for(
    what: str,
    condition: Callable[[], object],
    server: Running | None = None,
    *,
    patience_s: float = PATIENCE_S,
) -> None:
    """Wait until the condition holds; while the server cannot be reached, it does not."""
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        with contextlib.suppress(httpx.TransportError, OSError):
            if condition():
                return
        time.sleep(0.02)
    log = server.log.read_text()[-4000:] if server else ""
    raise AssertionError(f"within {patience_s} s it never came true that {what}\n{log}")


def metrics(server: Running) -> dict[str, float]:
    """Return every sample of `/metrics` by name and labels."""
    text = _get(server, "/metrics").decode()
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def ready(server: Running) -> dict[str, Any]:
    """Return the body of the readiness route, over a new connection."""
    return dict(json.loads(_get(server, "/v2/health/ready")))


def _get(server: Running, path: str) -> bytes:
    # a client of httpx takes longer to make than a request
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().read()


REQUEST = json.dumps(body(CASES[0])).encode()
PATH = f"/v2/models/{CASES[0].operation}/infer"


def head(length: int, *lines: str) -> bytes:
    """Return the head of an inference request with a body of `length` bytes."""
    lines = (f"POST {PATH} HTTP/1.1", "host: here", f"content-length: {length}", *lines)
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
