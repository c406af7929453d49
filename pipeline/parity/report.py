"""What a parity check found: every comparison, the verdict, and both as a table and as JSON.

Values only: nothing here runs a model. A report that compared nothing has failed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from pipeline.model.operations import Array, Budget, rms
from pipeline.parity.inputs import Kind
from pipeline.parity.quantization_loss import Reduction
from serving.engine import Device, Level

Rule = Literal[
    "interface",
    "graph",
    "operators",
    "weights",
    "pattern",
    "values",
    "batch",
    "rerun",
    "elbo",
    "reduction",
]
"""What can be broken: a graph's tensors are the table's (interface); it is valid ONNX (graph); its
operators are pure; its weights are the state dict's bytes; shape, dtype and NaN are torch's
(pattern), and so are the values; no row depends on its batch; a rerun gives the same bytes; the
ELBO of held-out rows is torch's; in reduced precision, it is near that of float64 (reduction).
"""

HISTOGRAM_EDGES = tuple(np.arange(-4, 1.5, 0.5).tolist())
"""Edges of log10(error / max_budget): 0 is the budget. One more bin stands on either side, so that
the first counts errors of (almost) nothing, the last gross ones and those that are no number."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A rule that is broken, and how."""

    rule: Rule
    message: str

    def __str__(self) -> str:
        """The fault as a line."""
        return f"{self.message} (rule: {self.rule})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How the engine ran."""

    provider: str
    level: Level
    threads: int
    tf32: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One output at one batch size; errors are absolute, in the output's units."""

    rule: Rule
    """`values` beside float64, `batch` beside the same rows in another batch, `rerun` beside
    itself."""
    operation: str
    output: str
    batch: int
    rows: Kind
    provider: str
    level: Level
    threads: int
    tf32: bool
    max_error: float
    max_budget: float
    rms_error: float
    rms_budget: float
    reason: str = ""
    """Why it failed before any number was compared."""
    histogram: tuple[int, ...] = ()
    """Number of errors in each bin of `HISTOGRAM_EDGES`."""

    @property
    def passed(self) -> bool:
        """Whether both errors are within budget; NaN is not."""
        within = self.max_error <= self.max_budget and self.rms_error <= self.rms_budget
        return within and not self.reason

    @property
    def share(self) -> float:
        """The part of the budget that was used, the larger of the two."""
        if self.max_budget == 0:
            return 0.0 if self.passed else np.inf
        shares = (self.max_error / self.max_budget, self.rms_error / self.rms_budget)
        return max(shares) if np.isfinite(shares).all() else np.inf

    @property
    def place(self) -> str:
        """Which output of which run this is."""
        tf32 = " with TF32" if self.tf32 else ""
        return (
            f"{self.operation}.{self.output} at batch {self.batch} of {self.rows} rows "
            f"({_short(self.provider)}{tf32}, level {self.level}, threads {self.threads})"
        )

    def fault(self) -> Fault:
        """What is wrong, of a comparison that has not passed."""
        if self.reason:
            return Fault("pattern", f"{self.place}: {self.reason}")
        errors = (
            ("off by", self.max_error, self.max_budget),
            ("root mean square error", self.rms_error, self.rms_budget),
        )
        what, error, budget = errors[self.max_error <= self.max_budget]
        return Fault(self.rule, f"{self.place}: {what} {error:.3g}, allowed {budget:.3g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ElboParity:
    """The ELBO of held-out rows beside the float64 reference, under one setting.

    Goals are what is asked of any model. A budget is the goal, or four times torch's own error
    where the sum of many float32 numbers cannot be held closer.
    """

    provider: str
    tf32: bool
    rows: int
    mean_error: float
    """Of the mean over the rows, in nats."""
    mean_goal: float
    mean_budget: float
    row_error: float
    """The largest of a row, as a part of the row's |log-likelihood| + KL."""
    row_goal: float
    row_budget: float

    @property
    def passed(self) -> bool:
        """Whether both errors are within budget; NaN is not."""
        return self.mean_error <= self.mean_budget and self.row_error <= self.row_budget

    def line(self) -> str:
        """The errors and their budgets, for a person."""
        tf32 = " with TF32" if self.tf32 else ""
        return (
            f"ELBO of {self.rows} rows ({_short(self.provider)}{tf32}): "
            f"mean off by {self.mean_error:.2e} nats, allowed {self.mean_budget:.2e}; "
            f"a row by {self.row_error:.2e} of its size, allowed {self.row_budget:.2e}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Where a graph first leaves the model: the output, and the node in the order of running."""

    graph: str
    output: str
    """The first output that differs, as operation.output; empty where the noise hides it."""
    node: str
    op_type: str
    value: str
    """Name of the node's output."""
    detail: str

    def line(self) -> str:
        """The place, for a person."""
        output = f"first output that differs: {self.output}; " if self.output else ""
        node = f"{self.node} ({self.op_type})" if self.op_type else self.node
        return f"{output}first node: {node} of {self.graph}: {self.detail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """Every comparison that was made, on which files and on which machine."""

    precision: str
    """Of the bundle: where it is reduced, torch ran with the reduced weights."""
    devices: tuple[Device, ...]
    """What the verdict speaks for."""
    threads: int
    comparisons: tuple[Comparison, ...]
    elbo: tuple[ElboParity, ...]
    graph_faults: tuple[Fault, ...]
    """What is wrong with the graphs and their weights, seen without running them."""
    placement: Mapping[str, Mapping[str, int]]
    """Of each device, the nodes that each provider was given."""
    files: Mapping[str, str]
    """SHA-256 of the graphs and weights that were compared."""
    machine: Mapping[str, str]
    """What results can depend on; `versions` are those of everything else."""
    versions: Mapping[str, str]
    reduction: Reduction | None = None
    """A reduced bundle beside the weights as they were trained."""
    first_difference: Difference | None = None

    @property
    def passed(self) -> bool:
        """Whether something was compared on every device, and nothing failed."""
        judged = self.precision == "float32" or self.reduction is not None
        return bool(self.comparisons and self.elbo) and judged and not self.faults()

    def faults(self) -> list[Fault]:
        """What failed: graphs first, then comparisons in their order, then the bounds."""
        return [
            *self.graph_faults,
            *(row.fault() for row in self.comparisons if not row.passed),
            *(Fault("elbo", row.line()) for row in self.elbo if not row.passed),
            *(Fault("reduction", r.line()) for r in [self.reduction] if r and not r.passed),
        ]

    def table(self) -> str:
        """The worst comparison of each output under each provider, and the budget used there."""
        head = f"{'output':<21} {'on':<10} {'rows':<9} {'batch':>5} {'level':<8} {'max error':>9} "
        lines = [f"  {head}{'allowed':>9} {'used':>5}", *map(_row, _worst(self.comparisons))]
        lines += [f"  {row.line()}" for row in self.elbo]
        lines += [f"  {line}" for line in (self.reduction.lines() if self.reduction else ())]
        faults = self.faults()
        lines += [f"  {fault}" for fault in faults[:10]]
        if len(faults) > 10:
            lines.append(f"  and {len(faults) - 10} more: see parity.json")
        if self.first_difference:
            lines.append(f"  {self.first_difference.line()}")
        verdict = "passed" if self.passed else "FAILED"
        count = f"{len(self.comparisons)} comparisons on {' and '.join(self.devices)}"
        return "\n".join([*lines, f"  parity {verdict}: {count}"])

    def to_json(self) -> dict[str, Any]:
        """The report as `parity.json` keeps it; an error that is no number becomes null."""
        return {
            "verdict": "passed" if self.passed else "failed",
            **asdict(self),
            "comparisons": [_entry(row) for row in self.comparisons],
            "elbo": [_entry(row) for row in self.elbo],
            "reduction": _entry(self.reduction) if self.reduction else None,
            "faults": [asdict(fault) for fault in self.faults()],
            "histogram_edges": HISTOGRAM_EDGES,
        }


def compare(
    error: Array, budget: Budget, setting: Setting, *, reason: str = "", **what: Any
) -> Comparison:
    """Hold absolute errors against a budget; `what` is the rest of a `Comparison`."""
    return Comparison(
        **what,
        **asdict(setting),
        max_error=float(error.max()),
        max_budget=budget.max,
        rms_error=rms(error),
        rms_budget=budget.rms,
        reason=reason,
        histogram=_histogram(error, budget.max),
    )


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")


def _entry(row: Comparison | ElboParity | Reduction) -> dict[str, Any]:
    """A row in JSON's own types, which know no NaN."""
    content = {**asdict(row), "passed": row.passed}
    return {
        key: None if isinstance(value, float) and not np.isfinite(value) else value
        for key, value in content.items()
    }


def _histogram(error: Array, budget: float) -> tuple[int, ...]:
    error = error.ravel()
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(error == 0, -np.inf, np.log10(error / budget))
    shares[np.isnan(shares)] = np.inf
    bins = np.searchsorted(HISTOGRAM_EDGES, shares, side="right")
    return tuple(np.bincount(bins, minlength=len(HISTOGRAM_EDGES) + 1).tolist())


def _worst(comparisons: tuple[Comparison, ...]) -> Iterator[Comparison]:
    """Of each run, output and rule, the comparison that used most of its budget.

    Apart, or the wide budget of TF32 would hide how close float32 comes on the same device.
    """
    worst: dict[tuple[str, bool, str, str, str], Comparison] = {}
    for row in comparisons:
        key = (row.provider, row.tf32, row.operation, row.output, row.rule)
        if key not in worst or not row.share <= worst[key].share:
            worst[key] = row
    yield from (row for row in worst.values() if row.rule == "values" or not row.passed)


def _row(row: Comparison) -> str:
    name = f"{row.operation}.{row.output}"
    run = f"{_short(row.provider)}{' TF32' if row.tf32 else ''}"
    failed = "" if row.passed else f"FAILED {row.rule}"
    return (
        f"  {name:<21} {run:<10} {row.rows:<9} {row.batch:>5} {row.level:<8} {row.max_error:>9.2e} "
        f"{row.max_budget:>9.2e} {row.share:>5.0%}  {failed}".rstrip()
    )
