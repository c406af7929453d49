"""Run the engine on every case under every setting, and compare its outputs.

In: a bundle and the model. Out: a `Comparison` for each output, and an `ElboParity` for each
setting that serves. Raises `DeviceUnavailable` if a device is missing, `VerificationFailed` if a
graph does not open or its tensors are not those of the operation table.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pipeline.export.ambiguity import settle_inputs
from pipeline.model.operations import (
    DRAWS,
    Array,
    Tolerance,
    derive_tolerances,
    run_reference,
)
from pipeline.model.vae import VAE
from pipeline.parity.comparison_result import Comparison, ElboParity, Rule, Setting, compare
from pipeline.parity.inputs import ADVERSARIAL_BATCHES, BATCHES, ROWS, Kind, draw_cases
from pipeline.parity.tolerances import TF32, Rules, compare_elbo, difference, errors_of
from serving.bundle import Bundle, Manifest
from serving.engine import Engine
from serving.operations import Operation, OperationName
from serving.sessions import Level, has_float64, provider_of

OTHER_LEVELS: tuple[Level, ...] = ("off", "basic", "extended")
THREADS = (1, 2)
ENOUGH_ROWS = 64
"""The least number of rows for which the root mean square is judged too."""
RERUN_ROWS = 256
HARD_ROWS = 16
BACKWARDS = slice(None, None, -1)
EXACTLY = Tolerance(0.0, 0.0)

Outputs = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class SettingPlan:
    """A setting to check, and by which rules."""

    device: str
    setting: Setting
    rules: Rules
    as_served: bool = False


@dataclass(frozen=True, slots=True)
class CheckedEngine:
    """An engine under one setting, and which rows it is checked on."""

    engine: Engine
    setting: Setting
    rules: Rules
    as_served: bool

    def batches(self, kind: Kind) -> tuple[int, ...]:
        """Return the batch sizes in which rows of this kind are checked."""
        if kind == "held-out":
            return BATCHES
        return ADVERSARIAL_BATCHES if self.as_served else ADVERSARIAL_BATCHES[-1:]


@dataclass(frozen=True, slots=True)
class Case:
    """One operation on rows of one kind, and the outputs of torch for them."""

    operation: Operation
    kind: Kind
    inputs: Mapping[str, Array]
    exact: Outputs
    """Outputs in float64."""
    rounded: Mapping[str, Outputs]
    """Outputs in reduced arithmetic, by precision."""
    tolerances: Mapping[str, Mapping[str, Tolerance]]
    """The tolerance of each output over all rows, by precision."""


@dataclass(frozen=True, slots=True)
class CaseResults:
    """The outputs of an engine on one case, by batch size, and their tolerances."""

    checked: CheckedEngine
    case: Case
    answers: Mapping[int, "EngineOutputs"]

    @classmethod
    def make(cls, checked: CheckedEngine, case: Case) -> "CaseResults":
        """Run the case's rows at every batch size."""
        batches = checked.batches(case.kind)
        return cls(checked, case, {rows: run_rows(checked, case, slice(rows)) for rows in batches})

    @property
    def noise(self) -> Outputs:
        """The outputs of torch in the precision of the engine."""
        return self.case.rounded[self.checked.rules.precision]

    def tolerance(self, name: str, rows: int) -> Tolerance:
        """Return four times the error of torch on all rows, or on these if that is larger.

        A few rows can be easy or hard by chance. The root mean square of a few rows is dominated
        by the hardest one, so only the maximum is judged for them.
        """
        exact, noise = self.case.exact[name][:rows], self.noise[name][:rows]
        over_all = self.case.tolerances[self.checked.rules.precision][name]
        tolerance = over_all.wider(Tolerance.from_noise(exact, noise))
        return tolerance if rows >= ENOUGH_ROWS else Tolerance(tolerance.max, tolerance.max)

    def beside_torch(self, name: str) -> Iterator[Comparison]:
        """Compare an output with torch in float64, at every batch size."""
        exact, noise = self.case.exact[name], self.noise[name]
        for rows, got in self.answers.items():
            found = errors_of(got.outputs.get(name), exact[:rows], noise[:rows])
            yield self._row("values", name, rows, found, self.tolerance(name, rows), got)

    def beside_other_batches(self, name: str, backwards: "EngineOutputs") -> Iterator[Comparison]:
        """Compare each batch with the same rows in the whole, and the whole with its reverse."""
        whole = self.answers[ROWS].outputs.get(name)
        for rows, got in {**self.answers, ROWS: backwards}.items():
            part = BACKWARDS if rows == ROWS else slice(rows)
            found = difference(got.outputs.get(name), None if whole is None else whole[part])
            yield self._row("batch", name, rows, found, self.tolerance(name, rows), got)

    def beside_itself(self, name: str, again: "EngineOutputs") -> Comparison:
        """Compare an output with that of a second run: byte for byte on the CPU."""
        found = difference(again.outputs.get(name), self.answers[RERUN_ROWS].outputs.get(name))
        exactly = self.checked.engine.device == "cpu"
        tolerance = EXACTLY if exactly else self.tolerance(name, RERUN_ROWS)
        return self._row("rerun", name, RERUN_ROWS, found, tolerance, again)

    def elbo(self) -> ElboParity:
        """Compare the ELBO of all rows with that of float64."""
        found = self.answers[ROWS].outputs
        return compare_elbo(
            found,
            self.case.exact,
            self.noise,
            self.checked.rules,
            self.checked.setting,
            self.case.operation.label,
        )

    def _row(
        self,
        rule: Rule,
        name: str,
        rows: int,
        found: tuple[Array, str],
        tolerance: Tolerance,
        got: "EngineOutputs",
    ) -> Comparison:
        error, reason = found
        return compare(
            error,
            tolerance,
            self.checked.setting,
            reason=got.reason or reason,
            rule=rule,
            operation=self.case.operation.label,
            output=name,
            batch=rows,
            rows=self.case.kind,
        )


