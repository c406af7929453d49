"""Rows of a CSV file with a header, as a stream of record batches.

Numbers are floats, whatever the first rows look like, and so is a column that starts empty. Raises
`DataRefused` where the header cannot be meant; pyarrow's errors where a value is not of its column.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence

import pyarrow as pa
from pyarrow import csv

from serving.errors import DataRefused
from serving.io.filesystems import Place


def read_schema(place: Place, texts: Sequence[str] = ()) -> pa.Schema:
    """Names and types of the columns, as the first megabyte shows them; `texts` stay as written.

    Raises:
        DataRefused: the first line holds no names, or one of them twice.
    """
    with place.open() as stream, csv.open_csv(stream) as batches:
        seen = batches.schema
    check_header(place, seen)
    if twice := [name for name in dict.fromkeys(seen.names) if seen.names.count(name) > 1]:
        raise DataRefused(f"{place} has columns of the same name: {', '.join(twice)}")
    types = (pa.string() if item.name in texts else widen(item.type) for item in seen)
    return pa.schema(zip(seen.names, types, strict=True))


@contextlib.contextmanager
def open_rows(place: Place, schema: pa.Schema) -> Iterator[csv.CSVStreamingReader]:
    """All rows, with the columns of `schema`."""
    types = dict(zip(schema.names, schema.types, strict=True))
    options = csv.ConvertOptions(column_types=types, include_columns=schema.names)
    with place.open() as stream, csv.open_csv(stream, convert_options=options) as batches:
        yield batches


def check_header(place: Place, schema: pa.Schema) -> None:
    """Refuse a first line of numbers, which would be lost."""
    if all(_is_float(name) for name in schema.names):
        shown = ", ".join(schema.names[:8])
        raise DataRefused(f"the first line of {place} must name the columns, got {shown}")


def widen(kind: pa.DataType) -> pa.DataType:
    """The type to read a column as, of which `kind` was seen."""
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind):
        return pa.float64()
    return kind


def _is_float(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
