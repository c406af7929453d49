"""Explain a row of a mixed table cell by cell: what it holds, what the model expects, and the lift.

In: a row and the model. Out: cells as text, in the table's own words and units, those that fit the
rest of the row least first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.batch.result_columns import order_columns
from serving.batch.scorer import Scorer
from serving.cells import OTHER, decode_cells
from serving.engine import Engine
from serving.noise import draw_eps
from serving.schema import Column, Schema

Array = NDArray[Any]

CELLS = 6
"""Cells of a row that are explained, unless another number is asked for."""
_DRAWS = 256
"""Draws from which the expected value of a cell is computed."""


@dataclass(frozen=True, slots=True)
class ExplainedCell:
    """A cell, and how it fits the rest of its row."""

    column: str
    value: str
    expected: str
    """The mean of a number, the likeliest word."""
    nats: float
    """The column's lift: below 0, the value is less likely given its row than among all rows."""


def explain_cells(scorer: Scorer, schema: Schema, x: Array) -> list[ExplainedCell]:
    """Return cells of a row (columns,) by their lift, as many as are wanted and no gaps."""
    most = scorer.results.choice.explain or CELLS
    lift = scorer.find_lift(x[None])[0]
    order = order_columns(x[None], lift[None])[0]
    places = [place for place in order.tolist() if not np.isnan(x[place])][:most]
    expected = _expect(scorer.engine, x, places, scorer.provenance.seed)
    return [
        ExplainedCell(
            schema.columns[place].name,
            _to_text(schema.columns[place], x[place], digits=7),
            _to_text(schema.columns[place], value, digits=4),
            float(lift[place]),
        )
        for place, value in zip(places, expected.tolist(), strict=True)
    ]


def _expect(engine: Engine, x: Array, places: Sequence[int], seed: int) -> Array:
    """Return what each cell would be filled with, (places,), if it alone were a gap."""
    rows = np.arange(len(places))
    hidden = np.repeat(x[None], len(places), 0)
    hidden[rows, places] = np.nan
    eps = draw_eps(hidden, seed, _DRAWS, engine.bundle.manifest.latent_dim)
    filled = engine.run("impute", {"x": hidden, "eps": eps})["x_filled"]
    return np.asarray(filled[rows, places])


def _to_text(column: Column, code: float, digits: int) -> str:
    """Return a value of `x`, which is no gap, as a person would write it in the table."""
    value = decode_cells(column, np.array([code]))[0]
    if value is None or value != value:
        return OTHER
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"
    return str(value).replace("T", " ") if isinstance(value, np.datetime64) else str(value)
