"""Read tables by a schema: one that is known, or that is found from the table.

In: a table and what is chosen of it. Out: `x` (rows, columns) as float32 with NaN for gaps, the
labels, and the schema. A table of nothing but numbers of one kind needs no schema, and is left to
`pipeline.data.tables`. Raises `DataRefused` for cells that cannot be used, with column and row.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data.column_figures import NumberFigures
from pipeline.data.column_kinds import are_numbers
from pipeline.data.schema_file import read_schema
from pipeline.data.schema_search import FoundSchema, find_schema
from pipeline.data.schema_summary import summarize
from pipeline.data.selection import Selection
from pipeline.data.table_labels import as_labels
from pipeline.data.table_source import TableSource, find_small_ranges, open_source
from serving.cell_values import parse_numbers
from serving.console import say, warn
from serving.errors import DataRefused, UsageRefused
from serving.io.arrow_cells import csv_types, encode_batch
from serving.io.arrow_types import is_number, unwrap_type
from serving.io.column_choice import check_cells
from serving.io.columns import NULL
from serving.io.remote_paths import Place
from serving.schema import Schema
from serving.table_cells import TableEncoder, UnknownCells

Array = NDArray[Any]
MixedRows = tuple[Array, Array | None, tuple[str, ...], Schema]

SHOWN_COLUMNS = 30
"""Columns that the summary before a training lists."""
_BATCH_ROWS = 65_536


def read_mixed(source: TableSource, selection: Selection) -> MixedRows | None:
    """Read a table by its schema; None if it needs none."""
    schema = selection.table_schema
    types = csv_types(schema) if schema else guess_types(source)
    if not schema and not may_be_mixed(source, selection):
        return None
    with source.read(types) as batches:
        table = to_table(source, types, batches)
    if schema:
        return _encode(
            table, MixedReader(source.path, schema, table.num_rows, selection, told=True)
        )
    schema = settle_schema(source, table, selection)
    if schema is None:
        return None
    return _encode(table, MixedReader(source.path, schema, table.num_rows, selection))


def settle_schema(source: TableSource, table: pa.Table, selection: Selection) -> Schema | None:
    """Find the schema by which a table is read from its rows, or some of them, and say it.

    It is None if the table needs none.
    """
    found = search(source, table, selection)
    if not _needs_schema(source, found, selection):
        return None
    say(summarize(source.path, found, SHOWN_COLUMNS), wrap=False)
    if not selection.schema:
        say("to change what they are: vae schema DATA --out FILE, then --schema FILE")
    if not found.schema.columns:
        raise DataRefused(f"{source.path} has no column to learn from, see above")
    return found.schema


def find_table_schema(path: Place, selection: Selection) -> FoundSchema:
    """Find the schema of a table, whether it needs one or not."""
    source = open_source(path, selection)
    if source.holds_rows:
        raise UsageRefused(f"{path} holds whole rows in one column, {source.names[0]!r}")
    types = guess_types(source)
    with source.read(types) as batches:
        return search(source, to_table(source, types, batches), selection)


def search(source: TableSource, table: pa.Table, selection: Selection) -> FoundSchema:
    """Find what the columns to learn from are; what `--schema` says of them goes first."""
    settings = (
        read_schema(Path(selection.schema).expanduser(), source.schema.names)
        if selection.schema
        else None
    )
    places = {name: index for index, name in enumerate(table.schema.names)}
    chosen = table.select([places[name] for name in source.names])
    return find_schema(chosen, settings, source.path)


def may_be_mixed(source: TableSource, selection: Selection) -> bool:
    """Whether a schema may be needed, as far as the types tell."""
    if selection.likelihood not in ("auto", "mixed"):
        if selection.schema:
            raise UsageRefused(
                f"--schema needs the likelihood mixed or auto, got {selection.likelihood!r}"
            )
        return False
    if source.holds_rows:
        return False
    forced = selection.likelihood == "mixed" or bool(selection.schema)
    numbers = all(is_number(unwrap_type(item.type)) for item in source.chosen)
    return forced or not (numbers and selection.drop_missing)


def _needs_schema(source: TableSource, found: FoundSchema, selection: Selection) -> bool:
    if selection.likelihood == "mixed" or selection.schema:
        return True
    figures = [column.figures for column in found.columns]
    numbers = [each for each in figures if isinstance(each, NumberFigures)]
    if source.are_bytes and len(numbers) == len(figures) and not any(n.gaps for n in numbers):
        low, high = (np.array([getattr(n, end) for n in numbers]) for end in ("low", "high"))
        if not find_small_ranges(low, high).any():
            return False
    return not found.is_plain


def guess_types(source: TableSource) -> dict[str, pa.DataType]:
    """Return the types by which a CSV file is read to find its schema.

    Dates are read as text, which may have other formats further below, and so are columns that are
    empty at their start.
    """
    if source.seen is None:
        return {}
    wide = dict(zip(source.schema.names, source.schema.types, strict=True))
    return {
        item.name: pa.string()
        for item in source.seen
        if pa.types.is_null(item.type) or not is_number(wide[item.name])
    }


def to_table(
    source: TableSource, types: Mapping[str, pa.DataType], batches: Iterable[pa.RecordBatch]
) -> pa.Table:
    """Join batches that `source.read` has read by these types."""
    tables = [pa.Table.from_batches([batch]) for batch in batches]
    if not tables or not sum(table.num_rows for table in tables):
        raise DataRefused(f"{source.path} must hold at least one row, it has none")
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as err:
        raise DataRefused(f"{source.path}: the files differ in a column's type: {err}") from err
    for item in source.seen or ():
        if item.name in types and pa.types.is_null(item.type):
            table = _read_late_numbers(table, item.name)
    return table


def _read_late_numbers(table: pa.Table, name: str) -> pa.Table:
    """Return a column of text, which was empty at its start, as numbers if all of it are some."""
    array = table.column(name).combine_chunks()
    encoded = array.dictionary_encode()
    encoded = encoded if isinstance(encoded, pa.DictionaryArray) else encoded.combine_chunks()
    words = encoded.dictionary.to_pylist()
    if words and any(words) and not are_numbers(words):
        return table
    numbers, _ = parse_numbers(words)
    values = np.append(numbers, np.nan)[encoded.indices.fill_null(len(words)).to_numpy()]
    place = table.schema.get_field_index(name)
    return table.set_column(place, name, pa.array(values, pa.float64(), from_pandas=True))


class MixedReader:
    """Encodes batches by a schema, and counts what cannot be used.

    Args:
        path: named in errors.
        schema: the columns of `x`.
        rows: the number of all rows.
        selection: says whether rows with a gap are left out, and which column is the label.
        told: whether words and gaps that the schema does not know are told at the end.
    """

    def __init__(
        self,
        path: Place,
        schema: Schema,
        rows: int,
        selection: Selection,
        *,
        told: bool = False,
    ) -> None:
        self.schema, self.label = schema, selection.label
        self._path, self._rows, self._drop = path, rows, selection.drop_missing
        self._encoder = TableEncoder(schema)
        self._unknown = UnknownCells() if told else None
        self._first = ""
        self._bad = self._seen = self._good = 0

    def read(self, batch: pa.RecordBatch) -> tuple[Array, Array]:
        """Return the good rows of a batch, and a code (rows,) for each row, 0 for a good one."""
        check_cells(batch.schema, self.schema.sources)
        cells = encode_batch(batch, self._encoder)
        if self._unknown:
            self._unknown.add(cells)
        if faults := int(np.count_nonzero(cells.faults)):
            place = np.flatnonzero(cells.faults)[0]
            reason = self._encoder.explain(int(cells.faults[place]), int(cells.faulty[place]))
            self._first = self._first or f"{reason} in row {self._seen + place}"
            self._bad += faults
        codes = cells.faults
        if self._drop:
            codes = np.where(codes == 0, NULL * np.isnan(cells.x).any(1), codes)
        good = cells.x if not codes.any() else cells.x[codes == 0]
        self._seen += len(codes)
        self._good += len(good)
        return good, codes

    def finish(self) -> None:
        """Judge all rows that were read.

        Raises:
            DataRefused: some cannot be used, or none are left.
        """
        if self._bad:
            raise DataRefused(
                f"{self._path}: {self._first}; {self._bad:,} of {self._rows:,} rows cannot be "
                "used: correct them, or leave the column out by --columns or --schema"
            )
        if not self._good:
            raise DataRefused(f"{self._path} has no row without a missing value")
        if gaps := self._seen - self._good:
            say(f"{self._path}: {gaps:,} rows with missing values are left out")
        for text in self._unknown.describe() if self._unknown else ():
            warn(f"{self._path}: {text}")


def _encode(table: pa.Table, reader: MixedReader) -> MixedRows:
    """Encode all rows."""
    schema, label = reader.schema, reader.label
    x = np.empty((table.num_rows, len(schema.columns)), np.float32)
    labels: list[pa.Array] = []
    done = 0
    for batch in table.to_batches(_BATCH_ROWS):
        good, codes = reader.read(batch)
        x[done : done + len(good)] = good
        done += len(good)
        labels += [batch.column(label).filter(pa.array(codes == 0))] if label else []
    reader.finish()
    names = tuple(column.name for column in schema.columns)
    return x[:done], as_labels(labels) if label else None, names, schema
