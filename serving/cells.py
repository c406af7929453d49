"""Convert the cells of a table to the columns of `x` and back, with numpy alone.

In: the values of a table's column, of any type: numbers, booleans, text, dates, or objects of all
of them. Out: float32, with the cells that cannot be used, and words that the schema does not have.
Files, requests and data frames all come here, so that a row has the same bytes whichever way it
comes: one NaN for every gap, no negative zero, and the same code for 3, "3" and 3.0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cell_values import (
    US_PER_DAY,
    factorize,
    find_gaps,
    instant_text,
    number_text,
    parse_instants,
    parse_number,
    parse_numbers,
    to_instants,
)
from .schema import Column

Array = NDArray[Any]

INFINITE, NEGATIVE, TYPE = range(1, 4)
FAULTS: Mapping[int, str] = {
    INFINITE: "is not finite in float32",
    NEGATIVE: "is negative",
    TYPE: "is not of the column's type",
}
"""Why a cell cannot be used; a good one has code 0."""
OTHER = "other"
"""Stands for all words that the schema does not have."""
MAX_INT = 2.0**63 - 1024
"""The largest whole number of 64 bits that a double holds; larger ones are decoded as it."""
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_896
"""The years 1 to 9999, which all calendars and files hold; other days are decoded as their ends."""
_THURSDAY = 3
"""1970-01-01 was one; weeks begin on Monday, day 0."""


@dataclass(slots=True)
class Cells:
    """Cells of a table's column."""

    x: NDArray[np.float32]
    """(rows, columns of x): one column, or one for each part of a date."""
    faults: NDArray[np.uint8]
    """A code of `FAULTS` (rows,)."""
    unseen: NDArray[np.bool_]
    """Whether the word is none of the schema's (rows,)."""

    def take(self, rows: Array) -> "Cells":
        """Return the cells of some rows, which may repeat."""
        return Cells(self.x[rows], self.faults[rows], self.unseen[rows])

    def append(self, other: "Cells") -> "Cells":
        """Return these cells and others after them."""
        return _join((self, other))


class CellEncoder:
    """Encodes the cells of one column of a table.

    Args:
        columns: the columns of `x` that it becomes: one, or the parts of a date.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = tuple(columns)
        self._first = self.columns[0]
        self._is_date = self._first.part != ""
        self._is_text = self._first.type == "text"
        self._codes = {word: code for code, word in enumerate(self._first.words)}

    @property
    def takes_numbers(self) -> bool:
        """Whether the cells are numbers, and neither words nor dates."""
        return not (self._first.words or self._is_date or self._is_text)

    @cached_property
    def _numbers(self) -> tuple[Array, Array]:
        """The words as sorted numbers, and their codes."""
        words = np.array([parse_number(word) for word in self._first.words], np.float64)
        order = np.argsort(words)
        return words[order], order

    def encode(self, values: Array, missing: Array | None = None) -> Cells:
        """Encode values (rows,): numbers, booleans, text, dates or objects.

        `missing` marks gaps, beside None, NaN, NaT and empty text, which are gaps too.
        """
        gaps = find_gaps(values, missing)
        if gaps.any():
            cells = self.gaps(len(values))
            known = self._encode_known(values[~gaps])
            cells.x[~gaps] = known.x
            cells.faults[~gaps] = known.faults
            cells.unseen[~gaps] = known.unseen
            return cells
        return self._encode_known(values)

    def gaps(self, rows: int) -> Cells:
        """Return gaps."""
        x = np.full((rows, len(self.columns)), np.nan, np.float32)
        return Cells(x, np.zeros(rows, np.uint8), np.zeros(rows, bool))

    def _encode_known(self, values: Array) -> Cells:
        if values.dtype.kind in "OSUT":
            distinct, places = factorize(values, as_words=self._is_text)
            parts = (
                self.encode_words(distinct.words),
                self._encode_numbers(distinct.numbers),
                self._encode_instants(distinct.instants),
            )
            return _join(parts).take(places)
        if values.dtype.kind == "M":
            return self._encode_instants(to_instants(values))
        return self._encode_numbers(values)

    def encode_words(self, words: Sequence[str]) -> Cells:
        """Encode text, whatever the type of the column is."""
        if self._is_text:
            return self._look_up(words)
        if self._is_date:
            instants, faults = parse_instants(words)
            cells = self._encode_instants(instants)
            cells.x[faults | np.isnat(instants)] = np.nan
            cells.faults[faults] = TYPE
            return cells
        numbers, faults = parse_numbers(words)
        cells = self._encode_numbers(numbers)
        cells.x[np.isnan(numbers)] = np.nan
        if self._first.words:
            cells.unseen = np.where(faults, True, cells.unseen & ~np.isnan(numbers))
            cells.x[faults] = len(self._first.words)
        else:
            cells.faults[faults] = TYPE
        return cells

    def _encode_numbers(self, values: Array) -> Cells:
        if self._is_date:
            return self._refuse(len(values))
        if self._is_text:
            distinct, places = np.unique(values, return_inverse=True)
            return self._look_up([number_text(value) for value in distinct]).take(places)
        if self._first.words:
            return self._match(values)
        x, faults = encode_numbers(values.reshape(-1, 1), self.columns)
        return Cells(x, faults[:, 0], np.zeros(len(x), bool))

    def _encode_instants(self, instants: Array) -> Cells:
        if self._is_date:
            x = np.column_stack([_encode_part(column, instants) for column in self.columns])
            return Cells(x, np.zeros(len(x), np.uint8), np.zeros(len(x), bool))
        if self._is_text:
            return self._look_up([instant_text(value) for value in instants])
        return self._refuse(len(instants))

    def _refuse(self, rows: int) -> Cells:
        """Return cells of another type than the column's."""
        cells = self.gaps(rows)
        if self._first.words and not self._is_date:
            cells.x[:], cells.unseen[:] = len(self._first.words), True
        else:
            cells.faults[:] = TYPE
        return cells

    def _look_up(self, words: Sequence[str]) -> Cells:
        codes = self._codes
        other = len(codes)
        x = np.fromiter((codes.get(word, other) for word in words), np.float32, len(words))
        if "" in words:
            x[[word == "" for word in words]] = np.nan
        return Cells(x.reshape(-1, 1), np.zeros(len(x), np.uint8), x == other)

    def _match(self, values: Array) -> Cells:
        """Find numbers among the words; those of float32 are compared in float32."""
        table, codes = self._numbers
        narrow = values.dtype.kind == "f" and values.dtype.itemsize < 8
        kind = np.float32 if narrow else np.float64
        table, values = table.astype(kind), values.astype(kind)
        places = np.minimum(np.searchsorted(table, values), len(table) - 1)
        found = table[places] == values
        x = np.where(found, codes[places], len(table)).astype(np.float32)
        return Cells(x.reshape(-1, 1), np.zeros(len(x), np.uint8), ~found)


