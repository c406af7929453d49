"""How unusual a row is among a version's held-out rows: conformal p-values, and who is flagged.

Bates et al. (2023, arXiv 2104.08279), section 1.2: if a new row is exchangeable with the held-out
rows, the share of these that score at most as high, counting itself, is at most u with probability
u. The procedure of Benjamini & Hochberg (1995) keeps its level over these p-values (theorem 2).

In: a bundle's held-out scores, and the scores of new rows with as many draws. Out: p-values, and
the largest one that is flagged. Raises `UsageRefused` for a score that the model does not have.
"""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from serving.bundle import HELD_OUT, Bundle
from serving.combined_score import CombinedScore, read_combined
from serving.drift import held_out_samples
from serving.early_combined_score import EarlyCombinedScore, read_early
from serving.errors import UsageRefused, VerificationFailed
from serving.operations import By

Array = NDArray[Any]

OF_MIXED: tuple[By, ...] = ("column_max", "consistency", "combined")
"""Scores that only models of mixed tables have."""
_COUNTS = ("num_samples", "seed")


@dataclass(frozen=True, slots=True)
class HeldOutScores:
    """The scores of held-out rows, and how they were made."""

    num_samples: int
    seed: int
    scores: Mapping[str, Array]
    """Arrays (rows,) by the names of the outputs of `score`, `column_max` and `combined`; and
    `column_log_likelihood` (some rows, columns) of tables, which early bundles do not hold."""
    combined: CombinedScore | EarlyCombinedScore | None = None
    """How `combined` follows from other scores, if the model has it."""

    def arrays(self) -> dict[str, Array]:
        """Return the content of `held_out.npz`, which `read_held_out_scores` reads."""
        counts = {name: np.array(getattr(self, name)) for name in _COUNTS}
        return {**counts, **self.scores, **(self.combined.arrays() if self.combined else {})}


def read_held_out_scores(bundle: Bundle) -> HeldOutScores | None:
    """Read the held-out scores of a bundle; None if it has none.

    Raises:
        VerificationFailed: the file cannot be read.
    """
    if HELD_OUT not in bundle.manifest.files:
        return None
    path = bundle.path / HELD_OUT
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            content = dict(arrays)
        num_samples, seed = (int(content.pop(name)) for name in _COUNTS)
        combined = read_combined(content) or read_early(content)
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as err:
        raise VerificationFailed(f"cannot read {path}: {err!r}") from err
    return HeldOutScores(num_samples, seed, content, combined)


def default_samples(bundle: Bundle, operation: str) -> int:
    """Return the draws per row that a job has by default: those of the held-out rows."""
    if operation != "score":
        return 1
    held_out = read_held_out_scores(bundle)
    if held_out is not None:
        return held_out.num_samples
    return held_out_samples(mixed=bundle.manifest.schema is not None)


def check_by(by: str, *, mixed: bool, combined: bool = False) -> By:
    """Return the score to compare rows by; if `by` is empty, the one that finds most.

    `combined` is there if the held-out rows of a mixed table were scored with as many draws.

    Raises:
        UsageRefused: there is no such score, or only mixed tables have it.
    """
    allowed = [name for name in get_args(By) if mixed or name not in OF_MIXED]
    chosen: str = by or ("combined" if combined else "consistency" if mixed else "elbo")
    if chosen not in allowed:
        raise UsageRefused(f"--by must be one of {', '.join(allowed)} for this model, got {by!r}")
    return cast(By, chosen)


def choose_score(by: By, outputs: Mapping[str, Array]) -> Array:
    """Return the score (rows,) by which rows are compared, from the outputs of `score`."""
    if by == "latent":
        return -outputs["kl"]
    if by == "column_max" and by not in outputs:
        return smallest_lift(outputs["column_lift"])
    return outputs[by]


def smallest_lift(column_lift: Array) -> Array:
    """Return the smallest lift of a row, (rows,), from (rows, columns); that of a gap is 0."""
    smallest: Array = column_lift.min(1)
    return smallest


class PValues:
    """Gives the p-value of each new score: the smaller, the more unusual is the row."""

    def __init__(self, held_out: Array) -> None:
        self._sorted = np.sort(held_out)

    @property
    def rows(self) -> int:
        """Number of held-out rows."""
        return len(self._sorted)

    def __call__(self, scores: Array) -> NDArray[np.float64]:
        """Return (1 + number of held-out scores up to the new one) / (rows + 1), (rows,)."""
        up_to = np.searchsorted(self._sorted, scores, "right")
        return np.asarray((1 + up_to) / (self.rows + 1), np.float64)


class FlagCounter:
    """Counts p-values; they have only `held_out_rows + 1` values, so that counts hold them all."""

    def __init__(self, held_out_rows: int) -> None:
        self._values = held_out_rows + 1
        self._counts = np.zeros(self._values + 1, np.int64)

    def add(self, p_values: Array) -> None:
        """Count some rows."""
        ranks = np.rint(p_values * self._values).astype(np.int64)
        self._counts += np.bincount(ranks, minlength=len(self._counts))

    def flag(self, fdr: float) -> "Flags":
        """Return which p-values Benjamini and Hochberg's procedure flags at the level `fdr`.

        These are all up to the largest p with p <= fdr * (rows up to p) / (all rows). It compares
        whole numbers, so that a p-value at the border is treated like the decimal `fdr` says.
        """
        level, total = Fraction(str(fdr)), int(self._counts.sum())
        up_to = np.cumsum(self._counts).tolist()
        for rank in range(self._values, 0, -1):
            enough = rank * total <= level * up_to[rank] * self._values
            if self._counts[rank] and enough:
                return Flags(up_to[rank], rank / self._values, total, self._needed(level, total))
        return Flags(0, None, total, self._needed(level, total), int(self._counts[1]))

    def _needed(self, level: Fraction, total: int) -> int:
        return -int(-total // (level * self._values))


@dataclass(frozen=True, slots=True)
class Flags:
    """What a false discovery rate flags."""

    flagged: int
    """Number of rows."""
    threshold: float | None
    """The largest p-value that is flagged; None if none is."""
    rows: int
    """Number of all rows."""
    needed: int
    """How many rows would have to have the smallest possible p-value, if no other is small."""
    smallest: int = 0
    """How many rows have it, if none is flagged."""

    def describe(self, held_out_rows: int, fdr: float) -> str | None:
        """Say why no row can be flagged or is, with the numbers; None if some are."""
        if self.flagged or not self.rows:
            return None
        least = 1 / (held_out_rows + 1)
        if self.needed > self.rows:
            return (
                f"no row can be flagged: the smallest p-value against {held_out_rows:,} held-out "
                f"rows is {least:.2g}, above --fdr {fdr:g}; hold out more rows, or take a larger "
                "--fdr"
            )
        return (
            f"no row is flagged: among {self.rows:,} rows, --fdr {fdr:g} needs {self.needed:,} "
            f"with the p-value {least:.2g}, the smallest against {held_out_rows:,} held-out rows, "
            f"and {self.smallest:,} have it"
        )
