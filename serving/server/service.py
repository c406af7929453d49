"""The inference service that all transports share: one version of the model at a time.

Transports convert a request, call `Service.infer`, and convert its answer. A request is answered by
the version that served when it arrived: a swap is one assignment, and the old version still answers
the requests in its queue.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version as installed_version
from typing import Any, TypeVar

from serving.bundle import Bundle
from serving.engine import Engine
from serving.errors import DataRefused, NotFound, NotReady, UsageRefused
from serving.operations import Operation
from serving.protocol.messages import (
    MAX_ROWS,
    InferRequest,
    InferResponse,
    wire_tensor,
)
from serving.server.batching import Admission, Batcher
from serving.server.metrics import statistics
from serving.server.request_inputs import (
    check_names,
    check_size,
    match_inputs,
    plan_noise,
)
from serving.server.sampling import RowSampler
from serving.server.shared_counters import OPERATIONS, SharedCounters
from serving.server.table_requests import RequestTable
from serving.server.warm_up import warm_up
from serving.table_cells import TableCells

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
INLINE_NORMALS = 2**15
"""More are drawn in the thread, so that the event loop need not wait for them."""
INLINE_CELLS = 2**10
"""More cells of a table are read in the thread, for the same reason."""
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class LoadedVersion:
    """A version whose graphs are open, checked and warmed up."""

    engine: Engine
    batcher: Batcher
    name: str
    version: str
    table: RequestTable | None = None
    """The columns of the model's table, if it has a schema."""
    columns: frozenset[str] = frozenset()
    """Their names, kept since every request asks for them."""
    example: Mapping[str, Any] | None = None
    """A request of one row of the table by columns, in JSON."""

    @property
    def number(self) -> str:
        """The version as a number, which perf_analyzer needs: the digest's, if it has none."""
        return self.version if self.version.isdecimal() else str(int(self.version, 16))

    @property
    def bundle(self) -> Bundle:
        """The bundle it was opened from."""
        return self.engine.bundle


