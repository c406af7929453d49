"""Run the engine on every case under every setting, and compare what comes out.

In: a bundle and the model. Out: a `Comparison` for each output, and an `ElboParity` for each
setting that serves. Raises `DeviceUnavailable` where a device is not there, `VerificationFailed`
where a graph does not open or its tensors are not the operation table's.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pipeline.export.quantization import unambiguous_rows
from pipeline.model.operations import Array, Tolerance, run_reference
from pipeline.model.vae import VAE
from pipeline.parity.comparison_result import Comparison, ElboParity, Rule, Setting, compare
from pipeline.parity.inputs import ADVERSARIAL_BATCHES, BATCHES, ROWS, Kind, draw_cases
from pipeline.parity.tolerances import TF32, Rules, compare_elbo, difference, errors_of
from serving.bundle import Bundle
from serving.engine import PROVIDERS, Device, Engine, Level
from serving.operations import Operation

OTHER_LEVELS: tuple[Level, ...] = ("off", "basic", "extended")
THREADS = (1, 2)
ENOUGH_ROWS = 64
"""Rows whose root mean square is judged."""
RERUN_ROWS = 256
BACKWARDS = slice(None, None, -1)
EXACTLY = Tolerance(0.0, 0.0)

Outputs = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Plan:
    """A setting that is to be checked."""

    device: Device
    setting: Setting
    rules: Rules
    as_served: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """An engine under one setting, and how much it is checked on."""

    engine: Engine
    setting: Setting
    rules: Rules
    as_served: bool

    def batches(self, kind: Kind) -> tuple[int, ...]:
        """The batches that rows of this kind come in."""
        if kind == "held-out":
            return BATCHES
        return ADVERSARIAL_BATCHES if self.as_served else ADVERSARIAL_BATCHES[-1:]


@dataclass(frozen=True, slots=True)
class Case:
    """One operation on rows of one kind, and what torch makes of them."""

    operation: Operation
    kind: Kind
    inputs: Mapping[str, Array]
    exact: Outputs
    """In float64."""
    rounded: Mapping[str, Outputs]
    """By precision."""
    least: Mapping[str, Tolerance]
    """Roundings of each output on held-out rows: what is small beside these values is nothing.
    onnxruntime's sigmoid ends at 1.5e-8, however dark a picture of far latents is."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One run on one case: the outputs of the engine by rows taken, and their tolerances."""

    run: Run
    case: Case
    answers: Mapping[int, "Answer"]

    @classmethod
    def make(cls, run: Run, case: Case) -> "Trial":
        """Run the case's rows at every batch size."""
        batches = run.batches(case.kind)
        return cls(run, case, {rows: answer(run, case, slice(rows)) for rows in batches})

    @property
    def noise(self) -> Outputs:
        """What torch makes of the rows in the run's precision."""
        return self.case.rounded[self.run.rules.precision]

    def tolerance(self, name: str, rows: int) -> Tolerance:
        """Four times torch's error on all rows or on these: few can be lucky, and can be hard.

        The mean square of a few rows is that of the hardest: there the maximum alone judges.
        """
        exact, noise = self.case.exact[name], self.noise[name]
        over_all = Tolerance.from_noise(exact, noise).wider(self.case.least[name])
        tolerance = over_all.wider(Tolerance.from_noise(exact[:rows], noise[:rows]))
        return tolerance if rows >= ENOUGH_ROWS else Tolerance(tolerance.max, tolerance.max)

    def beside_torch(self, name: str) -> Iterator[Comparison]:
        """Compare an output with torch in float64, at every batch."""
        exact, noise = self.case.exact[name], self.noise[name]
        for rows, got in self.answers.items():
            found = errors_of(got.outputs.get(name), exact[:rows], noise[:rows])
            yield self._row("values", name, rows, found, self.tolerance(name, rows), got)

    def beside_other_batches(self, name: str, backwards: "Answer") -> Iterator[Comparison]:
        """Compare rows in each batch with the same rows among all, and all with their reverse."""
        whole = self.answers[ROWS].outputs.get(name)
        for rows, got in {**self.answers, ROWS: backwards}.items():
            part = BACKWARDS if rows == ROWS else slice(rows)
            found = difference(got.outputs.get(name), None if whole is None else whole[part])
            yield self._row("batch", name, rows, found, self.tolerance(name, rows), got)

    def beside_itself(self, name: str, again: "Answer") -> Comparison:
        """Compare with a second run: byte for byte on the CPU."""
        found = difference(again.outputs.get(name), self.answers[RERUN_ROWS].outputs.get(name))
        exactly = self.run.engine.device == "cpu"
        tolerance = EXACTLY if exactly else self.tolerance(name, RERUN_ROWS)
        return self._row("rerun", name, RERUN_ROWS, found, tolerance, again)

    def elbo(self) -> ElboParity:
        """Hold the ELBO of all rows to its goals."""
        found = self.answers[ROWS].outputs
        return compare_elbo(found, self.case.exact, self.noise, self.run.rules, self.run.setting)

    def _row(
        self,
        rule: Rule,
        name: str,
        rows: int,
        found: tuple[Array, str],
        tolerance: Tolerance,
        got: "Answer",
    ) -> Comparison:
        error, reason = found
        return compare(
            error,
            tolerance,
            self.run.setting,
            reason=got.reason or reason,
            rule=rule,
            operation=self.case.operation.name,
            output=name,
            batch=rows,
            rows=self.case.kind,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What the engine made of some rows; without outputs where it could not run."""

    outputs: Outputs
    reason: str = ""


def plan_runs(devices: Sequence[Device], threads: int, rules: Rules) -> Iterator[Plan]:
    """What is run: as it serves, then at other levels, on other threads, and on CUDA with TF32."""
    for device in devices:
        served = Setting(provider=PROVIDERS[device], level="all", threads=threads)
        yield Plan(device, served, rules, as_served=True)
        for level in OTHER_LEVELS:
            yield Plan(device, replace(served, level=level), rules)
        if device == "cuda":
            yield Plan(device, replace(served, tf32=True), TF32, as_served=True)
        else:
            for other in THREADS:
                if other != threads:
                    yield Plan(device, replace(served, threads=other), rules)


def open_run(bundle: Bundle, plan: Plan) -> Run:
    """Open the engine under one setting."""
    setting = plan.setting
    engine = Engine(
        bundle,
        device=plan.device,
        threads=setting.threads,
        level=setting.level,
        tf32=setting.tf32,
    )
    return Run(engine, setting, plan.rules, plan.as_served)


def make_cases(plans: Sequence[Plan], bundle: Bundle, model: VAE, x: Array) -> Iterator[Case]:
    """Every operation on every kind of rows, with the reference outputs that the plans need."""
    rules = {plan.rules.precision: plan.rules for plan in plans}
    for operation in bundle.operations.values():
        least: Mapping[str, Tolerance] = {}
        for kind, inputs in unambiguous_cases(model, operation, x, bundle.manifest.likelihood):
            exact = run_reference(model, operation, inputs, torch.float64)
            rounded = {name: rule.noise(model, operation, inputs) for name, rule in rules.items()}
            if kind == "held-out":  # the first
                least = {name: Tolerance.of_roundings(values) for name, values in exact.items()}
            yield Case(operation, kind, inputs, exact, rounded, least)


def unambiguous_cases(
    model: VAE, operation: Operation, x: Array, likelihood: str
) -> Iterator[tuple[Kind, dict[str, Array]]]:
    """The cases, of each the rows whose rounding to int8 is beyond doubt, again and again.

    Where held-out rows have none, all are compared, and may fail; of other kinds there can be none.
    """
    for kind, inputs in draw_cases(operation, x, likelihood):
        rows = unambiguous_rows(model, operation, inputs)
        if rows.size:
            yield kind, {name: v[np.resize(rows, len(v))] for name, v in inputs.items()}
        elif kind == "held-out":
            yield kind, inputs


def compare_case(run: Run, case: Case) -> Iterator[Comparison | ElboParity]:
    """Compare every output at every batch; held-out rows as served also with themselves."""
    trial = Trial.make(run, case)
    for name in case.exact:
        yield from trial.beside_torch(name)
    if not run.as_served or case.kind != "held-out":
        return
    again, backwards = (answer(run, case, rows) for rows in (slice(RERUN_ROWS), BACKWARDS))
    for name in case.exact:
        yield from trial.beside_other_batches(name, backwards)
        yield trial.beside_itself(name, again)
    if case.operation.name == "score":
        yield trial.elbo()


def answer(run: Run, case: Case, rows: slice) -> Answer:
    """Run some rows of a case."""
    inputs = {name: values[rows] for name, values in case.inputs.items()}
    try:
        return Answer(run.engine.run(case.operation.name, inputs))
    except Exception as err:  # noqa: BLE001  onnxruntime's exceptions share no base class
        return Answer({}, f"the engine cannot run it: {err}")
