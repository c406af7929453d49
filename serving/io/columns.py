"""Convert Arrow columns to the array `x` of a model, all rows of a batch at once.

In: a record batch and the names of its columns. Out: the good rows as (rows, *x_shape), and for
each row a code that says why it is bad. A column may hold bytes of one size, (nested) lists of
numbers, or bytes that are raw values or image files (also in the `{bytes, path}` struct of image
data sets); or each feature has a column of numbers. Raises `DataRefused` if columns cannot hold it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute

from serving.cells import FAULTS
from serving.io.arrow_cells import encode_batch
from serving.io.arrow_types import is_bytes, is_number, is_whole, list_sizes
from serving.io.column_choice import RowLayout, check_cells, check_types
from serving.io.image_files import NotGray, are_image_files, decode_image
from serving.table_cells import TableEncoder, UnknownCells
from serving.value_range import MAX_BYTE, MAX_EXACT

Array = NDArray[Any]

NULL, LENGTH, VALUE, RANGE, BYTE, IMAGE, RESULT, ROUNDED, NAN, ABOVE, COLOUR = range(1, 12)
REASONS: Mapping[int, str] = {
    NULL: "x is null, or holds a null",
    LENGTH: "x has the wrong size",
    VALUE: "x is not finite",
    RANGE: "x is not from 0 to 1",
    BYTE: "x is not a whole number from 0 to 255",
    IMAGE: "x is not an opaque 8-bit image of the model's size and colours",
    RESULT: "the result is not finite",
    ROUNDED: "x is a whole number that float32 would round",
    NAN: "x is NaN, or holds a NaN",
    ABOVE: "x has a byte above those that the model was trained with",
    COLOUR: "x is an image in colour, and the model takes gray ones",
}
"""Why a row is bad; a good row has code 0."""
CELL = 16
"""Codes from here on are of rows with a cell that cannot be used: one for each column and fault."""


@dataclass(slots=True)
class _ConvertedRows:
    """Values (rows, size) of the good rows, and the code of every row of the batch."""

    values: Array
    codes: Array = field(repr=False)
    large: Sequence[Array] = ()
    """Parts of `values` that hold whole numbers which float32 may round."""

    def refuse(self, wrong: Array, code: int) -> None:
        """Remove the rows in which the mask `wrong` over `values` is set, and give them `code`."""
        bad = np.atleast_1d(wrong.any(1))
        if bad.any():
            good = np.flatnonzero(self.codes == 0)
            self.codes[good[bad]] = code
            self.values = self.values[~bad]


def read_x(
    batch: pa.RecordBatch,
    columns: Sequence[str],
    layout: RowLayout,
    watch: Callable[[Array], None] = lambda values: None,
    unknown: UnknownCells | None = None,
) -> tuple[Array, Array]:
    """Convert columns to the good rows of `x` and a code for every row of the batch.

    `watch` receives the values (rows, size) of rows without a null, in the type that the file has.
    If the layout has a schema, `unknown` counts the words and gaps that the schema does not know.

    Raises:
        DataRefused: in this batch's file the columns have types that cannot hold `x`.
    """
    if layout.encoder:
        return _from_cells(batch, layout.encoder, unknown)
    check_types(batch.schema, columns, layout)
    if batch.num_rows == 0:
        return np.empty((0, *layout.shape), layout.dtype), np.zeros(0, np.uint8)
    places = {name: index for index, name in enumerate(batch.schema.names)}
    indices = [places[name] for name in columns]
    arrays = [unwrap_array(batch.column(index)) for index in indices]
    if is_number(arrays[0].type):
        rows = _from_numbers(arrays, layout)
    elif pa.types.is_fixed_size_binary(arrays[0].type):
        rows = _from_fixed_bytes(arrays[0], layout)
    elif is_bytes(arrays[0].type):
        rows = _from_bytes(arrays[0], layout)
    else:
        rows = _from_lists(arrays[0], layout)
    watch(rows.values)
    rows.large = [*rows.large, *_find_large(rows.values, batch, indices)]
    _to_dtype(rows, layout)
    x = np.ascontiguousarray(rows.values).reshape(-1, *layout.shape)
    return x, rows.codes


def _from_cells(
    batch: pa.RecordBatch, encoder: TableEncoder, unknown: UnknownCells | None
) -> tuple[Array, Array]:
    check_cells(batch.schema, encoder.schema.sources)
    cells = encode_batch(batch, encoder)
    if unknown is not None:
        unknown.add(cells)
    codes = np.where(cells.faults, CELL + cells.faulty * len(FAULTS) + cells.faults - 1, 0)
    return cells.x if not codes.any() else cells.x[codes == 0], codes


def explain_code(code: int, layout: RowLayout) -> str:
    """Say why a row is bad."""
    if code < CELL or layout.encoder is None:
        return REASONS[code]
    place, fault = divmod(code - CELL, len(FAULTS))
    return layout.encoder.explain(fault + 1, place)


def _from_numbers(arrays: Sequence[pa.Array], layout: RowLayout) -> _ConvertedRows:
    codes = np.zeros(len(arrays[0]), np.uint8)
    for array in arrays:
        if array.null_count:
            codes[_nulls(array)] = NULL
    good = codes == 0
    if len({array.type for array in arrays}) == 1 and good.all() and _is_plain(arrays[0].type):
        # one copy by Arrow: the loop below takes microseconds for each of thousands of columns
        batch = pa.RecordBatch.from_arrays(arrays, [""] * len(arrays))
        return _ConvertedRows(batch.to_tensor().to_numpy(), codes)
    kind = np.result_type(*(_numbers(array.slice(0, 0)) for array in arrays))
    values = np.empty((np.count_nonzero(good), layout.size), kind)
    large = []
    for index, array in enumerate(arrays):
        column = _numbers(array)[good]
        values[:, index] = column
        if column.dtype.kind in "iu" and kind.kind == "f" and _is_beyond(column).any():
            large.append(column)  # float64, too, may round it
    return _ConvertedRows(values, codes, large)


def _find_large(values: Array, batch: pa.RecordBatch, indices: Sequence[int]) -> list[Array]:
    """Return what holds whole numbers, some of them beyond `MAX_EXACT`."""
    if values.dtype.itemsize < 4:
        return []
    beyond = np.flatnonzero(_is_beyond(values).any(0)).tolist()
    if values.dtype.kind in "iu":
        return [values] if beyond else []
    if len(indices) == 1:
        return [values] if beyond and is_whole(batch.schema.field(indices[0])) else []
    return [values[:, i] for i in beyond if is_whole(batch.schema.field(indices[i]))]


def _is_beyond(values: Array) -> Array:
    return np.asarray((values > MAX_EXACT) | (values < -MAX_EXACT))


def _is_plain(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _from_fixed_bytes(array: pa.Array, layout: RowLayout) -> _ConvertedRows:
    codes = np.where(_nulls(array), NULL, 0).astype(np.uint8)
    start = array.offset * layout.row_bytes
    count = len(array) * layout.size
    raw = np.frombuffer(array.buffers()[1] or b"", np.uint8, count * layout.dtype.itemsize, start)
    values = raw.view(layout.dtype.newbyteorder("<")).reshape(len(array), layout.size)
    return _ConvertedRows(values if not codes.any() else values[codes == 0], codes)


def _from_lists(array: pa.Array, layout: RowLayout) -> _ConvertedRows:
    """Follow the offsets of each level of lists down to the numbers."""
    codes = np.zeros(len(array), np.uint8)
    starts, stops = np.arange(len(array)), np.arange(1, len(array) + 1)
    flat = len(list_sizes(array.type)) == 1
    sizes = (layout.size,) if flat else layout.shape
    for size in sizes:
        codes[_any_between(_nulls(array), starts, stops)] = NULL
        offsets = _offsets(array)
        codes[_any_between(np.diff(offsets) != size, starts, stops) & (codes == 0)] = LENGTH
        first, last = int(offsets[0]), int(offsets[-1])  # the values may be those of a whole file
        starts, stops = offsets[starts] - first, offsets[stops] - first
        array = unwrap_array(array.values.slice(first, last - first))
    if array.null_count:
        codes[_any_between(_nulls(array), starts, stops)] = NULL
    values = _numbers(array)
    if codes.any():
        values = values[np.repeat(codes == 0, stops - starts)]
    return _ConvertedRows(values.reshape(-1, layout.size), codes)


def _from_bytes(array: pa.Array, layout: RowLayout) -> _ConvertedRows:
    """Read bytes of the exact size as raw values, and all others as pictures.

    The values of all raw rows are copied at once; pictures are decoded one by one, each in C.
    """
    codes = np.where(_nulls(array), NULL, 0).astype(np.uint8)
    array = array.cast(pa.large_binary())
    start, buffer = array.offset, array.buffers()[2]
    offsets = np.frombuffer(array.buffers()[1], np.int64, len(array) + 1, 8 * start)
    content = np.frombuffer(buffer or b"", np.uint8)[offsets[0] : offsets[-1]]
    lengths = np.diff(offsets)
    raw = (lengths == layout.row_bytes) & (codes == 0)
    values = content[np.repeat(raw, lengths)].reshape(-1, layout.row_bytes)
    pictures = are_image_files(values)
    raw[np.flatnonzero(raw)[pictures]] = False
    rows = np.zeros((len(array), layout.row_bytes), np.uint8)
    rows[raw] = values[~pictures]
    for index in np.flatnonzero(~raw & (codes == 0)):
        codes[index] = _read_picture(array[int(index)].as_py(), layout, rows[index])
    good = rows if not codes.any() else rows[codes == 0]
    return _ConvertedRows(good.view(layout.dtype.newbyteorder("<")), codes)


def _read_picture(content: bytes, layout: RowLayout, row: Array) -> int:
    """Decode an image into a row (size,); return its code."""
    try:
        picture = decode_image(content, layout.shape) if layout.dtype == np.uint8 else None
    except NotGray:
        return COLOUR
    if picture is None:
        return IMAGE
    row[:] = picture.reshape(-1)
    return 0


def _to_dtype(rows: _ConvertedRows, layout: RowLayout) -> None:
    """Convert values to the model's dtype; refuse rows that would change or are out of range."""
    values = rows.values
    if layout.dtype == np.uint8:
        if values.dtype != np.uint8:
            _to_bytes(rows)
        if layout.max_byte < MAX_BYTE:
            rows.refuse(rows.values > layout.max_byte, ABOVE)
        return
    rounded = [_is_rounded(column) for column in rows.large]
    with np.errstate(over="ignore"):  # a value that is too large becomes inf, refused below
        rows.values = values.astype(layout.dtype, copy=False)
    if rounded:
        rows.refuse(np.column_stack(rounded), ROUNDED)
    if not np.isfinite(rows.values).all():
        rows.refuse(np.isnan(rows.values), NAN)
        rows.refuse(~np.isfinite(rows.values), VALUE)
    if layout.unit_range and rows.values.size:
        rows.refuse((rows.values < 0) | (rows.values > 1), RANGE)