class Service:
    """Answers requests with the version that is loaded.

    Args:
        counters: the counters and flags that all workers share.
        max_requests: requests that may be in progress at a time.
        max_rows: rows times draws that may wait for one version.
        timeout_s: deadline of a request that gives none.
    """

    def __init__(
        self, counters: SharedCounters, *, max_requests: int, max_rows: int, timeout_s: float
    ) -> None:
        self.counters = counters
        self.admission = Admission(max_requests)
        self.max_rows = max_rows
        self.timeout_s = timeout_s
        self.refused: Mapping[str, str] | None = None
        """The `version` that was refused, and the `reason`."""
        self.decision: Mapping[str, str] | None = None
        """Why the version is served, as the ledger's record has it; see `ServedVersion`."""
        self.sampler = RowSampler(None, counters)
        """Hands some of the answered rows to the observer."""
        self._served: LoadedVersion | None = None
        self._executor = ThreadPoolExecutor(1, "engine")

    def load(self, engine: Engine, name: str | None, version: str | None) -> LoadedVersion:
        """Check and warm up a version without serving it yet; slow, and safe in any thread.

        Raises:
            VerificationFailed: its outputs differ from torch's by more than the tolerance.
        """
        engine.self_check()
        batcher = Batcher(
            engine.compute, warm_up(engine), self._executor, self.max_rows, self.counters
        )
        digest, schema = engine.bundle.manifest.digest, engine.bundle.manifest.schema
        table = RequestTable(schema) if schema else None
        return LoadedVersion(
            engine,
            batcher,
            name or engine.bundle.path.name,
            version or digest[:12],
            table,
            table.names if table else frozenset(),
            table.example(engine.bundle.golden()["encode.x"][:1]) if table else None,
        )

    def serve(self, loaded: LoadedVersion) -> None:
        """Answer with this version from now on; the old one still answers its queue."""
        if self._served is not None:
            self.counters.add("reloads")
        self._served = loaded

    @property
    def served(self) -> LoadedVersion:
        """The version that answers.

        Raises:
            NotReady: no version is loaded yet.
        """
        if self._served is None:
            raise NotReady("no version is loaded yet")
        return self._served

    @property
    def full(self) -> bool:
        """Whether to refuse a new request before it is read."""
        return self.admission.full or (self._served is not None and self._served.batcher.full)

    def room(self) -> int:
        """Return how many more requests would be accepted now."""
        return 0 if self.full else self.admission.most - self.admission.under_way

    @property
    def ready(self) -> bool:
        """Whether the server takes requests."""
        return self._served is not None and not self.draining

    @property
    def draining(self) -> bool:
        """Whether the server is about to stop."""
        return self.counters.get("draining") > 0

    def labels(self) -> dict[str, str]:
        """Return the model, version and digest that is served; empty before the first is loaded."""
        if self._served is None:
            return {"model": "", "version": "", "digest": ""}
        served = self._served
        digest = served.bundle.manifest.digest
        return {"model": served.name, "version": served.version, "digest": digest}

    def operation(self, name: str, version: str = "") -> tuple[LoadedVersion, Operation]:
        """Find the operation that a request names.

        Raises:
            NotFound: there is no such operation, or another version is served.
            NotReady: no version is loaded yet.
        """
        served = self.served
        operation = served.engine.operations.get(name)
        if operation is None:
            known = ", ".join(served.engine.operations)
            raise NotFound(f"no model {name!r}: there are {known}")
        if version and version != served.version:
            raise NotFound(f"{name} is served in version {served.version}, not {version!r}")
        return served, operation

    def is_loaded(self, name: str) -> bool:
        """Whether the operation is loaded: they all are, until they are unloaded."""
        return not self.counters.get(f"unloaded.{name}")

    def set_loaded(self, name: str, loaded: bool) -> None:
        """Load or unload an operation, on all workers; loading one also polls the registry."""
        self.operation(name)
        self.counters.set_flag(f"unloaded.{name}", value=float(not loaded))
        if loaded:
            self.request_poll()

    def request_poll(self) -> None:
        """Ask the parent process to poll the registry now."""
        self.counters.set_flag("poll_requests", value=self.counters.get("poll_requests") + 1)

    async def infer(self, request: InferRequest, deadline_s: float | None = None) -> InferResponse:
        """Run one operation.

        Args:
            request: the request that a transport has read.
            deadline_s: seconds until the transport's own deadline, if it has one.

        Raises:
            DataRefused, UsageRefused: the request does not fit the operation.
            NotFound, NotReady: the operation, or this version of it, is not served.
            Overloaded, DeadlineExceeded: too many requests wait.
        """
        served, operation = self.operation(request.model, request.version)
        if not self.is_loaded(operation.name):
            raise NotReady(f"{operation.name} was unloaded: load it to use it")
        check_names(operation, request)
        timeout_s = min(self._timeout(request), deadline_s or self.timeout_s)
        inputs = match_inputs(operation, request)
        cells = await self._read_table(served, request) if request.columns else None
        if cells is not None:
            inputs["x"] = cells.x
        draw = plan_noise(served.engine, operation, request, inputs)
        rows = served.engine.check(operation.name, inputs, "eps" if draw else "")
        num_samples = inputs["eps"].shape[1] if operation.is_drawn else 1
        check_size(rows, num_samples * operation.copies)
        if draw:
            small = inputs["eps"].size <= INLINE_NORMALS
            inputs["eps"] = draw() if small else await self._run(draw)
        outputs = await served.batcher.submit(
            operation.name, inputs, rows, num_samples, time.perf_counter() + timeout_s
        )
        if request.outputs:
            outputs = {name: outputs[name] for name in request.outputs}
        self.sampler.until -= 1
        if self.sampler.until <= 0:
            digest = served.bundle.manifest.digest
            self.sampler.take(
                request, (served.version, digest), inputs, outputs, drawn=draw is not None
            )
        response = InferResponse(operation.name, served.version, outputs, request.id)
        return served.table.answer(request, response, cells) if served.table else response

    async def _run(self, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    async def _read_table(self, served: LoadedVersion, request: InferRequest) -> TableCells:
        """Read the rows of a request by columns as `x`, and count what the schema does not know."""
        if served.table is None:
            raise DataRefused(f"{request.model} takes x, got {', '.join([*request.columns][:5])}")
        read = partial(served.table.read, request.columns)
        size = sum(map(len, request.columns.values()))
        cells = read() if size <= INLINE_CELLS else await self._run(read)
        for name, found in (("unseen_words", cells.unseen), ("new_gaps", cells.new_gaps)):
            if found:
                self.counters.add(name, request.model, value=sum(found.values()))
        return cells

    def record(self, transport: str, operation: str, status: int, started: float) -> None:
        """Count an answer, and the seconds since its request was read."""
        if operation not in OPERATIONS:
            return
        self.counters.add("requests", operation, transport, status)
        if status == 200:
            self.counters.observe("request", operation, time.perf_counter() - started)

    def server_metadata(self) -> dict[str, Any]:
        """Return the name, version and extensions of the server."""
        return {
            "name": "vae-pipeline",
            "version": installed_version("vae-pipeline"),
            "extensions": [*EXTENSIONS],
        }

    def model_metadata(self, name: str, version: str = "") -> dict[str, Any]:
        """Describe an operation's tensors: names, datatypes and shapes."""
        served, operation = self.operation(name, version)
        return {
            "name": name,
            "versions": [served.version],
            "platform": "onnxruntime_onnx",
            "inputs": [wire_tensor(tensor) for tensor in operation.inputs],
            "outputs": [wire_tensor(tensor) for tensor in operation.outputs],
            "parameters": {
                "model": served.name,
                "digest": served.bundle.manifest.digest,
                **(served.table.metadata() if served.table else {}),
            },
        }

    def model_config(self, name: str, version: str = "") -> dict[str, Any]:
        """Describe an operation as a Triton model configuration, which Triton's tools read."""
        _, operation = self.operation(name, version)

        def tensors(side: Any) -> list[dict[str, Any]]:
            return [
                {
                    "name": tensor["name"],
                    "data_type": f"TYPE_{tensor['datatype']}",
                    "dims": tensor["shape"][1:],
                }
                for tensor in map(wire_tensor, side)
            ]

        return {
            "name": name,
            "platform": "onnxruntime_onnx",
            "backend": "onnxruntime",
            "max_batch_size": MAX_ROWS,
            "input": tensors(operation.inputs),
            "output": tensors(operation.outputs),
            "dynamic_batching": {},
        }

    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """Return counts and times of one operation, or of all."""
        names = [self.operation(name, version)[1].name] if name else self.served.engine.operations
        return {"model_stats": [statistics(self.counters, n, self.served.number) for n in names]}

    def index(self, *, only_ready: bool = False) -> list[dict[str, str]]:
        """List the operations, and whether each is loaded."""
        served = self.served
        return [
            {"name": name, "version": served.version, "state": "READY", "reason": ""}
            if self.is_loaded(name)
            else {"name": name, "version": "", "state": "UNAVAILABLE", "reason": "unloaded"}
            for name in served.engine.operations
            if self.is_loaded(name) or not only_ready
        ]

    def _timeout(self, request: InferRequest) -> float:
        """Return the timeout of a request in seconds; it is given in microseconds, as in Triton."""
        timeout = request.parameters.get("timeout")
        if timeout is None:
            return self.timeout_s
        if type(timeout) is not int or timeout < 0:
            raise UsageRefused(f"timeout must be whole microseconds, at least 0, got {timeout!r}")
        return min(timeout / 1e6, self.timeout_s) if timeout else self.timeout_s
