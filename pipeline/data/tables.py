"""Read tables into one array and labels: Parquet and Arrow files, folders of these, and CSV.

In: a path, the columns that hold `x`, and the column of labels. Out: `x` (rows, *x_shape) as uint8
if all its columns hold bytes, else as float32, which a CSV file always gives; and the labels
(rows,), integers or strings. Raises `DataRefused`, which counts missing values by column, and
`UsageRefused` if a column does not exist.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serving.errors import DataRefused, UsageRefused
from serving.files import reading
from serving.io.arrow_types import (
    is_bytes,
    is_number,
    list_columns,
    list_sizes,
    number_type,
    unwrap_type,
)
from serving.io.column_choice import RowLayout, require_columns
from serving.io.columns import REASONS, read_x, unwrap_array
from serving.io.csv_rows import open_rows, read_header, widen
from serving.io.filesystems import locate
from serving.io.image_files import read_image_shape
from serving.io.rows import Rows

Array = NDArray[Any]

_BATCH_BYTES = 4 << 20
_FIRST_ROWS = 1024
"""If the type of lists or images does not tell their size, one of these rows must show it."""

TableRows = tuple[Array, Array | None, tuple[str, ...]]
"""Rows, labels, and the names of the features if each has a column of its own."""


def read_table(path: Path, columns: Sequence[str], label: str) -> TableRows:
    """Read CSV, or Parquet or Arrow: columns of numbers, or one of (nested) lists or images."""
    if path.suffix.lower() == ".csv" and not path.is_dir():
        return _read_csv(path, columns, label)
    rows = Rows(str(path), ids=None)
    names = _choose(path, rows.schema, columns, label)
    wanted = [*names, label] if label else names
    first = next(rows.read(0, min(rows.total, _FIRST_ROWS), wanted, _FIRST_ROWS))
    kinds = (item.type for file in rows.files for item in file.schema if item.name in names)
    are_bytes = all(pa.types.is_uint8(number_type(unwrap_type(kind))) for kind in kinds)
    layout = _find_layout(path, first, names, are_bytes)
    batch_rows = max(1, _BATCH_BYTES // layout.row_bytes)
    batches = rows.read(0, rows.total, wanted, batch_rows)
    numbers = is_number(unwrap_type(first.schema.field(names[0]).type))
    return *_gather(path, batches, names, label, layout), tuple(names) if numbers else ()


def _read_csv(path: Path, columns: Sequence[str], label: str) -> TableRows:
    """Read a CSV file with a header; the first megabyte shows which columns are numbers."""
    with reading(location := locate(str(path)), pa.ArrowException):
        seen = read_header(location)
        schema = pa.schema([(item.name, widen(item.type)) for item in seen])
        names = _choose(path, schema, columns, label)
        fields = [schema.field(name) for name in names]
        if label:
            kind = seen.field(label).type
            fields.append(pa.field(label, kind if pa.types.is_integer(kind) else pa.string()))
        layout = RowLayout((len(names),), np.dtype(np.float32), unit_range=False)
        wanted = pa.schema(fields)
        with open_rows(wanted, location, wanted.names) as stream:
            return *_gather(path, stream, names, label, layout), tuple(names)


def _choose(path: Path, schema: pa.Schema, columns: Sequence[str], label: str) -> list[str]:
    """Choose the columns of `x`: those named in `columns`, else all but the label."""
    require_columns(path, schema, (*columns, *([label] if label else [])))
    if label in columns:
        raise UsageRefused(f"column {label!r} cannot be the label and a feature")
    names = list(columns) or [name for name in schema.names if name != label]
    chosen = pa.schema([schema.field(schema.names.index(name)) for name in names])
    if len(set(names)) < len(names):
        raise DataRefused(f"{path} has columns of the same name: {list_columns(chosen)}")
    others = pa.schema([item for item in chosen if not is_number(unwrap_type(item.type))])
    if len(others) and not (len(names) == 1 and _holds_rows(unwrap_type(chosen[0].type))):
        raise DataRefused(
            f"{path} has columns that are not numbers: {list_columns(others)}; name the columns to "
            "learn from by --columns, and a column of classes by --label"
        )
    if not names:
        raise UsageRefused(f"{path} has no columns but the label {label!r}")
    return names


def _holds_rows(kind: pa.DataType) -> bool:
    return bool(list_sizes(kind)) or is_bytes(kind)


def _find_layout(
    path: Path, first: pa.RecordBatch, names: Sequence[str], are_bytes: bool
) -> RowLayout:
    """Find the shape and dtype of a row from the types, or from a row if the types lack them."""
    dtype = np.dtype(np.uint8 if are_bytes else np.float32)
    kind = unwrap_type(first.schema.field(names[0]).type)
    if is_number(kind):
        return RowLayout((len(names),), dtype, unit_range=False)
    sizes = list_sizes(kind)
    shape = tuple(size for size in sizes if size is not None)
    if not sizes or len(shape) < len(sizes):
        shape = _first_shape(path, first, names[0])
    if math.prod(shape) == 0:
        raise DataRefused(f"{path}: {names[0]} must hold at least one value per row, got {shape}")
    return RowLayout(shape, dtype if sizes else np.dtype(np.uint8), unit_range=False)


def _first_shape(path: Path, first: pa.RecordBatch, name: str) -> tuple[int, ...]:
    """Return the shape of the first row that is not null; all others must have it too."""
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
    label: str,
    layout: RowLayout,
) -> tuple[Array, Array | None]:
    """Read all batches; count missing values and bad rows, and refuse them at the end."""
    x = np.empty((0, *layout.shape), layout.dtype)
    labels: list[pa.Array] = []
    missing: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for batch in batches:
        missing.update({name: _count_missing(batch.column(name)) for name in names})
        good, codes = read_x(batch, names, layout)
        reasons.update(REASONS[code] for code in codes[codes > 0].tolist())
        x.resize(
            (len(x) + len(good), *layout.shape), refcheck=False
        )  # in place, without a second copy
        x[len(x) - len(good) :] = good
        labels += [batch.column(label)] if label else []
    pa.default_memory_pool().release_unused()  # otherwise the pool keeps the memory of the batches
    if missing := +missing:  # without the columns that lack nothing
        listed = ", ".join(f"{name}: {count} missing" for name, count in missing.items())
        raise DataRefused(
            f"{path} has missing values, {listed}: fill them in, leave those rows out, or name "
            "other columns by --columns"
        )
    if reasons:
        listed = ", ".join(f"{reason}: {count} rows" for reason, count in reasons.items())
        raise DataRefused(f"{path} cannot be used, {listed}; x is {', '.join(names[:8])}")
    if not len(x):
        raise DataRefused(f"{path} must hold at least one row, it has none")
    return x, _as_labels(labels) if label else None


def _count_missing(array: pa.Array) -> int:
    if pa.types.is_floating(array.type):  # its nulls become NaN
        return int(np.isnan(array.to_numpy(zero_copy_only=False)).sum())
    return int(array.null_count)


def _as_labels(arrays: Sequence[pa.Array]) -> Array:
    arrays = [unwrap_array(array) for array in arrays]
    if all(pa.types.is_integer(array.type) and not array.null_count for array in arrays):
        return np.concatenate([array.to_numpy().astype(np.int64) for array in arrays])
    values = (value for array in arrays for value in array.to_pylist())
    return np.array(["missing" if value is None else str(value) for value in values])
