"""Run a bundle's operations with onnxruntime: arrays in, arrays out.

The graphs run on the requested device or not at all. CUDA computes in float32, and uses TF32 only
on request. Arrays that do not fit raise `DataRefused`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Bundle
from serving.cuda_graphs import record_sessions
from serving.errors import DataRefused, UsageRefused, VerificationFailed
from serving.input_checks import check_inputs
from serving.noise import draw_eps, draw_noise, draw_rows, noise_vectors
from serving.operations import LATER, Operation, Tensor
from serving.schema import Schema
from serving.sessions import Level, has_float64, open_session, require_device

Array = NDArray[Any]

MAX_BATCH = 1024
"""Rows of one run of a graph; longer inputs are split."""
MAX_CODES = 2**24
"""Columns of words times the codes of the widest, over all rows of a run."""
MAX_DECODED = 4096
"""Rows times noise draws of one run, which bounds memory."""


class _Call(NamedTuple):
    """What a run needs, kept since every request does: names of the graph's inputs and ours."""

    session: Any
    inputs: tuple[tuple[str, str], ...]
    outputs: list[str]


class Engine:
    """Runs the operations of one bundle.

    Args:
        bundle: the verified bundle.
        device: `cpu`, `cuda` or a plugin's, without a fall-back to another (`serving.sessions`).
        threads: threads of one operator on the CPU.
        level: onnxruntime's graph optimisation level.
        tf32: let CUDA round the factors of matrix products to ten bits, for speed.
        cuda_graph: run by CUDA graphs with bound memory what takes no free number of draws.
        operations: what to run, if not all that the bundle has, in the forms that fit the device.

    Raises:
        DeviceUnavailable: the device is missing, or cannot run every node.
        VerificationFailed: a graph does not open, or its tensors differ from the operation table.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "cpu",
        threads: int = 1,
        level: Level = "all",
        tf32: bool = False,
        cuda_graph: bool = False,
        operations: Mapping[str, Operation] | None = None,
    ) -> None:
        self.bundle = bundle
        self.device = device
        self.provider = require_device(device)
        self.operations = operations or bundle.operations_for(float64=has_float64(device))
        # kept, since every request asks for them
        self._unit_range = bundle.manifest.unit_range
        self._max_byte = bundle.manifest.max_byte
        self._gaps = bundle.manifest.schema is not None
        self._most_rows = _most_rows(bundle.manifest.schema)
        graphs = dict.fromkeys(operation.graph for operation in self.operations.values())
        free = {operation.graph for operation in self.operations.values() if operation.is_drawn}
        recorded = graphs.keys() - free if cuda_graph else set()
        self._sessions = {
            graph: open_session(
                bundle.path / graph,
                device,
                threads=threads,
                level=level,
                tf32=tf32,
                cuda_graph=graph in recorded,
            )
            for graph in graphs
        }
        for operation in self.operations.values():
            _check_tensors(self._sessions[operation.graph], operation)
        runners = record_sessions(self._sessions, recorded) if cuda_graph else self._sessions
        self._calls = {
            name: _Call(
                runners[operation.graph],
                tuple(zip(operation.graph_inputs(), names_of(operation.inputs), strict=True)),
                names_of(operation.outputs),
            )
            for name, operation in self.operations.items()
        }

    def run(self, name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Check the inputs and run one operation; all arrays share axis 0, the batch."""
        self.check(name, inputs)
        return self.compute(name, inputs)

    def check(self, name: str, inputs: Mapping[str, Array], drawn: str = "") -> int:
        """Check the inputs of an operation; return the number of rows.

        The values of the input `drawn` were drawn here, and need no check.

        Raises:
            UsageRefused: there is no such operation.
            DataRefused: a tensor is missing, unknown, or of the wrong dtype, shape or value.
        """
        operation = self.require(name)
        return check_inputs(
            operation, inputs, self._unit_range, self._max_byte, drawn, gaps=self._gaps
        )

    def require(self, name: str) -> Operation:
        """Return an operation.

        Raises:
            UsageRefused: there is none of this name, and what to do if others have it.
        """
        if name in self.operations:
            return self.operations[name]
        if name in LATER and (name == "draw" or self._gaps):
            raise UsageRefused(f"this bundle was made before there was {name}: run vae migrate")
        if name in LATER:
            raise UsageRefused(
                f"{name} is about the cells of a table, and this model has whole rows alone: train "
                "one with --likelihood mixed"
            )
        raise UsageRefused(f"operation must be one of {', '.join(self.operations)}, got {name!r}")

    def compute(self, name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one operation on inputs that `check` has passed, split to bound memory."""
        operation = self.operations[name]
        rows = len(inputs[operation.inputs[0].name])
        if rows == 0:
            return {tensor.name: _empty(tensor) for tensor in operation.outputs}
        session, graph_inputs, names = self._calls[name]
        feeds = {graph_name: inputs[given] for graph_name, given in graph_inputs}
        step = min(self._most_rows, max(1, rows_of_a_run(inputs) // operation.copies))
        if rows <= step:
            return dict(zip(names, session.run(names, feeds), strict=True))
        runs = [
            session.run(names, {key: array[start : start + step] for key, array in feeds.items()})
            for start in range(0, rows, step)
        ]
        return {n: np.concatenate(y) for n, y in zip(names, zip(*runs, strict=True), strict=True)}

    def encode(self, x: Array) -> dict[str, Array]:
        """Return the posterior of each row: `z_loc` and `z_scale`, (batch, latent_dim)."""
        return self.run("encode", {"x": x})

    def decode(self, z: Array) -> Array:
        """Return the mean of p(x given z) in the data's units, (batch, *x_shape)."""
        return self.run("decode", {"z": z})["x_loc"]

    def reconstruct(self, x: Array) -> Array:
        """Decode the posterior mean of each row, (batch, *x_shape)."""
        return self.run("reconstruct", {"x": x})["x_loc"]

    def sample(self, num_samples: int, seed: int, *, start: int = 0) -> Array:
        """Return samples `start` to `start + num_samples` of `seed`, (num_samples, *x_shape)."""
        eps = draw_rows(seed, start, start + num_samples, self.bundle.manifest.latent_dim)
        return self.run("sample", {"eps": eps})["x_loc"]

    def draw(self, num_samples: int, seed: int, *, start: int = 0) -> Array:
        """Return rows drawn from the model, of the latents of `sample`, (num_samples, *x_shape)."""
        self.require("draw")
        manifest = self.bundle.manifest
        stop = start + num_samples
        z = draw_rows(seed, start, stop, manifest.latent_dim)
        noise = draw_noise(seed, start, stop, math.prod(manifest.x_shape))
        return self.run("draw", {"z": z, "noise": noise.reshape(-1, *manifest.x_shape)})["x"]

    def score(self, x: Array, num_samples: int, seed: int) -> dict[str, Array]:
        """Return bounds on log p(x) of each row in nats, over `num_samples` draws.

        The draws of a row are those of `seed` and of its own bytes: its score does not depend on
        other rows, and the errors of different rows are independent.
        """
        latent_dim = self.bundle.manifest.latent_dim
        unread = np.broadcast_to(np.float32(0), (len(x), num_samples, latent_dim))
        self.check("score", {"x": x, "eps": unread})
        step = max(1, MAX_DECODED // num_samples)
        runs = []
        for start in range(0, max(1, len(x)), step):
            rows = x[start : start + step]
            eps = draw_eps(rows, seed, num_samples, latent_dim)
            runs.append(self.compute("score", {"x": rows, "eps": eps}))
        return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}

    def self_check(self) -> None:
        """Compare every output with the torch outputs that the bundle carries.

        Raises:
            VerificationFailed: an output differs by more than the tolerance stored beside it.
        """
        golden = self.bundle.golden()
        for name, operation in self.operations.items():
            try:
                self._compare(name, operation, golden)
            except (KeyError, ValueError, TypeError, DataRefused) as err:
                raise VerificationFailed(
                    f"self-check of {self.bundle.path} failed: its golden rows of {operation.label}"
                    f" cannot be used: {err!r}"
                ) from err
        if self.bundle.manifest.schema_version > 1:
            self._compare_noise(golden)

    def _compare_noise(self, golden: Mapping[str, Array]) -> None:
        """Refuse to draw other noise than the bundle's graphs, whose draws it carries."""
        drawn = noise_vectors(golden["score.x"], self.bundle.manifest.latent_dim)
        for key, value in drawn.items():
            if key.startswith("draw_") and "draw" not in self.bundle.operations:
                continue
            if key not in golden or not np.array_equal(value, golden[key]):
                raise VerificationFailed(
                    f"self-check of {self.bundle.path} failed: {key} is not what this machine draws"
                )

    def _compare(self, given: str, operation: Operation, golden: Mapping[str, Array]) -> None:
        inputs = {t.name: golden[f"{operation.label}.{t.name}"] for t in operation.inputs}
        for name, value in self.run(given, inputs).items():
            key = f"{operation.label}.{name}"
            if value.shape != golden[key].shape:
                raise ValueError(f"{name} is {value.shape}, golden is {golden[key].shape}")
            error = float(np.abs(value - golden[key]).max())
            if not error <= golden[f"{key}.budget"]:
                raise VerificationFailed(
                    f"self-check of {self.bundle.path} failed: {operation.label} puts {name} "
                    f"off by {error:.3g}, allowed {golden[f'{key}.budget']:.3g}"
                )

    def placement(self) -> dict[str, int]:
        """Return the number of nodes that each provider runs, over all graphs."""
        counts: dict[str, int] = {}
        for session in self._sessions.values():
            for part in session.get_provider_graph_assignment_info():
                counts[part.ep_name] = counts.get(part.ep_name, 0) + len(part.get_nodes())
        return counts


def _most_rows(schema: Schema | None) -> int:
    """Return the rows of a run that bound memory: graphs give each column of words all codes."""
    sizes = [len(column.words) + 1 for column in schema.columns if column.words] if schema else []
    return max(1, MAX_CODES // (len(sizes) * max(sizes))) if sizes else MAX_BATCH


def _check_tensors(session: Any, operation: Operation) -> None:
    graph_inputs = tuple(
        replace(tensor, name=name)
        for name, tensor in zip(operation.graph_inputs(), operation.inputs, strict=True)
    )
    for side, expected, found in (
        ("inputs", graph_inputs, session.get_inputs()),
        ("outputs", operation.outputs, session.get_outputs()),
    ):
        got = tuple(Tensor(n.name, _numpy_dtype(n.type), tuple(n.shape)) for n in found)
        if got != expected:
            raise VerificationFailed(
                f"{operation.graph} has {side} {got}, but the operation table says {expected}"
            )


def _numpy_dtype(onnx_type: str) -> str:
    return {"tensor(float)": "float32", "tensor(uint8)": "uint8"}.get(onnx_type, onnx_type)


def _empty(tensor: Tensor) -> Array:
    return np.empty([0 if isinstance(axis, str) else axis for axis in tensor.shape], tensor.dtype)


def rows_of_a_run(inputs: Mapping[str, Array]) -> int:
    """Return the number of rows that stay within `MAX_BATCH` and `MAX_DECODED`."""
    eps = inputs.get("eps")
    num_samples = eps.shape[1] if eps is not None and eps.ndim == 3 else 1
    return min(MAX_BATCH, max(1, MAX_DECODED // num_samples))


def names_of(tensors: Iterable[Tensor]) -> list[str]:
    """Return the names of tensors, in order."""
    return [tensor.name for tensor in tensors]
