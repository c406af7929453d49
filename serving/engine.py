"""Run a bundle's operations with onnxruntime: arrays in, arrays out.

The graphs run on the requested device or not at all: every node's assignment is read back. CUDA
computes in float32, and uses TF32 only on request. Arrays that do not fit raise `DataRefused`.
"""

import contextlib
import ctypes
import io
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from serving.bundle import Bundle
from serving.errors import DataRefused, DeviceUnavailable, UsageRefused, VerificationFailed
from serving.noise import draw_rows
from serving.operations import Operation, Tensor
from serving.value_range import MAX_BYTE

Array = NDArray[Any]
Device = Literal["cpu", "cuda"]
Level = Literal["off", "basic", "extended", "all"]

MAX_BATCH = 1024
"""Rows of one run of a graph; longer inputs are split."""
MAX_DECODED = 4096
"""Rows times noise draws of one run, which bounds memory."""

_LEVELS: Mapping[Level, ort.GraphOptimizationLevel] = {
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_SHAPE_OPS = {"Shape", "Concat", "Gather", "Slice", "Squeeze", "Unsqueeze"}
"""Operators that compute sizes, which onnxruntime keeps on the CPU on purpose."""
PROVIDERS: Mapping[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class Engine:
    """Runs the operations of one bundle.

    Args:
        bundle: the verified bundle.
        device: `cpu` or `cuda`, without a fall-back to the other.
        threads: threads of one operator on the CPU.
        level: onnxruntime's graph optimisation level.
        tf32: let CUDA round the factors of matrix products to ten bits, for speed.

    Raises:
        DeviceUnavailable: the device cannot run every node.
        VerificationFailed: a graph does not open, or its tensors differ from the operation table.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: Device = "cpu",
        threads: int = 1,
        level: Level = "all",
        tf32: bool = False,
    ) -> None:
        self.bundle = bundle
        self.device = device
        self.operations = bundle.operations
        # kept, since every request asks for them
        self._unit_range = bundle.manifest.unit_range
        self._max_byte = bundle.manifest.max_byte
        if device == "cuda":
            require_cuda()
        options = session_options(threads, level)
        graphs = dict.fromkeys(operation.graph for operation in self.operations.values())
        self._sessions = {
            graph: open_session(bundle.path / graph, options, device, tf32=tf32) for graph in graphs
        }
        for operation in self.operations.values():
            _check_tensors(self._sessions[operation.graph], operation)

    def run(self, name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Check the inputs and run one operation; all arrays share axis 0, the batch."""
        self.check(name, inputs)
        return self.compute(name, inputs)

    def check(self, name: str, inputs: Mapping[str, Array]) -> int:
        """Check the inputs of an operation; return the number of rows.

        Raises:
            UsageRefused: there is no such operation.
            DataRefused: a tensor is missing, unknown, or of the wrong dtype, shape or value.
        """
        if name not in self.operations:
            raise UsageRefused(
                f"operation must be one of {', '.join(self.operations)}, got {name!r}"
            )
        return _check_inputs(self.operations[name], inputs, self._unit_range, self._max_byte)

    def compute(self, name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one operation on inputs that `check` has passed, split to bound memory."""
        operation = self.operations[name]
        rows = len(inputs[operation.inputs[0].name])
        if rows == 0:
            return {tensor.name: _empty(tensor) for tensor in operation.outputs}
        session = self._sessions[operation.graph]
        names = [tensor.name for tensor in operation.outputs]
        feeds = {
            graph_name: inputs[tensor.name]
            for graph_name, tensor in zip(operation.graph_inputs(), operation.inputs, strict=True)
        }
        runs = [
            session.run(names, {key: array[part] for key, array in feeds.items()})
            for part in split_rows(rows, inputs)
        ]
        if len(runs) == 1:
            return dict(zip(names, runs[0], strict=True))
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

    def score(self, x: Array, num_samples: int, seed: int) -> dict[str, Array]:
        """Return bounds on log p(x) of each row in nats, over `num_samples` draws.

        All rows share the draws of `seed`, so that a row's score does not depend on other rows.
        """
        return self.run("score", {"x": x, "eps": self.score_noise(len(x), num_samples, seed)})

    def score_noise(self, rows: int, num_samples: int, seed: int) -> Array:
        """Return the `eps` of `score`: the same draws for every row, stored once."""
        noise = draw_rows(seed, 0, num_samples, self.bundle.manifest.latent_dim)
        return np.broadcast_to(noise, (rows, *noise.shape))

    def self_check(self) -> None:
        """Compare every output with the torch outputs that the bundle carries.

        Raises:
            VerificationFailed: an output differs by more than the tolerance stored beside it.
        """
        golden = self.bundle.golden()
        for operation in self.operations.values():
            try:
                self._compare(operation, golden)
            except (KeyError, ValueError, TypeError, DataRefused) as err:
                raise VerificationFailed(
                    f"self-check of {self.bundle.path} failed: its golden rows of {operation.name} "
                    f"cannot be used: {err!r}"
                ) from err

    def _compare(self, operation: Operation, golden: Mapping[str, Array]) -> None:
        inputs = {t.name: golden[f"{operation.name}.{t.name}"] for t in operation.inputs}
        for name, value in self.run(operation.name, inputs).items():
            key = f"{operation.name}.{name}"
            if value.shape != golden[key].shape:
                raise ValueError(f"{name} is {value.shape}, golden is {golden[key].shape}")
            error = float(np.abs(value - golden[key]).max())
            if not error <= golden[f"{key}.budget"]:
                raise VerificationFailed(
                    f"self-check of {self.bundle.path} failed: {operation.name} puts {name} "
                    f"off by {error:.3g}, allowed {golden[f'{key}.budget']:.3g}"
                )

    def placement(self) -> dict[str, int]:
        """Return the number of nodes that each provider runs, over all graphs."""
        counts: dict[str, int] = {}
        for session in self._sessions.values():
            for part in session.get_provider_graph_assignment_info():
                counts[part.ep_name] = counts.get(part.ep_name, 0) + len(part.get_nodes())
        return counts


def session_options(threads: int, level: Level) -> ort.SessionOptions:
    """Return a session's options: threads sleep while they wait, and placement is recorded."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = _LEVELS[level]
    options.log_severity_level = 3  # errors only, and they are raised too
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.x64quantprecision", str(int(_may_overflow())))
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _may_overflow() -> bool:
    """Whether int8 products could overflow, so that the exact kernels, half as fast, are needed.

    x86-64 without VNNI sums pairs of products in 16 bits. An unknown one is assumed to lack it.
    """
    try:
        return "vnni" not in Path("/proc/cpuinfo").read_text()
    except OSError:
        return True


def require_cuda() -> None:
    """Load the driver and the CUDA libraries; raise `DeviceUnavailable` naming what is missing."""
    if PROVIDERS["cuda"] not in ort.get_available_providers():
        raise DeviceUnavailable(
            "device cuda is not available: this onnxruntime has no CUDA provider; "
            "install onnxruntime-gpu"
        )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):  # preload_dlls prints what it cannot load
        ort.preload_dlls()
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as err:
        raise DeviceUnavailable(
            f"device cuda is not available: no NVIDIA driver ({err}); "
            "use --device cpu, or a machine with a GPU"
        ) from err
    if missing := [line for line in printed.getvalue().splitlines() if "Failed to load" in line]:
        raise DeviceUnavailable(f"device cuda is not available: {missing[0]}")


def provider(device: Device, *, tf32: bool) -> tuple[str, dict[str, str]]:
    """Return the provider of a session and its options; onnxruntime would use TF32 by default."""
    return PROVIDERS[device], {"use_tf32": str(int(tf32))} if device == "cuda" else {}


def open_session(
    graph: Path | bytes, options: ort.SessionOptions, device: Device, *, tf32: bool = False
) -> ort.InferenceSession:
    """Open a graph on a device and prove that every node that computes was placed there."""
    name = graph.name if isinstance(graph, Path) else "a graph"
    try:
        session = ort.InferenceSession(graph, options, providers=[provider(device, tf32=tf32)])
    except Exception as err:
        # onnxruntime's exceptions share no base class below Exception
        if device == "cuda":
            raise DeviceUnavailable(f"device cuda cannot run {name}: {err}") from err
        place = graph if isinstance(graph, Path) else name
        raise VerificationFailed(f"onnxruntime cannot open {place}: {err}") from err
    # if a provider does not load or lacks a kernel, onnxruntime uses the CPU without an error
    for part in session.get_provider_graph_assignment_info():
        strays = {node.op_type for node in part.get_nodes()} - _SHAPE_OPS
        if part.ep_name != PROVIDERS[device] and strays:
            raise DeviceUnavailable(
                f"device {device} was asked for, but {name} runs {', '.join(sorted(strays))} "
                f"on {part.ep_name}"
            )
    return session


def _check_tensors(session: ort.InferenceSession, operation: Operation) -> None:
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


def _check_inputs(
    operation: Operation, inputs: Mapping[str, Array], unit_range: bool, max_byte: int
) -> int:
    if inputs.keys() != {tensor.name for tensor in operation.inputs}:
        wanted = ", ".join(tensor.name for tensor in operation.inputs)
        got = ", ".join(sorted(inputs)) or "none"
        raise DataRefused(f"{operation.name} takes {wanted}, got {got}")
    sizes: dict[str, int] = {}
    for tensor in operation.inputs:
        array = inputs[tensor.name]
        if array.dtype != tensor.dtype:
            raise DataRefused(f"{tensor.name} must be {tensor.dtype}, got {array.dtype}")
        fits = len(array.shape) == len(tensor.shape)
        for axis, size in zip(tensor.shape, array.shape, strict=False):
            wanted_size = sizes.setdefault(axis, size) if isinstance(axis, str) else axis
            fits = fits and size == wanted_size
        if not fits:
            wanted = ", ".join(str(axis) for axis in tensor.shape)
            raise DataRefused(f"{tensor.name} must be ({wanted}), got {array.shape}")
        if array.dtype == np.uint8:
            _check_bytes(tensor.name, array, max_byte)
        else:
            check_floats(tensor.name, array, unit_range=unit_range and tensor.name == "x")
    if sizes.get("num_samples") == 0:
        raise DataRefused("num_samples must be at least 1, got 0")
    return sizes["batch"]


def check_floats(name: str, array: Array, *, unit_range: bool) -> None:
    """Refuse floats that are not finite or, with `unit_range`, not from 0 to 1."""
    if array.size == 0:
        return
    if array.strides[0] == 0:  # a broadcast of one row
        array = array[:1]
    finite = np.isfinite(array).reshape(len(array), -1).all(1)
    if not finite.all():
        raise DataRefused(f"{name} must be finite, row {int(finite.argmin())} is not")
    if unit_range and (array.min() < 0 or array.max() > 1):
        raise DataRefused(
            f"{name} must be from 0 to 1 for a bernoulli likelihood, "
            f"got {array.min():g} to {array.max():g}"
        )


def _check_bytes(name: str, array: Array, largest: int) -> None:
    """Refuse bytes that the likelihood does not allow."""
    if largest < MAX_BYTE and array.size and array.max() > largest:
        raise DataRefused(
            f"{name} must be from 0 to {largest}, as in the data that the model was trained with; "
            f"got {array.max()}"
        )


def _empty(tensor: Tensor) -> Array:
    return np.empty([0 if isinstance(axis, str) else axis for axis in tensor.shape], tensor.dtype)


def split_rows(rows: int, inputs: Mapping[str, Array]) -> Iterator[slice]:
    """Split rows into runs that stay within `MAX_BATCH` and `MAX_DECODED`."""
    num_samples = max(
        array.shape[1] if name == "eps" and array.ndim == 3 else 1 for name, array in inputs.items()
    )
    step = min(MAX_BATCH, max(1, MAX_DECODED // num_samples))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
