"""Arrow columns to the array `x` of a model, all rows at once.

In: a record batch and the names of its columns. Out: the good rows as (rows, *x_shape) and a code a
row that says why a row is bad. Layouts: bytes of one size, (nested) lists of numbers, bytes that
are raw values, PNG or JPEG (also in the `{bytes, path}` struct of image data sets), and one number
a column. Raises `DataRefused` where the columns cannot hold `x`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute

from serving.errors import DataRefused, UsageRefused
from serving.io.arrow_types import (
    is_bytes,
    is_number,
    is_text,
    list_columns,
    list_sizes,
    plain_type,
)
from serving.io.images import decode_image
from serving.io.rows import DEFAULT_IDS

Array = NDArray[Any]

NULL, LENGTH, VALUE, RANGE, BYTE, IMAGE, RESULT = range(1, 8)
REASONS: Mapping[int, str] = {
    NULL: "x is null, or holds a null",
    LENGTH: "x has the wrong size",
    VALUE: "x is not finite",
    RANGE: "x is not from 0 to 1",
    BYTE: "x is not a whole number from 0 to 255",
    IMAGE: "x is no PNG or JPEG of the model's size",
    RESULT: "the result is not finite",
}
"""Why a row is bad; a good row has code 0."""

_DEFAULTS = ("x", "image")
_PNG = np.frombuffer(b"\x89PNG\r\n\x1a\n", np.uint8)
_JPEG = np.frombuffer(b"\xff\xd8\xff", np.uint8)


@dataclass(frozen=True, slots=True)
class Layout:
    """What a model takes: the shape, dtype and range of a row of `x`."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    unit_range: bool
    """Floats must be from 0 to 1."""
    columns: tuple[str, ...] = ()
    """Names of the features, where the model was trained on a column for each."""

    @property
    def size(self) -> int:
        """Values in a row."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.size * self.dtype.itemsize


@dataclass(slots=True)
class _Rows:
    """Good rows as (rows, size), and the code of each row of the batch."""

    values: Array
    codes: Array = field(repr=False)

    def refuse(self, wrong: Array, code: int) -> None:
        """Take the rows out in which a value of `wrong`, a mask over `values`, is set."""
        bad = np.atleast_1d(wrong.any(1))
        if bad.any():
            good = np.flatnonzero(self.codes == 0)
            self.codes[good[bad]] = code
            self.values = self.values[~bad]


def choose_columns(
    schema: pa.Schema, asked: Sequence[str], ids: Sequence[str], layout: Layout
) -> tuple[str, ...]:
    """The columns that hold `x`: those asked for, the model's own, `x`, `image`, all the numbers.

    Raises:
        UsageRefused: a column is not there, or none can be meant.
        DataRefused: the columns cannot hold `x`.
    """
    own = [item for item in schema if ids != DEFAULT_IDS or item.name not in ids]
    listed = list_columns(pa.schema(own))
    for name in (*asked, *ids):
        if name not in schema.names:
            raise UsageRefused(f"the input has no column {name!r}; it has {listed}")
    missing = [name for name in layout.columns if name not in schema.names]
    if asked:
        columns = tuple(asked)
    elif layout.columns and not missing:
        columns = layout.columns
    elif found := _find_default(schema, layout):
        columns = (found,)
    elif missing:
        more = ", …" if len(layout.columns) > 8 else ""
        raise UsageRefused(
            f"the input has no column {missing[0]!r}, which the model learned from: name by --x "
            f"what stands for {', '.join(layout.columns[:8])}{more}. "
            f"The input has {listed}"
        )
    else:
        columns = tuple(item.name for item in schema if is_number(item.type))
        columns = tuple(name for name in columns if name not in ids)
        if len(columns) != layout.size:
            raise UsageRefused(
                f"cannot tell which columns hold x: {len(columns)} are numbers, the model takes "
                f"{layout.size}; name them by --x. The input has {listed}"
            )
    _check_types(schema, columns, layout)
    return columns


def _find_default(schema: pa.Schema, layout: Layout) -> str | None:
    """A column that holds rows by its name; one number is no row of a model of named columns."""
    for name in _DEFAULTS:
        if name in schema.names and not (layout.columns and is_number(schema.field(name).type)):
            return name
    return None


def read_x(
    batch: pa.RecordBatch, columns: Sequence[str], layout: Layout
) -> tuple[Array, NDArray[np.uint8]]:
    """Convert columns to the good rows of `x` and a code for every row of the batch.

    Raises:
        DataRefused: a column is of another kind in this file.
    """
    _check_types(batch.schema, columns, layout)
    if batch.num_rows == 0:
        return np.empty((0, *layout.shape), layout.dtype), np.zeros(0, np.uint8)
    arrays = [plain(batch.column(name)) for name in columns]
    if is_number(arrays[0].type):
        rows = _from_numbers(arrays, layout)
    elif pa.types.is_fixed_size_binary(arrays[0].type):
        rows = _from_fixed_bytes(arrays[0], layout)
    elif is_bytes(arrays[0].type):
        rows = _from_bytes(arrays[0], layout)
    else:
        rows = _from_lists(arrays[0], layout)
    _to_dtype(rows, layout)
    x = np.ascontiguousarray(rows.values).reshape(-1, *layout.shape)
    return x, rows.codes


def _check_types(schema: pa.Schema, columns: Sequence[str], layout: Layout) -> None:
    """Refuse columns of which no row could be read."""
    kinds = {name: plain_type(schema.field(name).type) for name in columns}
    if all(is_number(kind) for kind in kinds.values()):
        if len(columns) != layout.size:
            raise DataRefused(
                f"x takes {layout.size} columns of numbers, got {len(columns)}: "
                f"{', '.join(columns[:8])}"
            )
        return
    if len(columns) > 1:
        others = pa.schema([schema.field(name) for name in columns if not is_number(kinds[name])])
        word = any(is_text(kind) for kind in kinds.values())
        raise DataRefused(
            f"of several columns each must be numbers, got {list_columns(others)}"
            + ("; in a CSV one word makes a column text" if word else "")
        )
    name, kind = next(iter(kinds.items()))
    if pa.types.is_fixed_size_binary(kind) and kind.byte_width != layout.row_bytes:
        raise DataRefused(
            f"column {name!r} has {kind.byte_width} bytes a row, x takes {layout.row_bytes}: "
            f"{layout.shape} of {layout.dtype}"
        )
    sizes = list_sizes(kind)
    if sizes and not any(_may_be(sizes, shape) for shape in ((layout.size,), layout.shape)):
        raise DataRefused(f"column {name!r} is {kind}, x takes rows of {layout.shape}")
    if not (sizes or is_bytes(kind) or pa.types.is_fixed_size_binary(kind)):
        raise DataRefused(
            f"column {name!r} is {kind}; x can be bytes, a list of numbers, a PNG or JPEG, "
            "or one number a column"
        )


def _from_numbers(arrays: Sequence[pa.Array], layout: Layout) -> _Rows:
    codes = np.zeros(len(arrays[0]), np.uint8)
    for array in arrays:
        if array.null_count:
            codes[_nulls(array)] = NULL
    good = codes == 0
    kind = np.result_type(*(_numbers(array.slice(0, 0)) for array in arrays))
    values = np.empty((np.count_nonzero(good), layout.size), kind)
    for index, array in enumerate(arrays):
        values[:, index] = _numbers(array)[good]
    return _Rows(values, codes)


def _from_fixed_bytes(array: pa.Array, layout: Layout) -> _Rows:
    codes = np.where(_nulls(array), NULL, 0).astype(np.uint8)
    start = array.offset * layout.row_bytes
    count = len(array) * layout.size
    raw = np.frombuffer(array.buffers()[1] or b"", np.uint8, count * layout.dtype.itemsize, start)
    values = raw.view(layout.dtype.newbyteorder("<")).reshape(len(array), layout.size)
    return _Rows(values if not codes.any() else values[codes == 0], codes)


def _from_lists(array: pa.Array, layout: Layout) -> _Rows:
    """Follow the offsets of every level down to the numbers."""
    codes = np.zeros(len(array), np.uint8)
    starts, stops = np.arange(len(array)), np.arange(1, len(array) + 1)
    flat = len(list_sizes(array.type)) == 1
    sizes = (layout.size,) if flat else layout.shape
    for size in sizes:
        codes[_any(_nulls(array), starts, stops)] = NULL
        offsets = _offsets(array)
        codes[_any(np.diff(offsets) != size, starts, stops) & (codes == 0)] = LENGTH
        first, last = int(offsets[0]), int(offsets[-1])  # of the batch, in what may be a whole file
        starts, stops = offsets[starts] - first, offsets[stops] - first
        array = plain(array.values.slice(first, last - first))
    if array.null_count:
        codes[_any(_nulls(array), starts, stops)] = NULL
    values = _numbers(array)
    if codes.any():
        values = values[np.repeat(codes == 0, stops - starts)]
    return _Rows(values.reshape(-1, layout.size), codes)


def _from_bytes(array: pa.Array, layout: Layout) -> _Rows:
    """Bytes of the exact size are raw values, all else must be a picture.

    The values of raw rows are copied at once. Pictures are decoded one by one, each in C.
    """
    codes = np.where(_nulls(array), NULL, 0).astype(np.uint8)
    array = array.cast(pa.large_binary())
    start, buffer = array.offset, array.buffers()[2]
    offsets = np.frombuffer(array.buffers()[1], np.int64, len(array) + 1, 8 * start)
    content = np.frombuffer(buffer or b"", np.uint8)[offsets[0] : offsets[-1]]
    lengths = np.diff(offsets)
    raw = (lengths == layout.row_bytes) & (codes == 0)
    values = content[np.repeat(raw, lengths)].reshape(-1, layout.row_bytes)
    pictures = _is_picture(values)
    raw[np.flatnonzero(raw)[pictures]] = False
    rows = np.zeros((len(array), layout.row_bytes), np.uint8)
    rows[raw] = values[~pictures]
    for index in np.flatnonzero(~raw & (codes == 0)):
        picture = None
        if layout.dtype == np.uint8:
            picture = decode_image(array[int(index)].as_py(), layout.shape)
        if picture is None:
            codes[index] = IMAGE
        else:
            rows[index] = picture.reshape(-1)
    good = rows if not codes.any() else rows[codes == 0]
    return _Rows(good.view(layout.dtype.newbyteorder("<")), codes)


def _is_picture(values: Array) -> Array:
    """Rows of bytes that start as PNG does, or start and end as JPEG does."""
    if values.shape[1] < len(_PNG):
        return np.zeros(len(values), bool)
    png = (values[:, : len(_PNG)] == _PNG).all(1)
    jpeg = (values[:, : len(_JPEG)] == _JPEG).all(1) & (values[:, -2:] == [0xFF, 0xD9]).all(1)
    return np.asarray(png | jpeg)


def _to_dtype(rows: _Rows, layout: Layout) -> None:
    """Convert values to the model's dtype; rows that would change, or are out of range, are bad."""
    values = rows.values
    if layout.dtype == np.uint8:
        if values.dtype == np.uint8:
            return
        with np.errstate(invalid="ignore"):  # of a value that does not fit, which is bad
            whole = values.astype(np.uint8)
        rows.values = whole
        rows.refuse(whole != values, BYTE)
        return
    with np.errstate(over="ignore"):  # too large for float32: infinite, which is bad
        rows.values = values.astype(layout.dtype, copy=False)
    rows.refuse(~np.isfinite(rows.values), VALUE)
    if layout.unit_range and rows.values.size:
        rows.refuse((rows.values < 0) | (rows.values > 1), RANGE)


