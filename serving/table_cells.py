"""Convert the rows of a table to `x` and back by the names of its columns, with numpy alone.

In: a schema, and the cells of each of its columns. Out: `x` (rows, columns), why rows cannot be
used, and how often the schema does not know a word or a gap.
"""

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cells import FAULTS, OTHER, CellEncoder, Cells, decode_cells, encode_numbers
from .schema import Schema

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
        self._order = {name: index for index, name in enumerate(places)}
        self.encoders = {
            name: CellEncoder([schema.columns[place] for place in own])
            for name, own in places.items()
        }

    @property
    def number_names(self) -> tuple[str, ...]:
        """The table's columns that are numbers, and neither words nor dates."""
        return tuple(name for name, encoder in self.encoders.items() if encoder.takes_numbers)

    def encode(
        self,
        rows: int,
        read: Callable[[str, CellEncoder], Cells],
        names: Sequence[str] = (),
        numbers: Array | None = None,
    ) -> TableCells:
        """Encode rows; `read` returns the cells of a table's column.

        `numbers` (rows, columns), with NaN for gaps, are the values of those of `number_names` that
        are in `names`: all of them at once take a tenth of the time.
        """
        x = np.empty((rows, len(self.schema.columns)), np.float32)
        faults, faulty = np.zeros(rows, np.uint8), np.full(rows, len(self._places), np.int32)
        table = TableCells(x, faults, faulty)
        marks: list[tuple[dict[str, int], str, Array]] = []
        if numbers is not None and len(names):
            marks += self._encode_block(table, names, numbers)
        done = frozenset(names)
        for name, places in self._places.items():
            if name not in done:
                cells = read(name, self.encoders[name])
                x[:, places] = cells.x
                self._add_faults(table, name, cells.faults)
                marks.append((table.unseen, name, cells.unseen))
                if self.schema.columns[places[0]].missing == 0:
                    marks.append((table.new_gaps, name, np.isnan(cells.x[:, 0])))
        good = table.faults == 0
        for counts, name, mark in marks:
            if number := int(np.count_nonzero(mark & good)):
                counts[name] = number
        return table

    def _encode_block(
        self, table: TableCells, names: Sequence[str], numbers: Array
    ) -> list[tuple[dict[str, int], str, Array]]:
        """Encode columns of numbers; return which rows have a gap, where there was none before."""
        places = [self._places[name][0] for name in names]
        columns = [self.schema.columns[place] for place in places]
        x, faults = encode_numbers(numbers, columns)
        table.x[:, places] = x
        for index in np.flatnonzero(faults.any(0)).tolist():
            self._add_faults(table, names[index], faults[:, index])
        gaps = np.isnan(x)
        complete = np.array([column.missing == 0 for column in columns])
        return [
            (table.new_gaps, names[index], gaps[:, index])
            for index in np.flatnonzero(gaps.any(0) & complete).tolist()
        ]

    def _add_faults(self, table: TableCells, name: str, faults: Array) -> None:
        """Give the rows with a fault its code, unless a column further left has one."""
        if faults.any():
            place = self._order[name]
            bad = (faults > 0) & (place < table.faulty)
            table.faults[bad], table.faulty[bad] = faults[bad], place

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

    def take(self) -> dict[str, dict[str, int]]:
        """Return all counts in JSON's own types, and begin again."""
        with self._lock:
            taken = {"unseen": dict(self._unseen), "new_gaps": dict(self._new_gaps)}
            self._unseen.clear()
            self._new_gaps.clear()
        return taken

    def merge(self, taken: Mapping[str, Mapping[str, int]]) -> None:
        """Add what `take` returned in another process."""
        with self._lock:
            self._unseen.update(taken["unseen"])
            self._new_gaps.update(taken["new_gaps"])

    def describe(self) -> list[str]:
        """Say what was found, in at most two lines."""
        counts = {
            f"words not seen in training count as {OTHER}": self._unseen,
            "gaps in columns that had none in training": self._new_gaps,
        }
        return [f"{what}: {list_counts(found)}" for what, found in counts.items() if found]


def list_counts(counts: Mapping[str, int]) -> str:
    """Name the columns that most rows have, and how many rows."""
    shown = [f"{name} in {number:,} rows" for name, number in Counter(counts).most_common(_SHOWN)]
    more = f" and {len(counts) - _SHOWN} more columns" if len(counts) > _SHOWN else ""
    return ", ".join(shown) + more
