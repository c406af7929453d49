"""Check that the ONNX graphs are the torch model: every output, every weight, every bound.

In: a bundle, the model read from its weights, and held-out rows. Out: a `ParityReport`. The graphs
run in the engine that will serve; the reference is the eager module in float64, and the budget is
the error that torch's own float32 makes on the same rows.

As it serves (level `all`, the threads given), the engine is checked on every kind of rows, and on
held-out ones at every batch size. The other optimisation levels and numbers of threads get the same
held-out batches, and one batch of every other kind.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from pipeline.machine import describe_machine, describe_versions
from pipeline.model import VAE
from pipeline.parity_cases import repeat_rows
from pipeline.parity_graphs import load_graphs
from pipeline.parity_result import Comparison, ElboParity, Fault, ParityReport
from pipeline.parity_rules import FLOAT32, Rules
from pipeline.parity_runs import Run, compare_case, draw_operation, open_runs
from pipeline.precision import reduce_model
from pipeline.reduction import compare_reduction
from pipeline.reference import Array
from serving.bundle import GRAPHS, PARITY, WEIGHTS, Bundle
from serving.engine import Device, require_cuda
from serving.errors import VerificationFailed

Devices = Literal["cpu", "cuda", "all"]
DEVICES: Mapping[Devices, tuple[Device, ...]] = {
    "cpu": ("cpu",),
    "cuda": ("cuda",),
    "all": ("cpu", "cuda"),
}


def check_parity(
    bundle: Bundle,
    model: VAE,
    x: Array,
    *,
    device: Devices = "cpu",
    threads: int = 1,
    rules: Rules = FLOAT32,
) -> ParityReport:
    """Check the graphs, then compare every output and the bounds; `x` are held-out rows.

    Graphs of reduced precision are compared with the model that has their weights, under the same
    rules, and their ELBO with that of the weights as they were trained.

    On CUDA a second run lets TF32 round matrix products, under `TF32`'s own rules.

    Raises:
        DeviceUnavailable: a device is not there, or cannot run every node.
    """
    devices = DEVICES[device]
    if "cuda" in devices:
        require_cuda()  # before minutes are spent on the CPU
    graphs, faults = load_graphs(bundle)
    manifest = bundle.manifest
    reduced = reduce_model(model, manifest.precision, manifest.ranges)
    faults += rules.weights(graphs, reduced)
    try:
        runs = list(open_runs(bundle, devices, threads, rules))
    except VerificationFailed as err:
        runs, faults = [], [*faults, Fault("interface", str(err))]
    comparisons, bounds = _compare_all(runs, bundle, reduced, x)
    return ParityReport(
        precision=manifest.precision,
        devices=devices,
        threads=threads,
        comparisons=comparisons,
        elbo=bounds,
        graph_faults=tuple(faults),
        placement={run.engine.device: run.engine.placement() for run in reversed(runs)},
        files=checked_files(bundle),
        machine=describe_machine(),
        versions=describe_versions(),
        reduction=(
            compare_reduction(runs[0].engine, model, x)
            if runs and manifest.precision != "float32"
            else None
        ),
    )


def checked_files(bundle: Bundle) -> dict[str, str]:
    """SHA-256 of the files that a report speaks of, from the manifest."""
    return {name: bundle.manifest.files[name]["sha256"] for name in (*GRAPHS, WEIGHTS)}


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


def _compare_all(
    runs: Sequence[Run], bundle: Bundle, model: VAE, x: Array
) -> tuple[tuple[Comparison, ...], tuple[ElboParity, ...]]:
    results: list[Comparison | ElboParity] = [
        result
        for operation in bundle.operations.values()
        for case in draw_operation(
            runs, model, operation, repeat_rows(x), bundle.manifest.likelihood
        )
        for run in runs
        for result in compare_case(run, case)
    ]
    return (
        tuple(row for row in results if isinstance(row, Comparison)),
        tuple(row for row in results if isinstance(row, ElboParity)),
    )