@dataclass(frozen=True, slots=True)
class EngineOutputs:
    """Outputs of the engine for some rows; empty, with a reason, if it could not run."""

    outputs: Outputs
    reason: str = ""


def plan_settings(devices: Sequence[str], threads: int, rules: Rules) -> Iterator[SettingPlan]:
    """Yield the setting that serves, then other levels, other threads and, on CUDA, TF32."""
    for device in devices:
        served = Setting(provider=provider_of(device), level="all", threads=threads)
        yield SettingPlan(device, served, rules, as_served=True)
        for level in OTHER_LEVELS:
            yield SettingPlan(device, replace(served, level=level), rules)
        if device == "cuda":
            yield SettingPlan(device, replace(served, tf32=True), TF32, as_served=True)
        elif device == "cpu":
            for other in THREADS:
                if other != threads:
                    yield SettingPlan(device, replace(served, threads=other), rules)


def open_engine(bundle: Bundle, plan: SettingPlan) -> CheckedEngine:
    """Open the engine under one setting."""
    setting = plan.setting
    engine = Engine(
        bundle,
        device=plan.device,
        threads=setting.threads,
        level=setting.level,
        tf32=setting.tf32,
        operations=checked_forms(bundle, plan.device),
    )
    return CheckedEngine(engine, setting, plan.rules, plan.as_served)


def checked_forms(bundle: Bundle, device: str) -> Mapping[str, Operation]:
    """Return what is checked on a device: all forms that it can run, by label."""
    if has_float64(device):
        return bundle.all_forms
    return {form.label: form for form in bundle.operations_for(float64=False).values()}


