"""Check that the ONNX graphs are the torch model: every output, every weight.

In: a bundle, the model read from its weights, and held-out rows. Out: a `ParityReport`. The graphs
run in the engine that will serve; the reference is the eager module in float64, and the budget is
the error that torch's own float32 makes on the same rows.
"""

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper

from pipeline.model import VAE
from pipeline.reference import Array, Budget, draw_inputs, rms, run_reference
from serving.bundle import GRAPHS, PARITY, WEIGHTS, Bundle
from serving.engine import Device, Engine
from serving.operations import Operation

BATCHES = (1, 2, 7, 64, 256)
NUM_SAMPLES = 3
SMALL_CONSTANT = 8
"""Elements that an initializer which is no weight may have: shapes, limits, scalars."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One output at one batch size; errors are absolute, in the output's units."""

    operation: str
    output: str
    batch: int
    max_error: float
    max_budget: float
    rms_error: float
    rms_budget: float
    reason: str = ""
    """Why it failed before any number was compared."""

    @property
    def passed(self) -> bool:
        """Whether both errors are within budget; NaN is not."""
        within = self.max_error <= self.max_budget and self.rms_error <= self.rms_budget
        return within and not self.reason

    @property
    def share(self) -> float:
        """The part of the budget that was used, the larger of the two."""
        shares = (self.max_error / self.max_budget, self.rms_error / self.rms_budget)
        return max(shares) if np.isfinite(shares).all() else np.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """Every comparison that was made, on which files and on which machine."""

    device: str
    threads: int
    comparisons: tuple[Comparison, ...]
    weight_faults: tuple[str, ...]
    """Initializers that are not the state dict's, a line each."""
    placement: Mapping[str, int]
    files: Mapping[str, str]
    """SHA-256 of the graphs and weights that were compared."""
    machine: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether something was compared, and nothing failed."""
        compared = bool(self.comparisons) and all(row.passed for row in self.comparisons)
        return compared and not self.weight_faults

    def faults(self) -> list[str]:
        """What failed, a line each."""
        rows = [
            f"{row.operation}.{row.output} at batch {row.batch}: "
            + (row.reason or f"off by {row.max_error:.3g}, allowed {row.max_budget:.3g}")
            for row in self.comparisons
            if not row.passed
        ]
        return [*self.weight_faults, *rows]

    def table(self) -> str:
        """A line for each output: its worst batch, and the part of the budget used there."""
        worst: dict[tuple[str, str], Comparison] = {}
        for row in self.comparisons:
            key = (row.operation, row.output)
            if key not in worst or not row.share <= worst[key].share:
                worst[key] = row
        lines = [f"  {'output':<27} {'batch':>5} {'max error':>10} {'allowed':>10} {'used':>6}"]
        lines += [
            f"  {row.operation + '.' + row.output:<27} {row.batch:>5} {row.max_error:>10.2e} "
            f"{row.max_budget:>10.2e} {row.share:>6.0%}  {'' if row.passed else 'FAILED'}".rstrip()
            for row in worst.values()
        ]
        faults = [] if self.passed else self.faults()[:10]
        verdict = "passed" if self.passed else "FAILED"
        summary = f"  parity {verdict}: {len(self.comparisons)} comparisons on {self.device}"
        return "\n".join([*lines, *(f"  {fault}" for fault in faults), summary])

    def to_json(self) -> dict[str, Any]:
        """The report as `parity.json` keeps it; an error that is no number becomes null."""
        content = asdict(self)
        for entry, row in zip(content["comparisons"], self.comparisons, strict=True):
            entry["passed"] = row.passed
            for name in ("max_error", "rms_error", "max_budget", "rms_budget"):
                entry[name] = entry[name] if np.isfinite(entry[name]) else None
        return {"verdict": "passed" if self.passed else "failed", **content}


def check_parity(
    bundle: Bundle, model: VAE, x: Array, *, device: Device = "cpu", threads: int = 1
) -> ParityReport:
    """Compare every output at every batch size, and every weight.

    Raises:
        DeviceUnavailable: the device cannot run every node.
    """
    engine = Engine(bundle, device=device, threads=threads)
    rows = x[np.arange(max(BATCHES)) % len(x)]
    comparisons = tuple(
        comparison
        for operation in bundle.operations.values()
        for comparison in _compare(engine, model, operation, rows)
    )
    return ParityReport(
        device=device,
        threads=threads,
        comparisons=comparisons,
        weight_faults=tuple(_weight_faults(bundle, model)),
        placement=engine.placement(),
        files=checked_files(bundle),
        machine=describe_machine(),
    )


def checked_files(bundle: Bundle) -> dict[str, str]:
    """SHA-256 of the files that a report speaks of, from the manifest."""
    return {name: bundle.manifest.files[name]["sha256"] for name in (*GRAPHS, WEIGHTS)}


def describe_machine() -> dict[str, str]:
    """What float32 results can depend on, apart from the bundle."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__,
    }


