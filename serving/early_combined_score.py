"""The score `combined` of bundles that know no distance from the training rows.

They compare each cell with the held-out ones of its column: log p of `consistency`, plus `WEIGHT`
times the log p of the sum of the cells' own log p.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.combined_score import find_log_p

Array = NDArray[Any]

WEIGHT = 0.5
_RANKS = np.unique([0, *np.round(2 ** np.arange(0, 14, 0.25))]).astype(np.int64)
"""Counts of held-out rows that are told apart; between them p-values are rounded down."""


@dataclass(frozen=True, slots=True)
class EarlyCombinedScore:
    """What held-out rows say of new ones."""

    consistency: Array
    """Of each held-out row, in order, (rows,)."""
    columns: Array
    """How likely the cells of each are in their columns, in order, (rows,)."""
    knots: Array
    """The log-likelihoods of held-out cells at `_RANKS`, (columns, ranks); infinite beyond them."""
    counts: Array
    """Held-out cells that are no gaps, (columns,)."""

    def __call__(self, outputs: Mapping[str, Array], x: Array) -> Array:
        """Return the score (rows,) of new rows `x` (rows, columns), from the outputs of `score`."""
        cells, gaps = np.zeros(len(x)), np.isnan(x)
        log_likelihood = outputs["column_log_likelihood"]
        for index, (knots, count) in enumerate(zip(self.knots, self.counts, strict=True)):
            places = np.searchsorted(knots, log_likelihood[:, index], "right")
            log_p = np.log((1 + _RANKS) / (1 + count))[places]
            cells += np.where(gaps[:, index], 0, 1 + log_p)  # the mean of log p is -1
        log_p = find_log_p(self.consistency, outputs["consistency"])
        log_p += WEIGHT * find_log_p(self.columns, cells)
        return log_p.astype(np.float32)

    def arrays(self) -> dict[str, Array]:
        """Return what `read_early` reads beside the held-out rows' `consistency`."""
        return {f"combined.{item.name}": getattr(self, item.name) for item in fields(self)[1:]}


def read_early(arrays: dict[str, Array]) -> EarlyCombinedScore | None:
    """Take what belongs to the score out of a file's arrays; None if it is not there."""
    names = [item.name for item in fields(EarlyCombinedScore)[1:]]
    found = {name: arrays.pop(f"combined.{name}") for name in names if f"combined.{name}" in arrays}
    if "consistency" not in arrays or len(found) < len(names):
        return None
    return EarlyCombinedScore(np.sort(arrays["consistency"]), **found)
