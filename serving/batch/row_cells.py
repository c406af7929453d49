"""Explain a row of a mixed table cell by cell: what it holds, what the model expects, and the lift.

In: a row, its reconstruction and the lift of its columns. Out: cells as text, in the table's own
words and units, those that fit the rest of the row least first.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.batch.result_columns import order_columns
from serving.cells import OTHER, decode_cells
from serving.schema import Column, Schema

Array = NDArray[Any]

CELLS = 6
"""Cells of a row that are shown, unless another number is asked for."""


@dataclass(frozen=True, slots=True)
class ExplainedCell:
    """A cell, and how it fits the rest of its row."""

    column: str
    value: str
    expected: str
    nats: float
    """The column's lift: below 0, the value is less likely given its row than among all rows."""


def explain_cells(
    schema: Schema, x: Array, x_loc: Array, column_lift: Array
) -> list[ExplainedCell]:
    """Return the cells of a row (columns,) that are no gaps, by their lift."""
    order = order_columns(x[None], column_lift[None])[0]
    return [
        ExplainedCell(
            schema.columns[place].name,
            _to_text(schema.columns[place], x[place], digits=7),
            _to_text(schema.columns[place], x_loc[place], digits=4),
            float(column_lift[place]),
        )
        for place in order.tolist()
        if not np.isnan(x[place])
    ]


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