def parity_faults(bundle: Bundle, *, on_this_machine: bool = False) -> list[str]:
    """Why the bundle's graphs do not count as the model's; empty if they do."""
    if PARITY not in bundle.manifest.files:
        return ["parity was not checked: run vae check"]
    report = bundle.read_json(PARITY)
    if report.get("verdict") != "passed":
        return ["parity failed: see parity.json"]
    if report.get("files") != checked_files(bundle):
        return ["parity.json speaks of other files: run vae check"]
    if on_this_machine and report.get("machine") != describe_machine():
        return ["parity was checked on another machine: run vae check on this one"]
    return []


def _compare(engine: Engine, model: VAE, operation: Operation, x: Array) -> Iterator[Comparison]:
    inputs = draw_inputs(operation, x, num_samples=NUM_SAMPLES, seed=2)
    exact = run_reference(model, operation, inputs, torch.float64)
    rounded = run_reference(model, operation, inputs, torch.float32)
    noise = {name: Budget.from_noise(exact[name], rounded[name]) for name in exact}
    for batch in BATCHES:
        outputs = engine.run(operation.name, {k: v[:batch] for k, v in inputs.items()})
        for name, over_all in noise.items():
            value, expected = outputs[name], exact[name][:batch]
            budget = over_all.wider(Budget.from_noise(expected, rounded[name][:batch]))
            same = (value.dtype, value.shape) == (rounded[name].dtype, expected.shape)
            error = np.abs(value - expected) if same else np.array([np.nan])
            yield Comparison(
                operation=operation.name,
                output=name,
                batch=batch,
                max_error=float(error.max()),
                max_budget=budget.max,
                rms_error=rms(error),
                rms_budget=budget.rms,
                reason="" if same else f"got {value.dtype} {value.shape}",
            )


def _weight_faults(bundle: Bundle, model: VAE) -> Iterator[str]:
    """Compare initializers with the state dict by byte: no tolerance sees one changed weight."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    parts = {
        "encoder.onnx": ("encoder.",),
        "decoder.onnx": ("decoder.",),
        "reconstruct.onnx": ("decoder.",),  # of the encoder it keeps what leads to z_loc
        "score.onnx": ("encoder.", "decoder."),  # scalars of a likelihood may be folded
    }
    for graph, prefixes in parts.items():
        proto = onnx.load(bundle.path / graph)
        initializers = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
        weights = {name for name, _ in model.named_parameters()}
        for name in sorted(weights - initializers.keys()):
            if name.startswith(prefixes):
                yield f"{graph} has no weight {name}"
        for name, value in initializers.items():
            if name not in state:
                if value.size > SMALL_CONSTANT:
                    yield f"{graph} has an initializer {name} {value.shape} that is no weight"
            elif value.dtype != state[name].dtype or value.tobytes() != state[name].tobytes():
                yield f"{graph}: {name} is not the weight of {WEIGHTS}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = (line.split(":")[1].strip() for line in file if line.startswith("model name"))
            return next(names, platform.processor())
    except OSError:
        return platform.processor()
