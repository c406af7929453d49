"""Encode the cells of Arrow columns by a schema, and decode `x` to Arrow columns.

In: a record batch with the columns of the schema, in any order and of any type that cells have.
Out: `x` with what cannot be used. Text goes through a dictionary, so that each distinct word is
looked up once. Dictionaries, decimals, booleans and dates of any unit and zone are read for what
they are.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serving.cells import CellEncoder, Cells
from serving.io.arrow_types import NUMBER_WORDS, is_bytes, is_text, widen_view
from serving.schema import Column, Schema
from serving.table_cells import TableCells, TableEncoder, decode_table

Array = NDArray[Any]

CELL_TYPES: Mapping[str, pa.DataType] = {
    "float": pa.float64(),
    "int": pa.int64(),
    "bool": pa.bool_(),
    "text": pa.string(),
    "date": pa.date32(),
    "time": pa.timestamp("s"),
}
"""The Arrow types of the types of cells."""


def encode_batch(batch: pa.RecordBatch, encoder: TableEncoder) -> TableCells:
    """Encode a batch that has all columns of the schema."""
    places = {name: index for index, name in enumerate(batch.schema.names)}
    kinds = batch.schema.types
    names = [name for name in encoder.number_names if _is_plain(kinds[places[name]])]
    numbers = np.empty((batch.num_rows, len(names)))
    for index, name in enumerate(names):  # null becomes NaN
        numbers[:, index] = batch.column(places[name]).to_numpy(zero_copy_only=False)
    return encoder.encode(
        batch.num_rows,
        lambda name, cells: encode_array(batch.column(places[name]), cells),
        names,
        numbers,
    )


def _is_plain(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def encode_array(array: pa.Array, encoder: CellEncoder) -> Cells:
    """Encode the cells of an array of any type that `is_cell` accepts."""
    if isinstance(array, pa.ExtensionArray):
        return encode_array(array.storage, encoder)
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _encode_dictionary(array, encoder)
    if is_text(kind) or is_bytes(kind):
        return _encode_dictionary(array.cast(widen_view(kind)).dictionary_encode(), encoder)
    return encoder.encode(*to_values(array))


def _encode_dictionary(array: pa.DictionaryArray, encoder: CellEncoder) -> Cells:
    """Encode each value once, and a gap after them, which the nulls take."""
    values = array.dictionary
    if is_text(values.type):
        words = values.fill_null("").to_pylist() if values.null_count else values.to_pylist()
        cells = encoder.encode_words([*words, ""])
    elif is_bytes(values.type):
        cells = encoder.encode(np.array([*values.to_pylist(), None], object))
    else:
        cells = encode_array(values, encoder)
        cells = cells.append(encoder.gaps(1))
    return cells.take(array.indices.fill_null(len(values)).to_numpy())


def to_values(array: pa.Array) -> tuple[Array, NDArray[np.bool_] | None]:
    """Return numbers, booleans or dates as a numpy array, and which of them are null, if any are.

    Decimals are rounded once, by way of their text: pyarrow's own cast may round twice.
    """
    kind = array.type
    if pa.types.is_null(kind):
        return np.zeros(len(array)), np.ones(len(array), bool)
    missing = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
    if pa.types.is_decimal(kind):
        array = array.cast(pa.string()).cast(pa.float64())
    elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        unit = getattr(kind, "unit", "D" if pa.types.is_date32(kind) else "ms")
        whole = array.view(pa.int32() if pa.types.is_date32(kind) else pa.int64())
        return whole.fill_null(0).to_numpy().astype(np.int64).view(f"M8[{unit}]"), missing
    if missing is not None and not pa.types.is_floating(array.type):
        array = array.fill_null(False if pa.types.is_boolean(kind) else 0)
    return array.to_numpy(zero_copy_only=False), missing


def decode_batch(schema: Schema, x: Array) -> pa.RecordBatch:
    """Return the columns of a table from `x` (rows, columns), in the columns' own types."""
    columns = {column.table_column: column for column in schema.columns}
    return pa.record_batch(
        {name: _to_array(columns[name], values) for name, values in decode_table(schema, x).items()}
    )


def _to_array(column: Column, values: Array) -> pa.Array:
    if values.dtype.kind == "f":
        return pa.array(values, mask=np.isnan(values)).cast(CELL_TYPES[column.type])
    return pa.array(values).cast(CELL_TYPES[column.type])


def csv_types(schema: Schema) -> dict[str, pa.DataType]:
    """Return the types by which the columns of a CSV file are read."""
    return {column.table_column: _csv_type(column) for column in schema.columns}


def _csv_type(column: Column) -> pa.DataType:
    if column.type not in ("float", "int"):
        return pa.string()
    return NUMBER_WORDS if column.words else pa.float64()
