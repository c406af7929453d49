"""Measure the columns of a table: what the choice of their kinds needs to know.

In: the columns of an Arrow table. Out: figures of each column: of numbers, of text or of dates.
Columns of numbers are measured many at a time: a table may have thousands. What a single cell may
contradict (gaps, range, fractions) is found from all rows, and moments from a sample of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serving.cell_values import number_text
from serving.io.arrow_cells import to_values
from serving.io.arrow_types import is_bytes, is_number, is_text, is_whole, unwrap_type
from serving.io.columns import unwrap_array
from serving.schema import CellType, Part

Array = NDArray[Any]

_BLOCK_VALUES = 4_000_000
"""Values measured at a time, which bounds memory."""
_SAMPLE_VALUES, _MOST_ROWS, _LEAST_ROWS = 20_000_000, 100_000, 1_000
"""Moments of so many values in all, and of so many rows: the errors of a skewness of 2 from 1,000
rows and of a mean from 100,000 change no decision."""
_EXACT = 2.0**53
"""Float64 holds every whole number up to this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberFigures:
    """Figures of a column of numbers, without its gaps."""

    rows: int
    gaps: int
    infinite: int
    low: float
    high: float
    type: CellType
    """`int` also if all values of a column of floats are whole: pandas makes floats of whole
    numbers with gaps."""
    mean: float
    variance: float
    skewness: float
    log_skewness: float
    """That of the logarithms of the values above 0."""
    middle_skewness: float
    """Kelly's, of the middle 90 %, which a few outliers do not change: from -1 to 1."""
    loss: float
    """Root mean square of what float32 rounds, as a share of the standard deviation."""
    sample_rows: int
    sample_distinct: int
    """Number of values in the sample, without gaps, and how many of them differ."""
    read: Callable[[], Array] = field(repr=False, compare=False)
    """Returns all values without gaps as float64."""
    narrow: bool = False
    """Whether the values are of float32, whose texts are shorter."""

    @property
    def known(self) -> int:
        """Number of cells that are no gap."""
        return self.rows - self.gaps

    def count_values(self) -> tuple[list[str], Array]:
        """Return the texts of the distinct values in order, and how many rows have each."""
        values, counts = np.unique(self.read(), return_counts=True)
        if self.type == "bool":
            return [number_text(bool(value)) for value in values], counts
        return [number_text(v) for v in (values.astype("f4") if self.narrow else values)], counts


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFigures:
    """Figures of a column of text."""

    rows: int
    gaps: int
    words: Sequence[str]
    """The distinct texts, in order."""
    counts: Array
    """How many rows have each word."""

    @property
    def known(self) -> int:
        """Number of cells that are no gap."""
        return self.rows - self.gaps

    @property
    def mean_length(self) -> float:
        """Mean number of characters of a cell."""
        lengths = np.fromiter(map(len, self.words), np.float64, len(self.words))
        return float(lengths @ self.counts / max(1, self.known))


@dataclass(frozen=True, slots=True, kw_only=True)
class DateFigures:
    """Figures of a column of dates or times, in microseconds since 1970."""

    rows: int
    gaps: int
    low: int = 0
    high: int = 0
    has_times: bool = False
    parts: tuple[Part, ...] = ()
    """The parts of the calendar that tell the dates apart, beside the day."""

    @property
    def known(self) -> int:
        """Number of cells that are no gap."""
        return self.rows - self.gaps


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherFigures:
    """A column whose type holds no cells, such as lists, or that is empty."""

    rows: int
    gaps: int
    type: str

    @property
    def known(self) -> int:
        """Number of cells that are no gap."""
        return self.rows - self.gaps


Figures = NumberFigures | TextFigures | DateFigures | OtherFigures


def measure(table: pa.Table) -> dict[str, Figures]:
    """Measure all columns of a table, in their order."""
    found: dict[str, Figures | None] = dict.fromkeys(table.schema.names)
    numbers: dict[str, pa.Array] = {}
    for item, column in zip(table.schema, table.columns, strict=True):
        if is_number(unwrap_type(item.type)):
            numbers[item.name] = column
        else:
            found[item.name] = _measure_other(unwrap_array(_combine(column)))
    found |= _measure_numbers(table.schema, numbers)
    return {name: figures for name, figures in found.items() if figures}


