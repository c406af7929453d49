"""What one comparison found: its errors, their tolerances, and whether they are within them.

These are values; nothing here runs a model. `ParityReport` collects them.
"""

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from pipeline.model.operations import Array, Tolerance, rms
from pipeline.parity.row_counts import Kind
from serving.sessions import Level

Rule = Literal[
    "interface",
    "graph",
    "operators",
    "needs",
    "noise",
    "weights",
    "pattern",
    "values",
    "batch",
    "rerun",
    "elbo",
    "reduction",
]
"""The rules that a bundle must meet. The tensors of a graph are those of the operation table
(interface); the graph is valid ONNX (graph); its operators are pure functions of a row (operators);
it needs of a runtime what the manifest says, and a portable one no float64 (needs); the graphs of
noise draw what the engine draws (noise); the weights are the bytes of the state dict
(weights); dtypes, shapes and NaN are those of torch (pattern), and so are the values (values); a
row does not depend on its batch (batch); a second run gives the same bytes (rerun); the ELBO of
held-out rows is that of torch (elbo) and, in reduced precision, near that of float64 (reduction).
"""

HISTOGRAM_EDGES = tuple(np.arange(-4, 1.5, 0.5).tolist())
"""Edges of log10(error / max_tolerance): 0 is the whole tolerance. One more bin on either side
counts (almost) zero errors, and gross errors together with those that are not a number."""

_LIMITS = 10.0 ** np.array(HISTOGRAM_EDGES)


@dataclass(frozen=True, slots=True)
class Fault:
    """A rule that is broken, and how."""

    rule: Rule
    message: str

    def __str__(self) -> str:
        """Describe the fault in one line."""
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
    """One output at one batch size; errors are absolute, in the units of the output."""

    rule: Rule
    """`values`: compared with float64; `batch`: with the same rows in another batch; `rerun`: with
    a second run."""
    operation: str
    output: str
    batch: int
    rows: Kind
    provider: str
    level: Level
    threads: int
    tf32: bool
    max_error: float
    max_tolerance: float
    rms_error: float
    rms_tolerance: float
    reason: str = ""
    """Why it failed before any number was compared."""
    histogram: tuple[int, ...] = ()
    """Number of errors in each bin of `HISTOGRAM_EDGES`."""

    @property
    def passed(self) -> bool:
        """Whether both errors are within their tolerances; NaN is not."""
        within = self.max_error <= self.max_tolerance and self.rms_error <= self.rms_tolerance
        return within and not self.reason

    @property
    def share(self) -> float:
        """The share of its tolerance that the larger error used; infinite for NaN."""
        errors = ((self.max_error, self.max_tolerance), (self.rms_error, self.rms_tolerance))
        return max(_share(error, tolerance) for error, tolerance in errors)

    @property
    def name(self) -> str:
        """The output, and of which operation."""
        return f"{self.operation}.{self.output}"

    @property
    def place(self) -> str:
        """Which output of which run this is, for a message."""
        return (
            f"{self.name} at batch {self.batch} of {self.rows} rows "
            f"({short_provider(self)}, level {self.level}, threads {self.threads})"
        )

    def fault(self) -> Fault:
        """Describe what is wrong with a comparison that has not passed."""
        if self.reason:
            return Fault("pattern", f"{self.place}: {self.reason}")
        errors = (
            ("off by", self.max_error, self.max_tolerance),
            ("root mean square error", self.rms_error, self.rms_tolerance),
        )
        what, error, tolerance = errors[self.max_error <= self.max_tolerance]
        return Fault(self.rule, f"{self.place}: {what} {error:.3g}, allowed {tolerance:.3g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ElboParity:
    """The ELBO of held-out rows compared with float64, under one setting.

    A goal is what is asked of any model. The tolerance is the goal or, if the sum of many float32
    numbers cannot come closer, four times the error of torch itself.
    """

    provider: str
    tf32: bool
    operation: str = "score"
    """The form of the operation that computed it."""
    rows: int
    mean_error: float
    """Error of the mean over the rows, in nats."""
    mean_goal: float
    mean_tolerance: float
    row_error: float
    """Largest error of a row, as a share of the row's |log-likelihood| + KL."""
    row_goal: float
    row_tolerance: float
    different: int = 0
    """How many of the rows are different, as fewer held-out rows are repeated; 0 if unknown."""

    @property
    def passed(self) -> bool:
        """Whether both errors are within their tolerances; NaN is not."""
        return self.mean_error <= self.mean_tolerance and self.row_error <= self.row_tolerance

    def line(self) -> str:
        """Describe the errors and their tolerances for a person."""
        return (
            f"ELBO of {describe_rows(self)} ({self.operation}, {short_provider(self)}): "
            f"mean off by {self.mean_error:.2e} nats, allowed {self.mean_tolerance:.2e}; "
            f"a row by {self.row_error:.2e} of its size, allowed {self.row_tolerance:.2e}"
        )


def compare(
    error: Array, tolerance: Tolerance, setting: Setting, *, reason: str = "", **what: Any
) -> Comparison:
    """Compare absolute errors with a tolerance; `what` are the other fields of a `Comparison`."""
    return Comparison(
        **what,
        **asdict(setting),
        max_error=float(error.max()),
        max_tolerance=tolerance.max,
        rms_error=rms(error),
        rms_tolerance=tolerance.rms,
        reason=reason,
        histogram=_histogram(error, tolerance.max),
    )


def describe_share(share: float) -> str:
    """Describe for a person which share of its tolerance a comparison used."""
    return f"{share:.0%}" if share < 100 else "far more"


def describe_rows(row: ElboParity) -> str:
    """Count rows for a person; rows that are repeated are not more than they are."""
    repeats = f", {row.different:,} of them different" if 0 < row.different < row.rows else ""
    return f"{row.rows:,} rows{repeats}"


def short_provider(row: Comparison | ElboParity) -> str:
    """Name the provider of a run for a person, and TF32 if it was on."""
    name = row.provider.removesuffix("ExecutionProvider")
    return f"{name} with TF32" if row.tf32 else name


def _share(error: float, tolerance: float) -> float:
    if tolerance == 0:
        return 0.0 if error == 0 else np.inf
    share = error / tolerance
    return share if np.isfinite(share) else np.inf


def _histogram(error: Array, tolerance: float) -> tuple[int, ...]:
    limits = np.maximum(tolerance * _LIMITS, np.nextafter(0, 1))  # an error of 0 is below all
    beyond = [int(np.count_nonzero(~(error < limit))) for limit in limits]  # NaN is beyond all
    counts = (error.size, *beyond, 0)
    return tuple(more - fewer for more, fewer in pairwise(counts))
