"""Find the schema of a table: what each of its columns is, and how `x` holds it.

In: an Arrow table of the columns to learn from, and what a person has settled of them. Out: the
columns with the reasons, and the schema. Raises `DataRefused` if what is settled contradicts the
values, or if no column is left.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data.column_figures import (
    DateFigures,
    Figures,
    NumberFigures,
    OtherFigures,
    TextFigures,
    measure,
    measure_dates,
)
from pipeline.data.column_kinds import (
    TableKind,
    are_dates,
    are_numbers,
    choose_kind,
    keep_words,
)
from pipeline.data.row_checks import MAX_LOSS
from serving.cell_values import GAP_WORDS, US_PER_DAY, parse_instants, parse_number
from serving.errors import DataRefused
from serving.schema import CellType, Column, Kind, Part, Schema
from serving.value_range import MAX_EXACT

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August", "September"),
    *("October", "November", "December"),
)
HOURS = tuple(map(str, range(24)))
SETTLED = "set"
"""The reason for the kind of a column that a person has chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnSettings:
    """What a person has settled of a column."""

    kind: TableKind
    words: tuple[str, ...] = ()
    reason: str = ""
    """Why the column is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundColumn:
    """A column of the table, and what it is."""

    name: str
    kind: TableKind
    reason: str
    figures: Figures = field(repr=False, compare=False)
    columns: tuple[Column, ...] = ()
    """The columns of `x`; none if it is left out."""


@dataclass(frozen=True, slots=True)
class FoundSchema:
    """All columns of a table, in their order."""

    columns: tuple[FoundColumn, ...]

    @property
    def schema(self) -> Schema:
        """The schema by which the table is read."""
        taken = {found.name for found in self.columns}
        kept = []
        for found in self.columns:
            for part, column in enumerate(found.columns):  # of a date, each after the first one
                name = column.name
                while part and name in taken:
                    name += "'"
                taken.add(name)
                kept.append(replace(column, name=name))
        ignored = {found.name: found.reason for found in self.columns if not found.columns}
        return Schema(columns=tuple(kept), ignored=ignored)

    @property
    def is_plain(self) -> bool:
        """Whether the table is only numbers without gaps, of one kind, that need no schema.

        They are real, of a size that float32 holds, or all from 0 to 1. A constant is no reason
        for a schema.
        """
        figures = [found.figures for found in self.columns]
        numbers = [each for each in figures if isinstance(each, NumberFigures)]
        if len(numbers) < len(figures) or any(each.gaps or each.infinite for each in numbers):
            return False
        if all(each.low >= 0 and each.high <= 1 for each in numbers):
            return True
        return all(map(_is_plain_column, self.columns, numbers))


def _is_plain_column(found: FoundColumn, figures: NumberFigures) -> bool:
    """Whether a column is the number that it would be without a schema."""
    large = figures.type == "int" and max(figures.high, -figures.low) > MAX_EXACT
    if found.kind == "ignored":
        return figures.low == figures.high and not large
    return found.kind == "real" and found.columns[0].origin == 0 and not large


def find_schema(
    table: pa.Table, settings: Mapping[str, ColumnSettings] | None = None, source: object = "table"
) -> FoundSchema:
    """Find what each column of a table is; `source` names the table in errors.

    Raises:
        DataRefused: a column is not what `settings` say.
    """
    known = settings or {}
    return FoundSchema(
        tuple(
            _settle(source, name, figures, known[name]) if name in known else _find(name, figures)
            for name, figures in measure(table).items()
        )
    )


def _find(name: str, figures: Figures) -> FoundColumn:
    kind, reason = choose_kind(name, figures)
    columns = make_columns(name, kind, figures)
    return FoundColumn(name=name, kind=kind, reason=reason, figures=figures, columns=columns)


def _settle(source: object, name: str, figures: Figures, chosen: ColumnSettings) -> FoundColumn:
    """Take what a person has chosen, if the values allow it."""
    kind = chosen.kind
    if kind == "ignored":
        reason = chosen.reason or SETTLED
        return FoundColumn(name=name, kind=kind, reason=reason, figures=figures)
    if fault := find_contradiction(kind, figures, chosen.words):
        raise DataRefused(f"{source}: column {name!r} cannot be {kind}: {fault}")
    columns = make_columns(name, kind, figures, chosen.words)
    return FoundColumn(name=name, kind=kind, reason=SETTLED, figures=figures, columns=columns)


def find_contradiction(kind: TableKind, figures: Figures, words: Sequence[str] = ()) -> str:
    """Say why a column cannot be of a kind; empty if it can."""
    if isinstance(figures, OtherFigures):
        return f"it is of type {figures.type}"
    if kind == "date":
        dates = isinstance(figures, DateFigures) or (
            isinstance(figures, TextFigures) and are_dates(figures.words)
        )
        return "" if dates else "its values are no dates of ISO 8601, such as 2026-11-27"
    if isinstance(figures, DateFigures):
        return "its values are dates: allowed are date and ignored"
    if kind in ("binary", "category"):
        return _find_fault_of_words(kind, figures, words)
    if isinstance(figures, TextFigures):
        if not are_numbers(figures.words):
            return "it is text: allowed are binary, category, date and ignored"
        return "" if kind == "real" else "its numbers are text: allowed are real and category"
    if kind == "count" and figures.type == "float":
        return "it has fractions"
    if kind == "count" and figures.high > MAX_EXACT:
        return f"it reaches {figures.high:g}, and counts go up to {MAX_EXACT}: use real or positive"
    if kind in ("count", "positive") and figures.low < 0:
        return f"it has negative values, down to {figures.low:g}"
    return ""


def _find_fault_of_words(
    kind: str, figures: TextFigures | NumberFigures, words: Sequence[str]
) -> str:
    if isinstance(figures, NumberFigures):
        try:
            numbers = [parse_number(word) for word in words]
        except ValueError as err:
            return f"its values are numbers, and its words are not ({err})"
        if any(map(math.isnan, numbers)) or len({*numbers}) < len(numbers):
            return f"its words must be different numbers, got {', '.join(words)}"
    if kind == "binary" and not words:
        count = len(_words_of(figures)[0])
        return "" if count == 2 else f"it has {count} different values, and must have 2"
    if not words and not keep_words(*_words_of(figures)):
        return "none of its values comes often enough to be a word: name its words"
    return ""


def make_columns(
    name: str, kind: TableKind, figures: Figures, words: Sequence[str] = ()
) -> tuple[Column, ...]:
    """Make the columns of `x` for a column of a table that is of a kind."""
    if kind == "ignored" or isinstance(figures, OtherFigures):
        return ()
    missing = _count_gaps(kind, figures) / max(1, figures.rows)
    if kind == "date":
        return _make_dates(name, figures, missing)
    if isinstance(figures, DateFigures):
        return ()
    type_ = _type_of(kind, figures)
    if kind in ("binary", "category"):
        own, counts = _words_of(figures)
        kept = tuple(words) or (tuple(own) if kind == "binary" else keep_words(own, counts))
        return (Column(name=name, kind=kind, type=type_, words=kept, missing=missing),)
    origin = _find_origin(figures) if kind == "real" else 0.0
    return (Column(name=name, kind=kind, type=type_, origin=origin, missing=missing),)


def _count_gaps(kind: TableKind, figures: Figures) -> int:
    """Count gaps; in text of dates or numbers also the words that mean one."""
    if not isinstance(figures, TextFigures) or kind in ("binary", "category"):
        return figures.gaps
    gaps = [word.strip() in GAP_WORDS for word in figures.words]
    return figures.gaps + int(figures.counts[np.array(gaps, bool)].sum())


def _type_of(kind: Kind, figures: TextFigures | NumberFigures) -> CellType:
    if isinstance(figures, NumberFigures):
        return (
            "int" if figures.type == "bool" and kind not in ("binary", "category") else figures.type
        )
    return "text" if kind in ("binary", "category") else "float"


def _words_of(figures: TextFigures | NumberFigures) -> tuple[Sequence[str], NDArray[Any]]:
    if isinstance(figures, TextFigures):
        return figures.words, figures.counts
    return figures.count_values()


def _find_origin(figures: NumberFigures | TextFigures) -> float:
    """Return 0, or the middle of the values if float32 would round them too much from there."""
    if not isinstance(figures, NumberFigures) or figures.loss <= MAX_LOSS:
        return 0.0
    return float(np.rint(figures.low / 2 + figures.high / 2))


def _make_dates(name: str, figures: Figures, missing: float) -> tuple[Column, ...]:
    if isinstance(figures, TextFigures):
        instants, _ = parse_instants(figures.words)
        figures = measure_dates(instants[~np.isnat(instants)], figures.rows)
    if not isinstance(figures, DateFigures):
        return ()
    origin = float((figures.low // 2 + figures.high // 2) // US_PER_DAY)
    type_: CellType = "time" if figures.has_times else "date"
    words: dict[Part, tuple[str, ...]] = {"weekday": WEEKDAYS, "month": MONTHS, "hour": HOURS}
    day = Column(name=name, kind="real", type=type_, part="day", origin=origin, missing=missing)
    return (
        day,
        *(
            Column(
                name=f"{name}.{part}",
                kind="category",
                type=type_,
                source=name,
                part=part,
                words=words[part],
                missing=missing,
            )
            for part in figures.parts
        ),
    )
