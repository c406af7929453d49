"""Open a table: its columns, those to learn from, and how its rows are read.

In: a path, and what is chosen of its columns. Out: a source of record batches. Raises `DataRefused`
if a file cannot be read, and `UsageRefused` if a column does not exist.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data.selection import Selection
from serving.console import say
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
from serving.io.column_choice import require_columns
from serving.io.csv_format import find_format, is_csv_name
from serving.io.csv_rows import open_rows, read_header, widen
from serving.io.filesystems import locate
from serving.io.remote_paths import Place
from serving.io.rows import Rows
from serving.io.side_columns import describe_side_columns, find_side_columns

Array = NDArray[Any]
Batches = AbstractContextManager[Iterator[pa.RecordBatch]]

_BATCH_ROWS = 65_536
_SHOWN = 5
_NAME = 40
_SMALL_SHARE = 0.25
"""Share of the columns that may reach less than half of the largest byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSource:
    """A table whose columns are known, and whose rows have not been read."""

    path: Place
    schema: pa.Schema
    names: list[str]
    """The columns to learn from."""
    read: Callable[[Mapping[str, pa.DataType]], Batches]
    """Opens the rows of `names` and the label; columns of CSV are read as the types given."""
    rows: Rows | None = None
    """The rows of the files; None for CSV."""
    seen: pa.Schema | None = None
    """For CSV, the types that the first megabyte has."""
    are_bytes: bool = False
    """Whether all columns hold bytes, in all files."""

    @property
    def holds_rows(self) -> bool:
        """Whether one column holds whole rows: lists, bytes or images."""
        kind = unwrap_type(self.schema.field(self.names[0]).type)
        is_row = bool(list_sizes(kind)) or is_bytes(kind) or pa.types.is_fixed_size_binary(kind)
        return len(self.names) == 1 and is_row

    @property
    def chosen(self) -> pa.Schema:
        """The columns to learn from, with their types."""
        places = {name: index for index, name in enumerate(self.schema.names)}
        return pa.schema([self.schema.field(places[name]) for name in self.names])

    def require_numbers(self) -> None:
        """Refuse columns that are not numbers, unless one holds whole rows."""
        others = pa.schema([item for item in self.chosen if not is_number(unwrap_type(item.type))])
        if len(others) and not self.holds_rows:
            raise DataRefused(
                f"{self.path} has columns that are not numbers: {list_columns(others)}; name the "
                "columns to learn from by --columns, and a column of classes by --label"
            )


def open_source(path: Place, selection: Selection) -> TableSource:
    """Open a table, and say how it is read and what is not read of it."""
    is_csv = is_csv_name(path.name) and not path.is_dir()
    return _open_csv(path, selection) if is_csv else _open_files(path, selection)


def _open_files(path: Place, selection: Selection) -> TableSource:
    rows = Rows(str(path), ids=None, delimiter=selection.delimiter)
    for note in rows.notes:
        say(note)
    names, label = _choose(path, rows.schema, selection), selection.label
    there = frozenset(rows.schema.names)
    if more := {name for file in rows.files for name in file.schema.names if name not in there}:
        listed = ", ".join(repr(name[:_NAME]) for name in sorted(more)[:_SHOWN])
        say(f"{path}: {len(more):,} columns that the first file lacks are not used: {listed}")
    chosen = frozenset(names)
    kinds = {item.type for file in rows.files for item in file.schema if item.name in chosen}
    are_bytes = all(pa.types.is_uint8(number_type(unwrap_type(kind))) for kind in kinds)
    wanted = [*names, label] if label else names

    def read(types: Mapping[str, pa.DataType]) -> Batches:
        return contextlib.nullcontext(rows.read(0, rows.total, wanted, _BATCH_ROWS))

    return TableSource(
        path=path, schema=rows.schema, names=names, read=read, rows=rows, are_bytes=are_bytes
    )


def _open_csv(path: Place, selection: Selection) -> TableSource:
    """Open a CSV file with a header; the first megabyte shows which columns are numbers."""
    label = selection.label
    with reading(location := locate(str(path)), pa.ArrowException):
        csv_format = find_format(location, selection.delimiter)
        if said := csv_format.describe():
            say(f"{path}: {said}")
        seen = read_header(location, csv_format)
    schema = pa.schema(map(widen, seen))
    names = _choose(path, schema, selection)
    places = {name: index for index, name in enumerate(schema.names)}

    @contextlib.contextmanager
    def read(types: Mapping[str, pa.DataType]) -> Iterator[Iterator[pa.RecordBatch]]:
        fields = [
            pa.field(name, types[name]) if name in types else schema.field(places[name])
            for name in names
        ]
        if label:
            kind = seen.field(label).type
            fields.append(pa.field(label, kind if pa.types.is_integer(kind) else pa.string()))
        wanted = pa.schema(fields)
        with (
            reading(location, pa.ArrowException),
            open_rows(csv_format, wanted, location, wanted.names) as stream,
        ):
            yield stream

    return TableSource(path=path, schema=schema, names=names, read=read, seen=seen)


def _choose(path: Place, schema: pa.Schema, selection: Selection) -> list[str]:
    """Choose the columns of `x`: those that are named, else all that may be features."""
    known, label = selection.table_schema, selection.label
    columns = known.sources if known else selection.columns
    require_columns(path, schema, (*columns, *([label] if label else [])))
    if label in columns:
        raise UsageRefused(f"column {label!r} cannot be the label and a feature")
    side = {} if columns else find_side_columns(schema)
    side.pop(label, None)
    if side:
        say(f"{path}: {describe_side_columns(side)}")
    names = list(columns) or [name for name in schema.names if name != label and name not in side]
    if len(set(names)) < len(names):
        places = {name: index for index, name in enumerate(schema.names)}
        listed = list_columns(pa.schema([schema.field(places[name]) for name in names]))
        raise DataRefused(f"{path} has columns of the same name: {listed}")
    if not names:
        raise UsageRefused(f"{path} has no columns but the label {label!r}")
    return names


def find_small_ranges(smallest: Array, largest: Array) -> NDArray[np.bool_]:
    """Return which columns of bytes have a range of their own, from their extremes (columns,).

    Of the columns of MNIST's pixels that are not constant, 6 % reach less than half of 255; so few
    have the range of the others.
    """
    varying = largest > smallest
    small = np.asarray(varying & (largest < largest.max() / 2))
    return small if small.sum() > _SMALL_SHARE * varying.sum() else np.zeros_like(small)