def _any(marks: Array, starts: Array, stops: Array) -> Array:
    """Which ranges hold a mark."""
    counts = np.concatenate([[0], np.cumsum(marks)])
    return np.asarray(counts[stops] > counts[starts])


def _nulls(array: pa.Array) -> Array:
    if not array.null_count:
        return np.zeros(len(array), bool)
    return np.asarray(array.is_null().to_numpy(zero_copy_only=False))


def _offsets(array: pa.Array) -> Array:
    """Where the values of each list start, in `array.values`."""
    if pa.types.is_fixed_size_list(array.type):
        width: int = array.type.list_size
        return np.arange(array.offset, array.offset + len(array) + 1) * width
    return np.array(array.offsets.to_numpy(), np.int64)


def _numbers(array: pa.Array) -> Array:
    """Values without a look at their nulls, which are marked elsewhere."""
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    if array.null_count:
        array = array.fill_null(0)
    return np.asarray(array.to_numpy())


def plain(array: pa.Array) -> pa.Array:
    """The array itself of an extension, a dictionary, or the struct of an image."""
    if isinstance(array, pa.ExtensionArray):
        return plain(array.storage)
    if pa.types.is_dictionary(array.type):
        return plain(array.dictionary_decode())
    if pa.types.is_struct(array.type) and array.type.get_field_index("bytes") >= 0:
        return compute.struct_field(array, "bytes")
    return array


def _may_be(sizes: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    return len(sizes) == len(shape) and all(
        size in (None, wanted) for size, wanted in zip(sizes, shape, strict=True)
    )