def _combine(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return array if isinstance(array, pa.Array) else pa.concat_arrays(array.chunks)


def _measure_other(array: pa.Array) -> Figures:
    kind = array.type
    if is_text(kind) or is_bytes(kind):
        try:
            return _measure_text(array.cast(pa.large_string()))
        except pa.ArrowInvalid:
            return OtherFigures(
                rows=len(array), gaps=array.null_count, type="bytes that are no text"
            )
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        values, missing = to_values(array)
        return measure_dates(values if missing is None else values[~missing], len(array))
    return OtherFigures(rows=len(array), gaps=array.null_count, type=str(kind))


def _measure_text(array: pa.Array) -> TextFigures:
    encoded = array.dictionary_encode()
    indices = encoded.indices.drop_null().to_numpy()
    words = encoded.dictionary.to_pylist()
    counts = np.bincount(indices, minlength=len(words))
    order = sorted((place for place in range(len(words)) if words[place]), key=words.__getitem__)
    counts = counts[order]
    gaps = len(array) - int(counts.sum())
    return TextFigures(
        rows=len(array), gaps=gaps, words=[words[place] for place in order], counts=counts
    )


def measure_dates(values: Array, rows: int) -> DateFigures:
    """Measure dates without gaps, of a column with so many `rows`."""
    instants = values.astype("M8[us]")
    if not len(instants):
        return DateFigures(rows=rows, gaps=rows)
    return DateFigures(
        rows=rows,
        gaps=rows - len(instants),
        low=int(instants.min().astype(np.int64)),
        high=int(instants.max().astype(np.int64)),
        has_times=bool((instants != instants.astype("M8[D]")).any()),
        parts=_find_parts(instants),
    )


def _find_parts(instants: Array) -> tuple[Part, ...]:
    """Return the parts that vary. If all days are the first of a month, they stand for the month.

    Then the weekday says nothing, and if all are the first of a year, neither does the month.
    """
    days, months = instants.astype("M8[D]"), instants.astype("M8[M]")
    varying: dict[Part, Array] = {
        "weekday": days.astype(np.int64) % 7,
        "month": months.astype(np.int64) % 12,
        "hour": instants.astype("M8[h]").astype(np.int64) % 24,
    }
    if (days == months).all():
        del varying["weekday"]
    return tuple(part for part, values in varying.items() if values.min() < values.max())


def _measure_numbers(
    schema: pa.Schema, columns: Mapping[str, pa.ChunkedArray]
) -> Iterator[tuple[str, NumberFigures]]:
    """Measure columns of numbers, a block of them at a time."""
    fields = dict(zip(schema.names, schema, strict=True))
    names = list(columns)
    rows = len(columns[names[0]]) if names else 0
    width = max(1, _BLOCK_VALUES // max(1, rows))
    least = max(_LEAST_ROWS, _SAMPLE_VALUES // max(1, len(names)))
    step = max(1, -(-rows // min(_MOST_ROWS, least)))
    for start in range(0, len(names), width):
        block = names[start : start + width]
        values = np.empty((rows, len(block)), order="F")
        for place, name in enumerate(block):
            values[:, place] = read_numbers(columns[name])
        figures = _measure_block(values, step)
        lines = zip(*(each.tolist() for each in figures.values()), strict=True)
        for name, line in zip(block, lines, strict=True):
            own = dict(zip(figures, line, strict=True))
            yield name, _figures_of(fields[name], columns[name], rows, own)


def read_numbers(column: pa.ChunkedArray) -> Array:
    """Return the numbers of a column as float64, NaN for gaps."""
    values, missing = to_values(unwrap_array(_combine(column)))
    exact = values.astype(np.float64)
    if missing is not None:
        exact[missing] = np.nan
    return exact


def _measure_block(values: Array, step: int) -> dict[str, Array]:
    """Return figures (columns,) of values (rows, columns), with moments of every `step`-th row."""
    gaps, infinite = np.isnan(values), np.isinf(values)
    finite = ~(gaps | infinite)
    any_finite = finite.any(0)
    low = np.where(finite, values, np.inf).min(0, initial=np.inf)
    high = np.where(finite, values, -np.inf).max(0, initial=-np.inf)
    whole = ((values == np.rint(values)) | gaps).all(0) & (np.maximum(high, -low) <= _EXACT)
    sample, known = values[::step], finite[::step]
    mean, variance, skewness = _moments(sample, known)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        logs, above = np.log(sample), known & (sample > 0)
        *_, log_skewness = _moments(logs, above)
        errors = np.where(known, sample.astype(np.float32) - sample, 0)
        count = np.maximum(1, known.sum(0))
        loss = np.sqrt(np.square(errors).sum(0) / count / variance)
    ordered = np.sort(np.where(known, sample, np.nan), axis=0)
    last = np.maximum(known.sum(0) - 1, 0)
    low_5, median, high_5 = (
        np.take_along_axis(ordered, np.rint(last * share).astype(int)[None], axis=0)[0]
        for share in (0.05, 0.5, 0.95)
    )
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        middle = ((high_5 - median) - (median - low_5)) / (high_5 - low_5)
    steps = (ordered[1:] != ordered[:-1]) & ~np.isnan(ordered[1:])
    return {
        "gaps": gaps.sum(0),
        "infinite": infinite.sum(0),
        "low": np.where(any_finite, low, np.nan),
        "high": np.where(any_finite, high, np.nan),
        "whole": whole & ~infinite.any(0),
        "mean": mean,
        "variance": variance,
        "skewness": skewness,
        "log_skewness": log_skewness,
        "middle_skewness": np.nan_to_num(middle),
        "loss": np.nan_to_num(loss, posinf=np.inf),
        "sample_rows": known.sum(0),
        "sample_distinct": steps.sum(0) + known.any(0),
    }


def _moments(values: Array, known: Array) -> tuple[Array, Array, Array]:
    """Return mean, variance and skewness (columns,) of the known values; 0 where they have none."""
    count = np.maximum(1, known.sum(0))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        mean = np.where(known, values, 0).sum(0) / count
        offsets = np.where(known, values - mean, 0)
        variance = np.square(offsets).sum(0) / count
        scaled = offsets / np.sqrt(variance)
        skewness = (scaled * scaled * scaled).sum(0) / count
    return mean, variance, np.nan_to_num(skewness)


def _figures_of(
    item: pa.Field, column: pa.ChunkedArray, rows: int, own: dict[str, Any]
) -> NumberFigures:
    plain = unwrap_type(item.type)
    whole = own.pop("whole") or is_whole(item)
    kind: CellType = "bool" if pa.types.is_boolean(plain) else "int" if whole else "float"

    def read() -> Array:
        values = read_numbers(column)
        return values[~np.isnan(values)]

    narrow = pa.types.is_float32(plain) or pa.types.is_float16(plain)
    return NumberFigures(rows=rows, type=kind, narrow=narrow, read=read, **own)
