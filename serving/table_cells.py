"""Convert the rows of a table to `x` and back by the names of its columns, with numpy alone.

In: a schema, and the cells of each of its columns. Out: `x` (rows, columns), why rows cannot be
used, and how often the schema does not know a word or a gap.
"""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.cells import FAULTS, OTHER, CellEncoder, Cells, decode_cells
from serving.schema import Schema

Array = NDArray[Any]

_SHOWN = 5


@dataclass(slots=True)
class TableCells:
    """The rows of a table as `x`, what cannot be used, and what the schema does not know."""

    x: NDArray[np.float32]
    """(rows, columns); the rows with a fault are among them."""
    faults: NDArray[np.uint8]
    """The code (rows,) of a row's first fault."""
    faulty: NDArray[np.int32]
    """The place (rows,) of the source of that fault among those of the encoder."""
    unseen: dict[str, int] = field(default_factory=dict)
    """How many good rows hold a word that the schema does not have, by the table's column."""
    new_gaps: dict[str, int] = field(default_factory=dict)
    """How many good rows have a gap, by the table's column, if it had none in training."""


class TableEncoder:
    """Encodes the rows of a table by its columns' names; threads may share it."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        places: dict[str, list[int]] = {}
        for place, column in enumerate(schema.columns):
            places.setdefault(column.table_column, []).append(place)
        self._places = places
        self.encoders = {
            name: CellEncoder([schema.columns[place] for place in own])
            for name, own in places.items()
        }

    def encode(self, rows: int, read: Callable[[str, CellEncoder], Cells]) -> TableCells:
        """Encode rows; `read` returns the cells of a table's column."""
        x = np.empty((rows, len(self.schema.columns)), np.float32)
        table = TableCells(x, np.zeros(rows, np.uint8), np.zeros(rows, np.int32))
        marks = []
        for index, (name, places) in enumerate(self._places.items()):
            cells = read(name, self.encoders[name])
            x[:, places] = cells.x
            bad = (cells.faults > 0) & (table.faults == 0)
            if bad.any():
                table.faults[bad], table.faulty[bad] = cells.faults[bad], index
            if cells.unseen.any():
                marks.append((table.unseen, name, cells.unseen))
            gaps = np.isnan(cells.x[:, 0])
            if self.schema.columns[places[0]].missing == 0 and gaps.any():
                marks.append((table.new_gaps, name, gaps))
        good = table.faults == 0
        for counts, name, mark in marks:
            if number := int(np.count_nonzero(mark & good)):
                counts[name] = number
        return table

    def encode_arrays(self, arrays: Mapping[str, Array]) -> TableCells:
        """Encode arrays (rows,) by the names of the table's columns."""
        rows = len(next(iter(arrays.values())))
        return self.encode(rows, lambda name, encoder: encoder.encode(arrays[name]))

    def explain(self, fault: int, place: int) -> str:
        """Say what is wrong with a row, by its `faults` and `faulty`."""
        return f"column {self.schema.sources[place]!r} {FAULTS[fault]}"


def decode_table(schema: Schema, x: Array) -> dict[str, Array]:
    """Return the columns of a table from `x` (rows, columns), a date from its day alone."""
    return {
        column.table_column: decode_cells(column, x[:, place])
        for place, column in enumerate(schema.columns)
        if column.part in ("", "day")
    }


class UnknownCells:
    """Counts of what a schema does not know, over all batches of a job; threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unseen: Counter[str] = Counter()
        self._new_gaps: Counter[str] = Counter()

    def add(self, cells: TableCells) -> None:
        """Add the counts of a batch."""
        if cells.unseen or cells.new_gaps:
            with self._lock:
                self._unseen.update(cells.unseen)
                self._new_gaps.update(cells.new_gaps)

    def describe(self) -> list[str]:
        """Say what was found, in at most two lines."""
        counts = {
            f"words not seen in training count as {OTHER}": self._unseen,
            "gaps in columns that had none in training": self._new_gaps,
        }
        return [f"{what}: {_list_counts(found)}" for what, found in counts.items() if found]


def _list_counts(counts: Counter[str]) -> str:
    shown = [f"{name} in {number:,} rows" for name, number in counts.most_common(_SHOWN)]
    more = f" and {len(counts) - _SHOWN} more columns" if len(counts) > _SHOWN else ""
    return ", ".join(shown) + more
