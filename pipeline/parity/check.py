"""Check that the ONNX graphs are the torch model: every output, every weight, every bound.

In: a bundle, the model read from its weights, and held-out rows. Out: a `ParityReport`. The graphs
run in the engine that will serve. The reference is the eager module in float64; the tolerance
follows from the error that torch's own float32 makes on the same rows.

With the settings that serve (level `all`, the given threads), the engine is checked on every kind
of rows, and on held-out rows at every batch size. The other optimisation levels and numbers of
threads are checked on the same held-out batches, and on one batch of every other kind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.environment import describe_environment, describe_versions
from pipeline.export.quantization import convert_precision
from pipeline.model.operations import Array
from pipeline.model.vae import VAE
from pipeline.parity.comparison_result import Comparison, ElboParity, Fault
from pipeline.parity.comparisons import Case, compare_case, make_cases
from pipeline.parity.graph_checks import load_graphs
from pipeline.parity.inputs import repeat_rows
from pipeline.parity.noise_check import noise_faults
from pipeline.parity.quantization_loss import measure_loss
from pipeline.parity.report import ParityReport
from pipeline.parity.row_counts import RowCounts, choose_counts
from pipeline.parity.settings import (
    CheckedEngine,
    SettingPlan,
    open_engine,
    open_engines,
    plan_settings,
)
from pipeline.parity.tolerances import FLOAT32, Rules
from serving.bundle import PARITY, WEIGHTS, Bundle
from serving.engine import Engine
from serving.errors import VerificationFailed
from serving.sessions import device_of, name_of, require_device

ALL_DEVICES = ("cpu", "cuda")
"""What the device `all` stands for."""


def check_parity(
    bundle: Bundle,
    model: VAE,
    x: Array,
    *,
    device: str = "cpu",
    threads: int = 1,
    rules: Rules = FLOAT32,
) -> ParityReport:
    """Check the graphs, then compare every output and the bounds; `x` are held-out rows.

    Graphs of reduced precision are compared with the model that has their weights, under the same
    rules, and their ELBO with that of the weights as they were trained.

    On CUDA, a second run lets TF32 round matrix products, under the rules `TF32`. Beside the
    operations, their forms in float32 alone are checked; on a device without float64, in place of
    those that need it.

    Raises:
        DeviceUnavailable: a device is missing, or cannot run every node.
    """
    devices = expand_devices(device)
    for name in devices:
        require_device(name)  # before minutes are spent on the CPU
    graphs, faults = load_graphs(bundle)
    manifest, loss = bundle.manifest, None
    reduced = convert_precision(model, manifest.precision, manifest.ranges)
    faults += rules.weights(graphs, model, reduced, bundle.all_forms)
    faults += noise_faults(bundle)
    plans = tuple(plan_settings(devices, threads, rules))
    found = _Found(choose_counts(model))
    try:
        found.compare(plans, bundle, reduced, x)
        if manifest.precision != "float32":
            engine = Engine(bundle, device=devices[0], threads=threads)
            loss = measure_loss(engine, model, x)
    except VerificationFailed as err:
        faults.append(Fault("interface", str(err)))
    return ParityReport(
        precision=manifest.precision,
        devices=tuple(map(name_of, devices)),
        threads=threads,
        comparisons=tuple(found.comparisons),
        elbo=tuple(found.elbo),
        graph_faults=tuple(faults),
        placement=found.placement,
        files=checked_files(bundle),
        environment=describe_environment(),
        versions=describe_versions("numpy", "onnx"),
        quantization_loss=loss,
    )


@dataclass(slots=True)
class _Found:
    """The results so far."""

    counts: RowCounts
    comparisons: list[Comparison] = field(default_factory=list)
    elbo: list[ElboParity] = field(default_factory=list)
    placement: dict[str, Mapping[str, int]] = field(default_factory=dict)

    def compare(self, plans: Sequence[SettingPlan], bundle: Bundle, model: VAE, x: Array) -> None:
        """Check every setting on every case, with one engine at a time, which bounds memory."""
        for plan in plans:  # first: a graph that does not open ends the check
            if plan.as_served and name_of(plan.device) not in self.placement:
                run = open_engine(bundle, plan, self.counts)
                self.placement[name_of(plan.device)] = run.engine.placement()
        rows = repeat_rows(x, self.counts.different)
        cases = list(make_cases(plans, bundle, model, rows, self.counts))
        for plan in plans:
            for run in open_engines(bundle, plan, self.counts):
                for case in cases:
                    if case.operation.label in run.engine.operations:  # or another form is
                        self._compare(run, case, different=min(len(x), len(rows)))

    def _compare(self, run: CheckedEngine, case: Case, *, different: int) -> None:
        for result in compare_case(run, case):
            if isinstance(result, ElboParity):
                self.elbo.append(replace(result, different=different))
            else:
                self.comparisons.append(result)


def expand_devices(device: str) -> tuple[str, ...]:
    """Return the devices that `device`, which may be `all`, stands for."""
    return ALL_DEVICES if device == "all" else (device,)


def checked_files(bundle: Bundle) -> dict[str, str]:
    """Return the SHA-256 of the files that a report is about, from the manifest."""
    return {name: bundle.manifest.files[name]["sha256"] for name in (*bundle.graphs, WEIGHTS)}


def parity_faults(bundle: Bundle, *, on_this_machine: bool = False) -> list[str]:
    """Return why the graphs are not known to be the model; the list is empty if they are."""
    if PARITY not in bundle.manifest.files:
        return ["parity was not checked: run vae check"]
    report = bundle.read_json(PARITY)
    if report.get("verdict") != "passed":
        return ["parity failed: see parity.json"]
    if report.get("files") != checked_files(bundle):
        return ["parity.json is about other files: run vae check"]
    if fault := provider_fault(report):
        return [f"parity.json {fault}: run vae check"]
    if on_this_machine and report.get("machine") != describe_environment():
        return ["parity was checked on another machine: run vae check on this one"]
    return []


def provider_fault(report: Mapping[str, Any]) -> str | None:
    """Return why a report does not show that its devices, and no others, computed, or None."""
    wanted = list(report.get("devices", ()))
    ran = {
        str(row.get("provider")): device_of(str(row.get("provider")))
        for row in report.get("comparisons", ())
    }
    if not wanted or {*ran.values()} != {*wanted}:
        return f"is of {', '.join(wanted) or 'no device'}, but {', '.join(sorted(ran))} computed"
    for provider, device in ran.items():
        if provider not in report.get("placement", {}).get(device, {}):
            return f"places no node of {device} on {provider}"
    return None
