"""Gather training rows of a mixed table around centres, for the distance of new rows from them.

In: the schema and training rows (rows, columns). Out: a `RowDistance`. The centres are those of
k-means by Lloyd's algorithm (1982): rows go to their nearest centre, which becomes their mean.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.row_distance import CellCodes, RowDistance
from serving.schema import Schema

Array = NDArray[Any]

MOST_CENTRES = 256
"""On twenty-one tables, none of the benchmark's, half as many cost 0.002 to 0.004 of the AUROC."""
FEWEST_ROWS = 2
"""Rows around a centre, so that none of them is a single training row."""
MOST_ROWS = 5000
"""Training rows that are gathered."""
ROUNDS = 10
_MOST_VALUES = 2**25
"""Of these rows once they are encoded, 128 MB, so that fewer rows of wide tables are gathered."""
_MOST_CODES = 2**23
"""Codes of all columns times centres, 32 MB in memory, so that wide tables have fewer centres."""


def find_centres(schema: Schema, train: Array) -> RowDistance:
    """Return the distance from training rows; of many, a fixed random choice is gathered."""
    generator = np.random.default_rng(0)
    codes = _fit_codes(schema, train)
    axes = sum(vectors.shape[1] for vectors in codes.vectors())
    chosen = generator.permutation(len(train))[: min(MOST_ROWS, max(1, _MOST_VALUES // axes))]
    rows = codes.encode(train[chosen])
    most = min(MOST_CENTRES, _MOST_CODES // int((codes.gap + 1).sum()), len(rows) // FEWEST_ROWS)
    centres = rows[: max(1, most)].copy()
    for _ in range(ROUNDS):
        nearest = _find_nearest(rows, centres)
        counts = np.bincount(nearest, minlength=len(centres))
        for place in np.flatnonzero(counts):
            centres[place] = rows[nearest == place].mean(0, np.float64)
    return RowDistance(codes, centres[counts >= min(FEWEST_ROWS, len(rows))])


def _fit_codes(schema: Schema, train: Array) -> CellCodes:
    words = np.array([len(column.words) for column in schema.columns])
    kinds = np.array([column.kind for column in schema.columns])
    # the log of 1 + a count, and of a positive number, where a 0 counts as the smallest other one
    offset = np.where(kinds == "count", 1.0, 0.0)
    smallest = np.where(train > 0, train, np.inf).min(0)
    has_log = (kinds == "positive") & (smallest < np.inf)
    least = np.select([kinds == "count", has_log], [1.0, smallest])
    codes = CellCodes(words, offset, least, np.zeros(len(words)), np.ones(len(words)))
    bent = codes.bend(train)
    for place in np.flatnonzero(words == 0):
        values = bent[~np.isnan(bent[:, place]), place]
        if len(values):
            codes.shift[place], codes.scale[place] = values.mean(), values.std() or 1.0
    return codes


def _find_nearest(rows: Array, centres: Array) -> NDArray[np.intp]:
    """Return the nearest centre of each row, (rows,); a row's own square would change nothing."""
    nearest: NDArray[np.intp] = np.argmin(np.square(centres).sum(1) - 2 * rows @ centres.T, axis=1)
    return nearest
