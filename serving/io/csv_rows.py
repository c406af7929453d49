"""Read CSV files with a header as streams of record batches.

Columns of numbers, and columns that are empty at their start, are read as floats, whatever their
first rows contain. Raises `DataRefused` for a header that names no columns, and pyarrow's errors
for a value that is not of its column's type.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence

import pyarrow as pa
from pyarrow import csv

from serving.errors import DataRefused
from serving.io.filesystems import Location


def read_header(location: Location) -> pa.Schema:
    """Return the names of the columns, and their types in the first megabyte."""
    with _open_csv(location, csv.ConvertOptions()) as batches:
        schema = batches.schema
    if all(_is_float(name) for name in schema.names):
        shown = ", ".join(schema.names[:8])
        raise DataRefused(f"the first line of {location} must name the columns, got {shown}")
    return schema


def read_schema(location: Location, texts: Sequence[str]) -> pa.Schema:
    """Return the names of the columns and the types to read them as; `texts` stay as written.

    Raises:
        DataRefused: the first line names no columns, or one of them twice.
    """
    seen = read_header(location)
    if twice := [name for name in dict.fromkeys(seen.names) if seen.names.count(name) > 1]:
        raise DataRefused(f"{location} has columns of the same name: {', '.join(twice)}")
    types = (pa.string() if item.name in texts else widen(item.type) for item in seen)
    return pa.schema(zip(seen.names, types, strict=True))


@contextlib.contextmanager
def open_rows(
    schema: pa.Schema, location: Location, columns: Sequence[str]
) -> Iterator[csv.CSVStreamingReader]:
    """Open a stream of all rows with `columns`, which have the types of `schema`."""
    types = {name: schema.field(name).type for name in columns}
    options = csv.ConvertOptions(column_types=types, include_columns=columns)
    with _open_csv(location, options) as batches:
        yield batches


def _open_csv(location: Location, options: csv.ConvertOptions) -> csv.CSVStreamingReader:
    """Open a CSV file; pyarrow closes it when its read-ahead thread has ended.

    If it were closed earlier, the thread could read from the next file with the same descriptor.
    """
    return csv.open_csv(location.open(), convert_options=options)


def widen(kind: pa.DataType) -> pa.DataType:
    """Return the type as which to read a column whose first rows have the type `kind`."""
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind):
        return pa.float64()
    return kind


def _is_float(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
