"""Run the engine on every case under every setting, and compare its outputs.

In: a bundle and the model. Out: a `Comparison` for each output, and an `ElboParity` for each
setting that serves.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.export.ambiguity import settle_inputs
from pipeline.model.operations import (
    DRAWS,
    Array,
    Tolerance,
    derive_tolerances,
    run_reference,
)
from pipeline.model.roundings import Roundings
from pipeline.model.vae import VAE
from pipeline.parity.comparison_result import Comparison, ElboParity, Rule, compare
from pipeline.parity.inputs import draw_cases, repeat_rows
from pipeline.parity.row_counts import FULL, Kind, RowCounts
from pipeline.parity.settings import CheckedEngine, SettingPlan, checked_forms
from pipeline.parity.tolerances import Rules, compare_elbo, difference, errors_of
from serving.bundle import Bundle, Manifest
from serving.operations import Operation, OperationName

ENOUGH_ROWS = 64
"""The least number of rows for which the root mean square is judged too."""
HARD_ROWS = 16
EXACTLY = Tolerance(0.0, 0.0)

Outputs = Mapping[str, Array]


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
        return cls(
            checked, case, {rows: run_rows(checked, case, np.arange(rows)) for rows in batches}
        )

    @property
    def whole(self) -> int:
        """The number of different rows, which are a batch too."""
        return self.checked.counts.different

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
            found = errors_of(
                got.outputs.get(name), repeat_rows(exact, rows), repeat_rows(noise, rows)
            )
            yield self._row("values", name, rows, found, self.tolerance(name, rows), got)

    def beside_other_batches(self, name: str, backwards: "EngineOutputs") -> Iterator[Comparison]:
        """Compare each batch with the same rows in the whole, and the whole with its reverse."""
        whole = self.answers[self.whole].outputs.get(name)
        for rows, got in {**self.answers, self.whole: backwards}.items():
            other = None if whole is None else repeat_rows(whole, rows)
            if got is backwards and other is not None:
                other = other[::-1]
            found = difference(got.outputs.get(name), other)
            yield self._row("batch", name, rows, found, self.tolerance(name, rows), got)

    def beside_itself(self, name: str, again: "EngineOutputs") -> Comparison:
        """Compare an output with that of a second run: byte for byte on the CPU."""
        rows = self.checked.counts.rerun
        found = difference(again.outputs.get(name), self.answers[rows].outputs.get(name))
        exactly = self.checked.engine.device == "cpu"
        tolerance = EXACTLY if exactly else self.tolerance(name, rows)
        return self._row("rerun", name, rows, found, tolerance, again)

    def elbo(self) -> ElboParity:
        """Compare the ELBO of all different rows with that of float64."""
        found = self.answers[self.whole].outputs
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


def make_cases(
    plans: Sequence[SettingPlan],
    bundle: Bundle,
    model: VAE,
    x: Array,
    counts: RowCounts = FULL,
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
    roundings = Roundings(model)
    # one reference for all forms of an operation
    references: dict[OperationName, list[tuple[Kind, dict[str, Array], Outputs]]] = {}
    for operation in forms.values():
        if operation.name not in references:
            cases = unambiguous_cases(
                roundings, operation, x, bundle.manifest, counts, tf32="tf32" in rules
            )
            references[operation.name] = [
                (kind, inputs, run_reference(roundings, operation, inputs, torch.float64))
                for kind, inputs in cases
            ]
        least: Mapping[str, Tolerance] = {}
        for kind, inputs, exact in references[operation.name]:
            least = least or derive_tolerances(exact, ())  # of held-out rows, the first
            rounded, tolerances = {}, {}
            for name, rule in rules.items():
                rounded[name] = rule.noise(roundings, operation, inputs)
                others = _draw_again(
                    rule, roundings, operation, inputs, exact, rounded[name], draws
                )
                found = derive_tolerances(exact, (rounded[name], *others))
                tolerances[name] = {key: value.wider(least[key]) for key, value in found.items()}
            yield Case(operation, kind, inputs, exact, rounded, tolerances)


def _draw_again(
    rule: Rules,
    model: Roundings,
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
    model: VAE | Roundings,
    operation: Operation,
    x: Array,
    manifest: Manifest,
    counts: RowCounts = FULL,
    *,
    tf32: bool = False,
) -> Iterator[tuple[Kind, dict[str, Array]]]:
    """Yield the cases, each with only those rows whose results are unambiguous, repeated.

    If no held-out row is unambiguous, all are compared, and may fail. A case of another kind
    without such a row is left out.
    """
    for kind, drawn in draw_cases(operation, x, manifest.likelihood, manifest.max_byte, counts):
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
    again = run_rows(checked, case, np.arange(checked.counts.rerun))
    backwards = run_rows(checked, case, np.arange(checked.counts.different)[::-1])
    for name in case.exact:
        yield from results.beside_other_batches(name, backwards)
        yield results.beside_itself(name, again)
    if case.operation.name == "score":
        yield results.elbo()


def run_rows(checked: CheckedEngine, case: Case, rows: NDArray[np.intp]) -> EngineOutputs:
    """Run the engine on some rows of a case, repeated if there are fewer."""
    inputs = {name: values[rows % len(values)] for name, values in case.inputs.items()}
    try:
        return EngineOutputs(checked.engine.run(case.operation.label, inputs))
    except Exception as err:  # noqa: BLE001  onnxruntime's exceptions share no base class
        return EngineOutputs({}, f"the engine cannot run it: {err}")