def encode_numbers(
    values: Array, columns: Sequence[Column]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Encode numbers (rows, columns) of any type without words; return `x` and faults, alike.

    NaN stays one. Numbers that training had not are no fault, since people look for them. The model
    finds one below 0 in a column of positive ones as unlikely as a number can be; in a column of
    counts it takes a fraction for the nearest count.
    """
    origins = np.array([column.origin for column in columns])
    kinds = np.array([column.kind for column in columns])
    exact = values.astype(np.float64, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        x = (exact - origins + 0.0).astype(np.float32)  # no negative zero
        faults = np.zeros(x.shape, np.uint8)
        faults[(exact < 0) & (kinds == "count")] = NEGATIVE
    faults[np.isinf(x)] = INFINITE
    x[np.isnan(x) | (faults > 0)] = np.nan  # one NaN, whatever bits the file has
    return x, faults


def _encode_part(column: Column, instants: Array) -> NDArray[np.float32]:
    """Return a part of the calendar of instants (rows,), microseconds in UTC."""
    days = instants.astype("M8[D]").astype(np.int64)
    if column.part == "weekday":
        return ((days + _THURSDAY) % 7).astype(np.float32)
    if column.part == "month":
        return (instants.astype("M8[M]").astype(np.int64) % 12).astype(np.float32)
    rest = instants.astype(np.int64) - days * US_PER_DAY
    if column.part == "hour":
        return (rest // (US_PER_DAY // 24)).astype(np.float32)
    fraction = rest / US_PER_DAY if column.type == "time" else 0.0
    return np.asarray(days - column.origin + fraction + 0.0, np.float32)


def _join(parts: Sequence[Cells]) -> Cells:
    return Cells(
        np.concatenate([part.x for part in parts]),
        np.concatenate([part.faults for part in parts]),
        np.concatenate([part.unseen for part in parts]),
    )


def decode_cells(column: Column, x: Array) -> Array:
    """Return values of `x` (rows,) in the column's own type.

    Gaps are NaN in numbers, NaT in dates, None in text and booleans; whole numbers with gaps are
    float64, as in pandas. The code of all other words is `OTHER` in text, else a gap; so is a
    number that is no code.
    """
    exact = np.asarray(x, np.float64)
    gaps = np.isnan(exact)
    if column.part:
        return _decode_date(column, exact) if column.part == "day" else _decode_words(column, exact)
    if column.words:
        return _decode_words(column, exact)
    values = exact + column.origin
    if column.type == "int":
        values = np.clip(np.rint(values), -MAX_INT, MAX_INT)
        return values if gaps.any() else values.astype(np.int64)
    return values


def _decode_words(column: Column, codes: Array) -> Array:
    gaps, other = np.isnan(codes), len(column.words)
    is_code = (codes >= -0.5) & (codes <= other)  # a client may send any number as one
    places = np.where(gaps, other + 1, np.where(is_code, np.rint(codes), other)).astype(np.int64)
    if column.type == "text" or column.part:
        return np.array([*column.words, OTHER, None], object)[places]
    numbers = np.array([*map(parse_number, column.words), np.nan, np.nan], np.float64)[places]
    if column.type == "int":
        numbers = np.clip(numbers, -MAX_INT, MAX_INT)
    gaps = np.isnan(numbers)
    if column.type == "bool":
        truths = numbers == 1
        return (
            np.array([False, True, None], object)[np.where(gaps, 2, truths)]
            if gaps.any()
            else truths
        )
    return numbers if column.type == "float" or gaps.any() else numbers.astype(np.int64)


def _decode_date(column: Column, days: Array) -> Array:
    """Return days, or times to the second, which is what float32 holds of them at best."""
    gaps = np.isnan(days)
    whole, unit = ("M8[D]", 1) if column.type == "date" else ("M8[s]", 86_400)
    known = np.clip(np.where(gaps, 0, days) + column.origin, _FIRST_DAY, _LAST_DAY)
    numbers = np.rint(known * unit).astype(np.int64)
    values = numbers.astype(whole)
    values[gaps] = np.datetime64("NaT")
    return values
