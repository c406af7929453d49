"""Read tables of numbers into one array and labels, as they are: without a schema.

In: a table, and what is chosen of it. Out: `x` (rows, *x_shape) as uint8 if all its columns hold
bytes, else as float32, which a CSV file always gives; and the labels (rows,), integers or strings.
Raises `DataRefused`, which counts missing values by column.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute

from pipeline.data.row_checks import Float32Check
from pipeline.data.selection import Selection
from pipeline.data.table_labels import as_labels
from pipeline.data.table_source import TableSource, find_small_ranges
from serving.console import say
from serving.errors import DataRefused
from serving.io.arrow_types import (
    is_bytes,
    is_number,
    is_whole,
    list_sizes,
    unwrap_type,
)
from serving.io.column_choice import RowLayout
from serving.io.columns import COLOUR, NAN, NULL, REASONS, read_x, unwrap_array
from serving.io.image_files import NotGray, read_image, read_image_shape
from serving.io.rows import Rows

Array = NDArray[Any]

_BATCH_BYTES = 4 << 20
_WIDE_ROWS, _WIDE_BYTES = 1024, 64 << 20
_MAX_FLOAT = float(np.finfo(np.float32).max)
_SHOWN = 5
_NAME = 40
_FIRST_ROWS = 1024
"""If the type of lists or images does not tell their size, one of these rows must show it."""

TableRows = tuple[Array, Array | None, tuple[str, ...]]
"""Rows, labels, and the names of the features if each has a column of its own."""


def read_numbers(source: TableSource, selection: Selection) -> TableRows:
    """Read columns of numbers, or one column of (nested) lists or images."""
    source.require_numbers()
    path, names, label = source.path, source.names, selection.label
    if source.rows is None:
        layout = RowLayout((len(names),), np.dtype(np.float32), unit_range=False)
        check = Float32Check(path, names, _are_whole(source.schema, names))
        with source.read({}) as stream:
            return *_gather(path, stream, names, selection, layout, check), tuple(names)
    rows = source.rows
    layout = _find_layout(path, rows, names, source.are_bytes)
    wide = min(_WIDE_ROWS, _WIDE_BYTES // layout.row_bytes)  # each batch costs time by column
    batch_rows = max(1, wide, _BATCH_BYTES // layout.row_bytes)
    kind = unwrap_type(rows.schema.field(names[0]).type)
    features = tuple(names) if is_number(kind) else ()
    whole = _are_whole(rows.schema, features)
    wanted = [*names, label] if label else names

    def gather(shape: tuple[int, ...]) -> tuple[Array, Array | None]:
        batches = rows.read(0, rows.total, wanted, batch_rows)
        check = Float32Check(path, features, whole)
        return _gather(path, batches, names, selection, replace(layout, shape=shape), check)

    if is_bytes(kind):
        return *selection.read_images(gather, layout.shape), ()
    x, labels = gather(layout.shape)
    if features and source.are_bytes:
        known = selection.x_dtype
        x = x.astype(known, copy=False) if known else _separate_ranges(path, x, features)
    return x, labels, features


def _separate_ranges(path: Path, x: Array, names: Sequence[str]) -> Array:
    """Return columns of bytes as numbers if their ranges differ: bytes share one scale."""
    largest = x.max(0)
    small = find_small_ranges(x.min(0), largest)
    if not small.any():
        return x
    first, other = int(np.flatnonzero(small)[0]), int(largest.argmax())
    say(
        f"{path}: columns of bytes have ranges of their own ({names[first][:_NAME]!r} reaches "
        f"{largest[first]}, {names[other][:_NAME]!r} {largest[other]}), so they are read as numbers"
    )
    return x.astype(np.float32)


def _are_whole(schema: pa.Schema, names: Sequence[str]) -> list[bool]:
    """Return which columns hold whole numbers."""
    places = {name: index for index, name in enumerate(schema.names)}
    return [is_whole(schema.field(places[name])) for name in names]


def _find_layout(path: Path, rows: Rows, names: Sequence[str], are_bytes: bool) -> RowLayout:
    """Find the shape and dtype of a row from the types, or from a row if the types lack them."""
    dtype = np.dtype(np.uint8 if are_bytes else np.float32)
    kind = unwrap_type(rows.schema.field(names[0]).type)
    if is_number(kind):
        return RowLayout((len(names),), dtype, unit_range=False)
    sizes = list_sizes(kind)
    shape = tuple(size for size in sizes if size is not None)
    if not sizes or len(shape) < len(sizes):
        shape = _first_shape(path, rows, names[0])
        shape = shape if sizes else shape[:2]  # colours are found while images are read
    if math.prod(shape) == 0:
        raise DataRefused(f"{path}: {names[0]} must hold at least one value per row, got {shape}")
    return RowLayout(shape, dtype if sizes else np.dtype(np.uint8), unit_range=False)


def _first_shape(path: Path, rows: Rows, name: str) -> tuple[int, ...]:
    """Return the shape of the first row that is not null; all others must have it too."""
    first = next(rows.read(0, min(rows.total, _FIRST_ROWS), [name], _FIRST_ROWS))
    values = unwrap_array(first.column(name)).drop_null()
    if not len(values):
        raise DataRefused(f"{path}: {name} is missing in the first {first.num_rows} rows")
    row = values[0].as_py()
    try:
        return read_image_shape(row) if isinstance(row, bytes) else np.shape(row)
    except (ValueError, DataRefused) as err:
        raise DataRefused(f"{path}: the first row of {name} cannot be read: {err}") from err


def _gather(
    path: Path,
    batches: Iterator[pa.RecordBatch],
    names: Sequence[str],
    selection: Selection,
    layout: RowLayout,
    check: Float32Check,
) -> tuple[Array, Array | None]:
    """Read all batches; count missing values and bad rows, and refuse them at the end."""
    label = selection.label
    x = np.empty((0, *layout.shape), layout.dtype)
    labels: list[pa.Array] = []
    missing: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    dropped = seen = 0
    first = ""
    for batch in batches:
        good, codes = read_x(batch, names, layout, check.watch)
        if (codes == COLOUR).any():
            raise NotGray(
                f"{path}: {REASONS[COLOUR]}: row {seen + int(np.argmax(codes == COLOUR))}"
            )
        gaps = np.isin(codes, (NULL, NAN))
        if gaps.any():
            dropped += int(gaps.sum())
            missing.update(_count_missing(batch.filter(pa.array(gaps)), names))
        reasons.update(REASONS[code] for code in codes[(codes > 0) & ~gaps].tolist())
        if reasons and not first:
            place = int(np.flatnonzero((codes > 0) & ~gaps)[0])
            first = f"row {seen + place}" + _explain_row(batch.slice(place, 1), names, layout)
        seen += len(codes)
        x.resize(
            (len(x) + len(good), *layout.shape), refcheck=False
        )  # in place, without a second copy
        x[len(x) - len(good) :] = good
        labels += [batch.column(label).filter(pa.array(codes == 0))] if label else []
    pa.default_memory_pool().release_unused()  # otherwise the pool keeps the memory of the batches
    if missing:
        listed = _list_missing(missing)
        if not selection.drop_missing:
            raise DataRefused(
                f"{path} has missing values, {listed}: fill them in, leave such rows out by "
                "--drop-missing, or name other columns by --columns"
            )
        say(f"{path}: {dropped:,} rows with missing values are left out, {listed}")
    check.finish()
    if reasons:
        listed = ", ".join(f"{reason}: {count} rows" for reason, count in reasons.items())
        raise DataRefused(f"{path} cannot be used, {listed}; the first is {first}")
    if not len(x):
        raise DataRefused(f"{path} must hold at least one row, it has none")
    return x, as_labels(labels) if label else None


def _explain_row(row: pa.RecordBatch, names: Sequence[str], layout: RowLayout) -> str:
    """Say what is wrong with a row that has no gap, as far as one can tell."""
    value = unwrap_array(row.column(names[0]))[0].as_py()
    if isinstance(value, bytes):
        try:
            read_image(value, layout.shape)
        except DataRefused as err:
            return f": {err}"
    if len(names) > 1:
        for name in names:
            number = float(unwrap_array(row.column(name))[0].as_py())
            if not abs(number) <= _MAX_FLOAT:
                return f", where {name[:_NAME]!r} is {number:g}"
    return ""


def _count_missing(batch: pa.RecordBatch, names: Sequence[str]) -> dict[str, int]:
    """Count the values, null or NaN, that each column lacks; in a column of lists, the rows."""
    if not is_number(unwrap_type(batch.schema.field(names[0]).type)):
        return {names[0]: batch.num_rows}
    columns = (unwrap_array(batch.column(name)) for name in names)
    counts = (compute.sum(column.is_null(nan_is_null=True)).as_py() for column in columns)
    return {name: count for name, count in zip(names, counts, strict=True) if count}


def _list_missing(missing: Mapping[str, int]) -> str:
    shown = [f"{name[:40]}: {count} missing" for name, count in [*missing.items()][:_SHOWN]]
    more = f" and {len(missing) - _SHOWN} more columns" if len(missing) > _SHOWN else ""
    return ", ".join(shown) + more
