"""Read tables by a schema: one that is known, or that is found from the table.

In: a table and what is chosen of it. Out: `x` (rows, columns) as float32 with NaN for gaps, the
labels, and the schema. A table of nothing but numbers of one kind needs no schema, and is left to
`pipeline.data.tables`. Raises `DataRefused` for cells that cannot be used, with column and row.
"""

from collections.abc import Mapping
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
from serving.schema import Schema
from serving.table_cells import TableEncoder, UnknownCells

Array = NDArray[Any]
MixedRows = tuple[Array, Array | None, tuple[str, ...], Schema]

SHOWN_COLUMNS = 30
"""Columns that the summary before a training lists."""
_BATCH_ROWS = 65_536


def read_mixed(source: TableSource, selection: Selection) -> MixedRows | None:
    """Read a table by its schema; None if it needs none."""
    if selection.table_schema:
        types = csv_types(selection.table_schema)
        table = _load(source, types, selection.label)
        unknown = UnknownCells()
        rows = _encode(source.path, table, selection.table_schema, selection, unknown)
        for text in unknown.describe():
            warn(f"{source.path}: {text}")
        return rows
    if not _may_be_mixed(source, selection):
        return None
    table = _load(source, _guess_types(source), selection.label)
    found = search(source, table, selection)
    if not _needs_schema(source, found, selection):
        return None
    schema = found.schema
    say(summarize(source.path, found, SHOWN_COLUMNS), wrap=False)
    if not selection.schema:
        say("to change what they are: vae schema DATA --out FILE, then --schema FILE")
    if not schema.columns:
        raise DataRefused(f"{source.path} has no column to learn from, see above")
    return _encode(source.path, table, schema, selection)


def find_table_schema(path: Path, selection: Selection) -> FoundSchema:
    """Find the schema of a table, whether it needs one or not."""
    source = open_source(path, selection)
    if source.holds_rows:
        raise UsageRefused(f"{path} holds whole rows in one column, {source.names[0]!r}")
    return search(source, _load(source, _guess_types(source), selection.label), selection)


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


def _may_be_mixed(source: TableSource, selection: Selection) -> bool:
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


def _guess_types(source: TableSource) -> dict[str, pa.DataType]:
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


def _load(source: TableSource, types: Mapping[str, pa.DataType], label: str) -> pa.Table:
    """Read all rows of the columns and the label."""
    with source.read(types) as batches:
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


def _encode(
    path: Path,
    table: pa.Table,
    schema: Schema,
    selection: Selection,
    unknown: UnknownCells | None = None,
) -> MixedRows:
    """Encode all rows; those with a gap are left out if `selection` says so."""
    check_cells(table.schema, schema.sources)
    encoder, label = TableEncoder(schema), selection.label
    x = np.empty((table.num_rows, len(schema.columns)), np.float32)
    first, bad, start = "", 0, 0
    for batch in table.to_batches(_BATCH_ROWS):
        cells = encode_batch(batch, encoder)
        x[start : start + len(cells.x)] = cells.x
        if unknown:
            unknown.add(cells)
        if faults := int(np.count_nonzero(cells.faults)):
            place = np.flatnonzero(cells.faults)[0]
            reason = encoder.explain(int(cells.faults[place]), int(cells.faulty[place]))
            first = first or f"{reason} in row {start + place}"
            bad += faults
        start += len(cells.x)
    if bad:
        raise DataRefused(
            f"{path}: {first}; {bad:,} of {table.num_rows:,} rows cannot be used: correct them, or "
            "leave the column out by --columns or --schema"
        )
    labels = [chunk for chunk in table.column(label).chunks] if label else []
    names = tuple(column.name for column in schema.columns)
    if not selection.drop_missing:
        return x, as_labels(labels) if label else None, names, schema
    kept = ~np.isnan(x).any(1)
    if not kept.any():
        raise DataRefused(f"{path} has no row without a missing value")
    if gaps := len(x) - int(kept.sum()):
        say(f"{path}: {gaps:,} rows with missing values are left out")
    return x[kept], as_labels(labels)[kept] if label else None, names, schema
