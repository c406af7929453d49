"""Read tables of numbers into one array and labels, as they are: without a schema.

In: a table, and what is chosen of it. Out: `x` (rows, *x_shape) as uint8 if all its columns hold
bytes, else as float32, which a CSV file always gives; and the labels (rows,), integers or strings.
Raises `DataRefused`, which counts missing values by column.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data.number_reader import NumberReader
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
from serving.io.column_choice import RowLayout, check_types
from serving.io.columns import unwrap_array
from serving.io.image_files import read_image_shape
from serving.io.remote_paths import Place
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


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberTable:
    """How the columns of a table become rows."""

    source: TableSource
    layout: RowLayout
    features: tuple[str, ...]
    """Names of the features if each has a column of its own."""
    whole: Sequence[bool]
    """Which features hold whole numbers."""
    are_images: bool
    """Whether the rows may be images, whose colours are found while they are read."""
    advice: str = ""
    """What else than to fill them in can be done about missing values, with a comma at its end."""

    def reader(self, drop_missing: bool, *, check: bool = True) -> NumberReader:
        """Return what reads batches; with `check`, it judges at the end what they hold."""
        watch = Float32Check(self.source.path, self.features, self.whole) if check else None
        path, names = self.source.path, self.source.names
        return NumberReader(path, names, self.layout, drop_missing, watch, self.advice)


def plan_numbers(source: TableSource) -> NumberTable:
    """Find the shape and dtype of the rows of columns of numbers, or of one column of whole rows.

    Raises:
        DataRefused: the columns are not numbers, or the first rows do not tell their size.
    """
    source.require_numbers()
    names = source.names
    if source.rows is None:
        layout = RowLayout((len(names),), np.dtype(np.float32), unit_range=False)
        features, are_images = tuple(names), False
    else:
        layout = _find_layout(source.path, source.rows, names, source.are_bytes)
        kind = unwrap_type(source.rows.schema.field(names[0]).type)
        _check_files(source.rows, names, layout)
        features = tuple(names) if is_number(kind) else ()
        are_images = is_bytes(kind)
    whole = _are_whole(source.schema, features)
    return NumberTable(
        source=source, layout=layout, features=features, whole=whole, are_images=are_images
    )


def _check_files(rows: Rows, names: Sequence[str], layout: RowLayout) -> None:
    """Refuse a file whose columns have types that cannot hold the rows of the first file."""
    for file in rows.files:
        if frozenset(names) <= frozenset(file.schema.names):
            try:
                check_types(file.schema, names, layout)
            except DataRefused as err:
                raise DataRefused(f"{file.location}: {err}") from err


def read_numbers(source: TableSource, selection: Selection) -> TableRows:
    """Read columns of numbers, or one column of (nested) lists, bytes or images."""
    table = plan_numbers(source)
    drop, label = selection.drop_missing, selection.label
    rows, features = source.rows, table.features
    if rows is None:
        with source.read({}) as stream:
            return *_gather(stream, table.reader(drop), label), features
    wide = min(_WIDE_ROWS, _WIDE_BYTES // table.layout.row_bytes)  # each batch costs by column
    batch_rows = max(1, wide, _BATCH_BYTES // table.layout.row_bytes)
    wanted = [*source.names, label] if label else source.names

    def gather(shape: tuple[int, ...]) -> tuple[Array, Array | None]:
        shaped = replace(table, layout=replace(table.layout, shape=shape))
        batches = rows.read(0, rows.total, wanted, batch_rows)
        return _gather(batches, shaped.reader(drop), label)

    if table.are_images:
        return *selection.read_images(gather, table.layout.shape), ()
    x, labels = gather(table.layout.shape)
    if features and source.are_bytes:
        known = selection.x_dtype
        if known:
            x = x.astype(known, copy=False)
        elif tell_ranges(source.path, features, x.min(0), x.max(0)):
            x = x.astype(np.float32)
    return x, labels, features


def tell_ranges(path: Place, names: Sequence[str], smallest: Array, largest: Array) -> bool:
    """Whether columns of bytes are read as numbers, as their ranges differ: bytes share a scale."""
    small = find_small_ranges(smallest, largest)
    if not small.any():
        return False
    first, other = int(np.flatnonzero(small)[0]), int(largest.argmax())
    say(
        f"{path}: columns of bytes have ranges of their own ({names[first][:_NAME]!r} reaches "
        f"{largest[first]}, {names[other][:_NAME]!r} {largest[other]}), so they are read as numbers"
    )
    return True


def _are_whole(schema: pa.Schema, names: Sequence[str]) -> list[bool]:
    """Return which columns hold whole numbers."""
    places = {name: index for index, name in enumerate(schema.names)}
    return [is_whole(schema.field(places[name])) for name in names]


def _find_layout(path: Place, rows: Rows, names: Sequence[str], are_bytes: bool) -> RowLayout:
    """Find the shape and dtype of a row from the types, or from a row if the types lack them."""
    dtype = np.dtype(np.uint8 if are_bytes else np.float32)
    kind = unwrap_type(rows.schema.field(names[0]).type)
    if is_number(kind):
        return RowLayout((len(names),), dtype, unit_range=False)
    if pa.types.is_fixed_size_binary(kind):
        return RowLayout((kind.byte_width,), np.dtype(np.uint8), unit_range=False)
    sizes = list_sizes(kind)
    shape = tuple(size for size in sizes if size is not None)
    if not sizes or len(shape) < len(sizes):
        shape = _first_shape(path, rows, names[0])
        shape = shape if sizes else shape[:2]  # colours are found while images are read
    if math.prod(shape) == 0:
        raise DataRefused(f"{path}: {names[0]} must hold at least one value per row, got {shape}")
    return RowLayout(shape, dtype if sizes else np.dtype(np.uint8), unit_range=False)


def _first_shape(path: Place, rows: Rows, name: str) -> tuple[int, ...]:
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
    batches: Iterator[pa.RecordBatch], reader: NumberReader, label: str
) -> tuple[Array, Array | None]:
    """Read all batches into one array."""
    x = np.empty((0, *reader.layout.shape), reader.layout.dtype)
    labels: list[pa.Array] = []
    for batch in batches:
        good, codes = reader.read(batch)
        x.resize(
            (len(x) + len(good), *x.shape[1:]), refcheck=False
        )  # in place, without a second copy
        x[len(x) - len(good) :] = good
        labels += [batch.column(label).filter(pa.array(codes == 0))] if label else []
    pa.default_memory_pool().release_unused()  # otherwise the pool keeps the memory of the batches
    reader.finish()
    return x, as_labels(labels) if label else None