def _is_rounded(column: Array) -> Array:
    """Return which whole numbers float32 would change, compared in the type that they have."""
    with np.errstate(over="ignore", invalid="ignore"):
        back = column.astype(np.float32).astype(column.dtype)
    return np.asarray((back != column) & np.isfinite(column))


def _to_bytes(rows: _ConvertedRows) -> None:
    values = rows.values
    with np.errstate(invalid="ignore"):  # a value that does not fit is refused below
        rows.values = values.astype(np.uint8)
    rows.refuse(rows.values != values, BYTE)


def _any_between(marks: Array, starts: Array, stops: Array) -> Array:
    """Return which ranges from `starts` to `stops` contain a mark."""
    counts = np.concatenate([[0], np.cumsum(marks)])
    return np.asarray(counts[stops] > counts[starts])


def _nulls(array: pa.Array) -> Array:
    if not array.null_count:
        return np.zeros(len(array), bool)
    return np.asarray(array.is_null().to_numpy(zero_copy_only=False))


def _offsets(array: pa.Array) -> Array:
    """Return where the values of each list start and the last one ends, in `array.values`."""
    if pa.types.is_fixed_size_list(array.type):
        width: int = array.type.list_size
        return np.arange(array.offset, array.offset + len(array) + 1) * width
    return np.array(array.offsets.to_numpy(), np.int64)


def _numbers(array: pa.Array) -> Array:
    """Return the values; nulls, which the callers have marked already, become 0."""
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    elif pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    if array.null_count:
        array = array.fill_null(0)
    return np.asarray(array.to_numpy())


def unwrap_array(array: pa.Array) -> pa.Array:
    """Return the values inside an extension array, a dictionary, or the struct of an image."""
    if isinstance(array, pa.ExtensionArray):
        return unwrap_array(array.storage)
    if pa.types.is_dictionary(array.type):
        return unwrap_array(array.dictionary_decode())
    if pa.types.is_struct(array.type) and array.type.get_field_index("bytes") >= 0:
        return compute.struct_field(array, "bytes")
    return array
