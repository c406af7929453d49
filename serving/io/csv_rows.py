"""Read CSV files with a header as streams of record batches.

Columns of numbers, and columns that are empty at their start, are read as floats, whatever their
first rows contain. Raises `DataRefused` for a header that names no columns, and pyarrow's errors
for a value that is not of its column's type.
"""

import contextlib
from collections.abc import Iterator, Sequence

import pyarrow as pa
from pyarrow import csv

from serving.io.csv_format import CsvFormat, open_text
from serving.io.filesystems import Location


def read_header(location: Location, layout: CsvFormat) -> pa.Schema:
    """Return the names of the columns, and their types in the first megabyte."""
    with _open_csv(location, layout, csv.ConvertOptions()) as batches:
        return batches.schema


def read_schema(location: Location, layout: CsvFormat, texts: Sequence[str]) -> pa.Schema:
    """Return the names of the columns and the types to read them as; `texts` stay as written."""
    seen = read_header(location, layout)
    kept = frozenset(texts)
    types = (pa.string() if item.name in kept else widen(item.type) for item in seen)
    return pa.schema(zip(seen.names, types, strict=True))


@contextlib.contextmanager
def open_rows(
    layout: CsvFormat, schema: pa.Schema, location: Location, columns: Sequence[str]
) -> Iterator[csv.CSVStreamingReader]:
    """Open a stream of all rows with `columns`, which have the types of `schema`."""
    types = {name: schema.field(name).type for name in columns}
    options = csv.ConvertOptions(column_types=types, include_columns=columns)
    with _open_csv(location, layout, options) as batches:
        yield batches


def _open_csv(
    location: Location, layout: CsvFormat, convert: csv.ConvertOptions
) -> csv.CSVStreamingReader:
    """Open a CSV file; pyarrow closes it when its read-ahead thread has ended.

    If it were closed earlier, the thread could read from the next file with the same descriptor.
    """
    convert.decimal_point = layout.decimal
    read = csv.ReadOptions(
        column_names=layout.names,
        skip_rows=layout.header_lines,
        block_size=layout.block_bytes,
        encoding="utf8" if layout.encoding.startswith("utf-8") else layout.encoding,
    )
    parse = csv.ParseOptions(delimiter=layout.delimiter)
    stream = open_text(location, layout.codec)
    return csv.open_csv(stream, read_options=read, parse_options=parse, convert_options=convert)


def widen(kind: pa.DataType) -> pa.DataType:
    """Return the type as which to read a column whose first rows have the type `kind`."""
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind):
        return pa.float64()
    return kind
