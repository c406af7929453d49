"""Open the rows to train on, by the way that suits their format.

An `.npy` or IDX file is mapped where it lies, Parquet and Arrow files are read by blocks, and all
else is decoded once, to a file that is mapped.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa

from pipeline.data.image_folder import ImageFolder
from pipeline.data.mixed_tables import (
    MixedReader,
    guess_types,
    may_be_mixed,
    settle_schema,
    to_table,
)
from pipeline.data.plan import Resources
from pipeline.data.selection import Selection
from pipeline.data.streamed_rows import FileStamp
from pipeline.data.streaming.chunks import RowKind, RowSource
from pipeline.data.streaming.decoding import DecodedImages, DecodedTable, open_decoded_array
from pipeline.data.streaming.mapped import fit_model, map_array
from pipeline.data.streaming.null_counts import find_columns_with_nulls
from pipeline.data.streaming.parts import Parts
from pipeline.data.streaming.row_cache import cache_rows, find_cached
from pipeline.data.streaming.table_rows import Decoder, TableRows, find_pieces
from pipeline.data.table_source import TableSource, open_source
from pipeline.data.tables import NumberTable, plan_numbers, tell_ranges
from serving.io.arrow_cells import csv_types
from serving.io.filesystems import locate
from serving.schema import Schema

_Result = TypeVar("_Result")
_Run = Callable[[RowSource], _Result]

_SAMPLE_ROWS = 100_000
"""Rows from which the schema of a table is found."""
_SAMPLED_PIECES = 32
_TAKE_GAPS = "learn from them by --likelihood mixed, "


def run_on_rows(
    parts: Parts, name: str, selection: Selection, resources: Resources, run: _Run[_Result]
) -> _Result:
    """Open the rows, and return what `run` makes of them.

    Images are opened as gray ones first, and again in colour if one of them is.

    Args:
        parts: where the rows are.
        name: the source, in messages.
        selection: what is chosen of it.
        resources: the folder of the cache.
        run: may raise `NotGray`.
    """
    if parts.kind == "images":
        return _run_on_images(parts, name, selection, resources, run)
    if parts.kind == "table":
        return _run_on_table(parts, name, selection, resources, run)
    if not parts.array and (mapped := map_array(parts.path, name, selection)):
        return run(replace(mapped, labels=parts.labels))
    location = locate(str(parts.path))
    decoded = open_decoded_array(location, parts.array, name, selection, parts.labels)
    return run(cache_rows(decoded, resources.cache))


def _run_on_images(
    parts: Parts, name: str, selection: Selection, resources: Resources, run: _Run[_Result]
) -> _Result:
    folder = ImageFolder(parts.path)

    def decode(shape: tuple[int, ...]) -> DecodedImages:
        kind = RowKind(name=name, shape=shape, dtype=np.dtype(np.uint8))
        return DecodedImages(folder, fit_model(kind, selection))

    if known := find_cached(decode((*folder.size, 3)), resources.cache):
        return run(known)  # one of them is in colour: they were decoded so before
    return selection.read_images(
        lambda shape: run(cache_rows(decode(shape), resources.cache)), folder.size
    )


def _run_on_table(
    parts: Parts, name: str, selection: Selection, resources: Resources, run: _Run[_Result]
) -> _Result:
    source = open_source(parts.path, selection)
    schema = selection.table_schema or _find_schema(source, selection)
    if schema is not None:
        columns = tuple(column.name for column in schema.columns)
        kind = RowKind(
            name=name,
            shape=(len(columns),),
            dtype=np.dtype(np.float32),
            columns=columns,
            schema=schema,
        )
        total = source.rows.total if source.rows else 0
        known = selection.table_schema is None and 0 < total <= _SAMPLE_ROWS
        mixed = _MixedDecoder(source, schema, total, selection, told=not known)
        return run(_open_table(source, kind, mixed, csv_types(schema), selection, resources))
    may_have_gaps = may_be_mixed(source, selection)  # and the sample has none
    table = replace(plan_numbers(source), advice=_TAKE_GAPS if may_have_gaps else "")

    def run_shaped(shape: tuple[int, ...]) -> _Result:
        shaped = replace(table, layout=replace(table.layout, shape=shape))
        kind = _kind_of_numbers(shaped, name, selection)
        return run(_open_table(source, kind, shaped, {}, selection, resources))

    if table.are_images:
        return selection.read_images(run_shaped, table.layout.shape)
    return run_shaped(table.layout.shape)


@dataclass(frozen=True, slots=True)
class _MixedDecoder:
    """Decodes cells by a schema."""

    source: TableSource
    schema: Schema
    total: int
    selection: Selection
    told: bool
    """Whether words and gaps that the schema does not know are told: it may be that of a sample."""

    def reader(self, drop_missing: bool, *, check: bool) -> MixedReader:
        """Return what reads batches."""
        selection = replace(self.selection, drop_missing=drop_missing)
        return MixedReader(
            self.source.path, self.schema, self.total, selection, told=check and self.told
        )


def _kind_of_numbers(table: NumberTable, name: str, selection: Selection) -> RowKind:
    """Return the kind of rows; columns of bytes whose ranges differ are numbers."""
    kind = RowKind(
        name=name, shape=table.layout.shape, dtype=table.layout.dtype, columns=table.features
    )
    source, rows = table.source, table.source.rows
    if selection.x_dtype or not (table.features and source.are_bytes and rows):
        return fit_model(kind, selection)
    reader = table.reader(selection.drop_missing, check=False)
    low, high = np.full(len(table.features), 255, np.uint8), np.zeros(len(table.features), np.uint8)
    with source.read({}) as batches:
        for batch in batches:
            x, _ = reader.read(batch)
            low, high = (
                np.minimum(low, x.min(0, initial=255)),
                np.maximum(high, x.max(0, initial=0)),
            )
    if tell_ranges(source.path, table.features, low, high):
        return replace(kind, dtype=np.dtype(np.float32))
    return kind


def _open_table(
    source: TableSource,
    kind: RowKind,
    decoder: Decoder,
    types: Mapping[str, pa.DataType],
    selection: Selection,
    resources: Resources,
) -> RowSource:
    """Open a table by blocks, or decode it once."""
    rows, label, drop = source.rows, selection.label, selection.drop_missing
    if rows and (pieces := find_pieces(rows, kind.row_bytes)) is not None:
        return TableRows(
            kind=kind,
            rows=rows,
            names=source.names,
            label=label,
            decoder=decoder,
            pieces=pieces,
            drop_missing=drop,
            judge=kind.schema is None,
        )
    if rows:
        stamps = [FileStamp(file.location, file.size, file.version) for file in rows.files]
        most = rows.total
    else:
        stamps = [FileStamp.of(locate(str(source.path)))]
        most = max(1, stamps[0].size // (2 * len(source.names)))  # a field has a digit and a comma
    decoded = DecodedTable(
        kind=kind,
        files=stamps,
        most_rows=most,
        exact=rows is not None,
        open=partial(source.read, types),
        label=label,
        decoder=decoder,
        selection=selection,
        judge=kind.schema is None,
    )
    return cache_rows(decoded, resources.cache)


def _find_schema(source: TableSource, selection: Selection) -> Schema | None:
    """Find the schema from a fixed sample of the rows; None if the table needs none."""
    if not may_be_mixed(source, selection):
        return None
    types = guess_types(source)
    table = _sample(source, types, selection)
    return settle_schema(source, _add_gaps(source, table, selection), selection)


def _add_gaps(source: TableSource, table: pa.Table, selection: Selection) -> pa.Table:
    """Add a row that shows which columns have gaps outside the sample, as far as footers tell.

    Its other cells are those of the first row.
    """
    if source.rows is None or source.rows.total <= _SAMPLE_ROWS or selection.drop_missing:
        return table
    full = [name for name in source.names if not table.column(name).null_count]
    gaps = find_columns_with_nulls(source.rows, full)
    row = table.slice(0, 1)
    for place, item in enumerate(table.schema):
        if item.name in gaps:
            row = row.set_column(place, item, pa.nulls(1, item.type))
    return pa.concat_tables([table, row]) if gaps else table


def _sample(
    source: TableSource, types: Mapping[str, pa.DataType], selection: Selection
) -> pa.Table:
    """Return rows from all over the table, or all of them if they are few."""
    rows = source.rows
    if rows is None:
        with source.read(types) as batches:
            return to_table(source, types, _thin_out(batches))
    if rows.total <= _SAMPLE_ROWS:
        batches = rows.read(0, rows.total, source.names, _SAMPLE_ROWS)
        return to_table(source, types, batches)
    each, step = _SAMPLE_ROWS // _SAMPLED_PIECES, rows.total // _SAMPLED_PIECES
    starts = range(0, step * _SAMPLED_PIECES, step)
    parts = (rows.read(start, start + each, source.names, each) for start in starts)
    return to_table(source, types, (batch for part in parts for batch in part))


def _thin_out(batches: Iterable[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """Keep every batch, or every second, fourth, eighth one: as few as the sample may hold."""
    kept: list[pa.RecordBatch] = []
    step = 1
    for number, batch in enumerate(batches):
        if number % step:
            continue
        kept.append(batch)
        while len(kept) > 1 and sum(each.num_rows for each in kept) > _SAMPLE_ROWS:
            kept, step = kept[::2], 2 * step
    return kept
