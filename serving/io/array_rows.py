"""Rows of one array in a file, as record batches with a column `x`: `.npy`, `.npz`, IDX, gzipped.

The file is read as a stream: memory is bounded by a batch, in an `.npz` too.
"""

import contextlib
import gzip
import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa

from serving.errors import DataRefused
from serving.io.array_files import read_idx_header
from serving.io.filesystems import Place

_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True, slots=True)
class _Array:
    """A stream that stands at the first value, and what is in it."""

    stream: IO[bytes]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    packed: bool

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def count_array(place: Place) -> tuple[pa.Schema, int]:
    """Schema and number of rows, from the header."""
    with _opened(place) as array:
        wanted = array.stream.tell() + array.shape[0] * array.row_bytes
        if not array.packed and place.info().size < wanted:
            raise DataRefused(
                f"{place} is cut off: shape {array.shape} needs {wanted} bytes, "
                f"got {place.info().size}"
            )
        kind = pa.from_numpy_dtype(array.dtype.newbyteorder("="))
        for size in reversed(array.shape[1:]):
            kind = pa.list_(kind, size)
        return pa.schema([("x", kind)]), array.shape[0]


def read_array_rows(
    place: Place, start: int, stop: int, columns: Sequence[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Batches of rows `start` to `stop`."""
    with _opened(place) as array:
        array.stream.seek(array.stream.tell() + start * array.row_bytes)
        for row in range(start, stop, batch_rows):
            count = min(batch_rows, stop - row) * array.row_bytes
            content = array.stream.read(count)
            if len(content) < count:
                raise DataRefused(f"{place} is cut off in row {row + len(content) // count}")
            yield pa.record_batch([_column(array, content)], ["x"]).select(columns)
        # to the end, where gzip and zip compare their checksums
        if stop == array.shape[0] and array.stream.read(1):
            raise DataRefused(f"{place} goes on after its {stop} rows")


@contextlib.contextmanager
def _opened(place: Place) -> Iterator[_Array]:
    with contextlib.ExitStack() as stack:
        stream: Any = stack.enter_context(place.open())
        head = bytes(stream.read(2))
        stream.seek(0)
        if head == b"PK":
            stream = stack.enter_context(_member(stack.enter_context(zipfile.ZipFile(stream))))
        elif head == b"\x1f\x8b":
            stream = stack.enter_context(gzip.GzipFile(fileobj=stream))
        dtype, shape = _read_header(place, stream)
        if dtype.kind not in "uifb":
            raise DataRefused(f"{place} must hold numbers, got {dtype}")
        if not shape:
            raise DataRefused(f"{place} must hold at least one row, got ()")
        yield _Array(stream, dtype, shape, head in (b"PK", b"\x1f\x8b"))


def _read_header(place: Place, stream: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    is_npy = stream.read(2) == b"\x93N"
    stream.seek(0)
    if not is_npy:
        return read_idx_header(stream)
    version = np.lib.format.read_magic(stream)
    if version not in _NPY_HEADERS:
        raise DataRefused(f"{place} has .npy format {version}, which is of tables of named fields")
    shape, fortran, dtype = _NPY_HEADERS[version](stream)
    if fortran and len(shape) > 1:
        raise DataRefused(
            f"{place} is stored by columns: save numpy.ascontiguousarray(x), so that rows follow "
            "each other"
        )
    return dtype, shape


def _member(archive: zipfile.ZipFile) -> IO[bytes]:
    """The array `x` of an `.npz`, or its only one."""
    names = [name.removesuffix(".npy") for name in archive.namelist()]
    if "x" not in names and len(names) != 1:
        raise DataRefused(
            f"{archive.filename or 'the .npz'} must hold one array, or one named x; "
            f"got {', '.join(names)}"
        )
    return archive.open("x.npy" if "x" in names else archive.namelist()[0])


def _column(array: _Array, content: bytes) -> pa.Array:
    values = np.frombuffer(content, array.dtype)
    column = pa.array(values.astype(array.dtype.newbyteorder("="), copy=False))
    for size in reversed(array.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column