def make_cases(
    plans: Sequence[SettingPlan], bundle: Bundle, model: VAE, x: Array
) -> Iterator[Case]:
    """Yield every operation on every kind of rows, with the reference outputs that are needed.

    A tolerance is at least some roundings of the values on held-out rows. Without it, that of
    values near zero would be too strict: onnxruntime's sigmoid never goes below 1.5e-8, however
    dark the picture of a far latent is.
    """
    rules = {plan.rules.precision: plan.rules for plan in plans}
    # bytes are bounded, and no row stands out so far that one draw of all rows could not measure it
    draws = 1 if bundle.manifest.x_dtype == "uint8" else DRAWS
    forms = {k: v for plan in plans for k, v in checked_forms(bundle, plan.device).items()}
    # one reference for all forms of an operation
    references: dict[OperationName, list[tuple[Kind, dict[str, Array], Outputs]]] = {}
    for operation in forms.values():
        if operation.name not in references:
            cases = unambiguous_cases(model, operation, x, bundle.manifest, tf32="tf32" in rules)
            references[operation.name] = [
                (kind, inputs, run_reference(model, operation, inputs, torch.float64))
                for kind, inputs in cases
            ]
        least: Mapping[str, Tolerance] = {}
        for kind, inputs, exact in references[operation.name]:
            least = least or derive_tolerances(exact, ())  # of held-out rows, the first
            rounded, tolerances = {}, {}
            for name, rule in rules.items():
                rounded[name] = rule.noise(model, operation, inputs)
                others = _draw_again(rule, model, operation, inputs, exact, rounded[name], draws)
                found = derive_tolerances(exact, (rounded[name], *others))
                tolerances[name] = {key: value.wider(least[key]) for key, value in found.items()}
            yield Case(operation, kind, inputs, exact, rounded, tolerances)


def _draw_again(
    rule: Rules,
    model: VAE,
    operation: Operation,
    inputs: Mapping[str, Array],
    exact: Outputs,
    first: Outputs,
    draws: int,
) -> Iterator[Outputs]:
    """Yield the other draws of torch's error, of which `first` is one.

    Where each row is decoded in many copies, only the rows with the largest errors are drawn again,
    since these are the ones that dominate.
    """
    rows = np.arange(len(next(iter(inputs.values()))))
    if operation.copies > 1:
        errors = [
            difference(first[name], exact[name].astype(first[name].dtype))[0] for name in exact
        ]
        largest = [np.nan_to_num(error.reshape(len(rows), -1)).max(1) for error in errors]
        rows = np.argsort(np.max(largest, 0))[-HARD_ROWS:]
    part = {name: values[rows] for name, values in inputs.items()}
    for draw in range(1, draws):
        again = {name: values.copy() for name, values in first.items()}
        for name, values in rule.noise(model, operation, part, draw=draw).items():
            again[name][rows] = values
        yield again


def unambiguous_cases(
    model: VAE, operation: Operation, x: Array, manifest: Manifest, *, tf32: bool = False
) -> Iterator[tuple[Kind, dict[str, Array]]]:
    """Yield the cases, each with only those rows whose results are unambiguous, repeated.

    If no held-out row is unambiguous, all are compared, and may fail. A case of another kind
    without such a row is left out.
    """
    for kind, drawn in draw_cases(operation, x, manifest.likelihood, manifest.max_byte):
        inputs, rows = settle_inputs(model, operation, drawn, tf32=tf32)
        if rows.size:
            yield kind, {name: v[np.resize(rows, len(v))] for name, v in inputs.items()}
        elif kind == "held-out":
            yield kind, inputs


def compare_case(checked: CheckedEngine, case: Case) -> Iterator[Comparison | ElboParity]:
    """Compare every output at every batch size; as served, also compare batches and reruns."""
    results = CaseResults.make(checked, case)
    for name in case.exact:
        yield from results.beside_torch(name)
    if not checked.as_served or case.kind != "held-out":
        return
    again, backwards = (run_rows(checked, case, rows) for rows in (slice(RERUN_ROWS), BACKWARDS))
    for name in case.exact:
        yield from results.beside_other_batches(name, backwards)
        yield results.beside_itself(name, again)
    if case.operation.name == "score":
        yield results.elbo()


def run_rows(checked: CheckedEngine, case: Case, rows: slice) -> EngineOutputs:
    """Run the engine on some rows of a case."""
    inputs = {name: values[rows] for name, values in case.inputs.items()}
    try:
        return EngineOutputs(checked.engine.run(case.operation.label, inputs))
    except Exception as err:  # noqa: BLE001  onnxruntime's exceptions share no base class
        return EngineOutputs({}, f"the engine cannot run it: {err}")
