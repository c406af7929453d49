"""Read CSV files with a header as streams of record batches.

Columns of numbers, and columns that are empty at their start, are read as floats, whatever their
first rows contain; words that are numbers are read as text with a decimal point. The fields of the
schema say which are of whole numbers, and what a column of text holds. Raises `DataRefused` for a
header that names no columns and for a value that is not of its column's type, and pyarrow's errors.
"""

import contextlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
from pyarrow import compute, csv

from serving.cell_values import GAP_WORDS
from serving.errors import DataRefused
from serving.io.arrow_types import EXAMPLE, WHOLE, is_whole
from serving.io.csv_format import CsvFormat, is_number, open_text
from serving.io.filesystems import Location

_EXAMPLE_ROWS = 1000
_BAD_VALUE = re.compile(
    r"In CSV column #(\d+): (?:Row #\d+: )?CSV conversion error to [^:]*: (.*)", re.DOTALL
)
_BAD_LINE = re.compile(r"CSV parse error: Expected (\d+) columns, got (\d+): (.*)", re.DOTALL)
_SHOWN = 40


def read_header(location: Location, layout: CsvFormat) -> pa.Schema:
    """Return the names of the columns, and their types in the first megabyte."""
    options = csv.ConvertOptions()
    with _explaining(location, layout), _open_csv(location, layout, options) as batches:
        schema = batches.schema
        if not any(pa.types.is_string(kind) for kind in schema.types):
            return schema
        first = batches.read_next_batch().slice(0, _EXAMPLE_ROWS)
        described = map(_with_example, schema, first.columns, itertools.repeat(layout.decimal))
        return pa.schema(described)


def read_schema(
    location: Location,
    layout: CsvFormat,
    types: Mapping[str, pa.DataType],
    others_as_text: bool = False,
) -> pa.Schema:
    """Return the names of the columns and the types to read them as.

    Those are `types`, and for all other columns text, or what is found.
    """
    found = read_header(location, layout)
    other = pa.string() if others_as_text else None
    kinds = [types.get(item.name, other) for item in found]
    return pa.schema(
        widen(item) if kind is None else pa.field(item.name, kind)
        for item, kind in zip(found, kinds, strict=True)
    )


@contextlib.contextmanager
def open_rows(
    layout: CsvFormat, schema: pa.Schema, location: Location, columns: Sequence[str]
) -> Iterator[Iterator[pa.RecordBatch]]:
    """Open a stream of all rows with `columns`, which have the types of `schema`."""
    fields = pa.schema([schema.field(name) for name in columns])
    types = dict(zip(fields.names, fields.types, strict=True))
    options = csv.ConvertOptions(column_types=types, include_columns=columns)
    with _explaining(location, layout), _open_csv(location, layout, options) as batches:
        yield _read_all(location, layout, fields, batches)


def _read_all(
    location: Location, layout: CsvFormat, fields: pa.Schema, batches: csv.CSVStreamingReader
) -> Iterator[pa.RecordBatch]:
    """Yield all batches, each with the fields that tell whole numbers, and with decimal points."""
    commas = layout.decimal != "." and any(map(pa.types.is_dictionary, fields.types))
    plain = not commas and not any(map(is_whole, fields))
    with _explaining(location, layout):
        for batch in batches:
            if plain:
                yield batch
                continue
            columns = batch.columns
            if commas:
                columns = [_with_points(array, layout.decimal) for array in columns]
            yield pa.RecordBatch.from_arrays(columns, schema=fields)


def _with_points(array: pa.Array, decimal: str) -> pa.Array:
    """Write words that are numbers, `NUMBER_WORDS`, with a decimal point."""
    if not pa.types.is_dictionary(array.type):
        return array
    words = compute.replace_substring(array.dictionary, decimal, ".")
    return pa.DictionaryArray.from_arrays(array.indices, words)


@contextlib.contextmanager
def _explaining(location: Location, layout: CsvFormat) -> Iterator[None]:
    """Name the column of a value that cannot be read, and show a line that does not fit."""
    try:
        yield
    except pa.ArrowInvalid as err:
        if found := _BAD_VALUE.search(str(err)):
            name = layout.names[int(found[1])][:_SHOWN]
            fault = f"column {name!r}: {found[2].splitlines()[0]}"
        elif found := _BAD_LINE.search(str(err)):
            line = found[3].strip()[:_SHOWN]
            fault = f"a line has {found[2]} fields, and there are {found[1]} names: {line!r}"
        else:
            raise
        raise DataRefused(f"cannot read {location}: {fault}") from err


def _with_example(item: pa.Field, values: pa.Array, decimal: str) -> pa.Field:
    """Add the first value of a column of text that is no number."""
    if not pa.types.is_string(item.type):
        return item
    plain = ((text, text.replace(decimal, ".")) for text in values.to_pylist())
    words = (text for text, number in plain if number not in GAP_WORDS and not is_number(number))
    return item.with_metadata({EXAMPLE: next(words, "").encode()})


def _open_csv(
    location: Location, layout: CsvFormat, convert: csv.ConvertOptions
) -> csv.CSVStreamingReader:
    """Open a CSV file; pyarrow closes it when its read-ahead thread has ended.

    If it were closed earlier, the thread could read from the next file with the same descriptor.
    """
    convert.decimal_point = layout.decimal
    convert.null_values = [*GAP_WORDS]
    read = csv.ReadOptions(
        column_names=layout.names,
        skip_rows=layout.header_lines,
        block_size=layout.block_bytes,
        encoding="utf8" if layout.encoding.startswith("utf-8") else layout.encoding,
    )
    # no invalid_row_handler: its destructor may wait for the lock of the interpreter for ever
    parse = csv.ParseOptions(delimiter=layout.delimiter)
    stream = open_text(location, layout.codec)
    return csv.open_csv(stream, read_options=read, parse_options=parse, convert_options=convert)


def widen(item: pa.Field) -> pa.Field:
    """Return a column as it is to be read, if its first rows have the type of `item`."""
    if pa.types.is_integer(item.type):
        return item.with_type(pa.float64()).with_metadata({WHOLE: b"1"})
    if pa.types.is_floating(item.type) or pa.types.is_null(item.type):
        return item.with_type(pa.float64())
    return item
