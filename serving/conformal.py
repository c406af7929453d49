"""P-values of a stream of scores that are exactly uniform and independent, in bounded memory.

Each new score is ranked among the held-out scores and all new ones before it; ties, itself among
them, are broken by chance. If held-out and new rows are exchangeable, such as rows drawn one by one
from one source, these p-values are independent and uniform on [0, 1], at any number of held-out
rows: Vovk, Gammerman & Shafer (2005), Algorithmic Learning in a Random World, theorem 8.1. Ranked
among the held-out scores alone they are not: these are few, and every new score meets the same
ones.

Ranks come from counts. A function that does not depend on the ranked scores maps each to one of
`CELLS` cells, and exchangeable scores have exchangeable cells. The cells are laid out by the scale
of a few held-out scores, which are not ranked: given these, the others are exchangeable still.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

CELLS = 4095
"""Scores that are told apart: about 0.006 quartile ranges at the median, and 0.6 % far from it. The
number is odd, so that the median lies in the middle of a cell: it may be the score of most rows."""
LEAST_SCALE = 1.0
"""The quartile range is taken for no less, in nats: the roundings of two machines are no drift."""
LEAST_HELD_OUT = 16
"""Fewer held-out rows are too few to lay out the cells."""
_REACH = 12.0
"""The cells reach sinh(12), 80,000 quartile ranges, to both sides."""
_LAYOUT_SHARE, _MOST_LAYOUT = 8, 256
"""One in eight held-out rows lays out the cells, and at most so many."""
_SEED = 0


class ConformalStream:
    """Ranks the rows of a stream by several scores at once.

    Args:
        held_out: held-out scores (rows,) by name, at least `LEAST_HELD_OUT` of each.

    The same rows in the same order have the same p-values, whichever way they are cut into calls.
    """

    def __init__(self, held_out: Mapping[str, Array]) -> None:
        self.names = tuple(held_out)
        self.rows = 0
        """New rows ranked so far."""
        self._edges = []
        self.counts = np.zeros((len(held_out), CELLS), np.int64)
        """Scores in each cell, of held-out and new rows, (scores, CELLS)."""
        for counts, scores in zip(self.counts, held_out.values(), strict=True):
            layout = np.zeros(len(scores), bool)
            layout[:: max(_LAYOUT_SHARE, -(-len(scores) // _MOST_LAYOUT))] = True
            edges = _lay_out(_finite(scores[layout]))
            self._edges.append(edges)
            counts += np.bincount(_find_cells(edges, scores[~layout]), minlength=CELLS)
        self._seen = self.counts.sum(1)
        self._random = np.random.Generator(np.random.PCG64(_SEED))

    def rank(self, scores: Array) -> Array:
        """Return the p-values of the next rows, (scores, rows); low scores have low ones.

        `scores` is (scores, rows). A score that is no number is the lowest. The cost grows with the
        square of the rows: some dozens at a time are fastest.
        """
        tests, rows = scores.shape
        cells = np.stack(
            [_find_cells(edges, row) for edges, row in zip(self._edges, scores, strict=True)]
        )
        up_to = np.take_along_axis(np.cumsum(self.counts, 1), cells, 1)
        equal = np.take_along_axis(self.counts, cells, 1)
        earlier = np.tri(rows, k=-1, dtype=bool)
        below = up_to - equal + np.sum((cells[:, None] < cells[:, :, None]) & earlier, 2)
        equal = equal + np.sum((cells[:, None] == cells[:, :, None]) & earlier, 2) + 1
        seen = self._seen[:, None] + np.arange(1, rows + 1)
        chance = self._random.random((rows, tests)).T
        for counts, row in zip(self.counts, cells, strict=True):
            np.add.at(counts, row, 1)
        self._seen += rows
        self.rows += rows
        ranked: Array = (below + chance * equal) / seen
        return ranked

    def break_ties_by(self, generator: np.random.Generator) -> None:
        """Take other random numbers than the usual ones, before the first row."""
        self._random = generator

    def restore(self, rows: int, counts: Array) -> None:
        """Go on where a stream over the same held-out scores had ranked so many rows."""
        self.rows, self.counts = rows, counts.astype(np.int64)
        self._seen = self.counts.sum(1)
        bits = np.random.PCG64(_SEED)
        bits.advance(rows * len(self.names))  # a number takes one draw
        self._random = np.random.Generator(bits)


def _finite(scores: Array) -> Array:
    kept = scores[np.isfinite(scores)].astype(np.float64)
    return kept if len(kept) else np.zeros(1)


def _lay_out(scores: Array) -> Array:
    """Return the bounds between cells, narrow at the median and wider the further away."""
    low, middle, high = np.quantile(scores, (0.25, 0.5, 0.75))
    scale = max(high - low, LEAST_SCALE)
    bounds: Array = middle + scale * np.sinh(np.linspace(-_REACH, _REACH, CELLS - 1))
    return bounds


def _find_cells(edges: Array, scores: Array) -> Array:
    known = np.where(np.isnan(scores), -np.inf, scores)
    return np.searchsorted(edges, known, "right")
