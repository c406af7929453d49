"""Read rows of the array in an `.npy`, `.npz` or IDX file as record batches with a column `x`.

An `.npy` or IDX file may be gzipped. Every file, even an `.npz`, is read as a stream, so that
memory is bounded by a batch.
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
from serving.io.array_files import choose_array, read_idx_header
from serving.io.arrow_types import to_column
from serving.io.filesystems import Location

_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True, slots=True)
class _ArrayStream:
    """A stream positioned at the first value of an array, and the array's dtype and shape."""

    stream: IO[bytes]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    packed: bool

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def count_array(location: Location) -> tuple[pa.Schema, int]:
    """Return the schema and the number of rows, from the header."""
    with _opened(location) as array:
        wanted = array.stream.tell() + array.shape[0] * array.row_bytes
        if not array.packed and location.info().size < wanted:
            raise DataRefused(
                f"{location} is cut off: shape {array.shape} needs {wanted} bytes, "
                f"got {location.info().size}"
            )
        kind = pa.from_numpy_dtype(array.dtype.newbyteorder("="))
        for size in reversed(array.shape[1:]):
            kind = pa.list_(kind, size)
        return pa.schema([("x", kind)]), array.shape[0]


def read_array_rows(
    location: Location, start: int, stop: int, columns: Sequence[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Read batches of rows `start` to `stop`."""
    with _opened(location) as array:
        array.stream.seek(array.stream.tell() + start * array.row_bytes)
        for row in range(start, stop, batch_rows):
            shape = (min(batch_rows, stop - row), *array.shape[1:])
            content = array.stream.read(shape[0] * array.row_bytes)
            if len(content) < shape[0] * array.row_bytes:
                raise DataRefused(
                    f"{location} is cut off in row {row + len(content) // array.row_bytes}"
                )
            values = np.frombuffer(content, array.dtype).reshape(shape)
            values = values.astype(array.dtype.newbyteorder("="), copy=False)
            yield pa.record_batch([to_column(values)], ["x"]).select(columns)
        # gzip and zip compare their checksums when the end is read
        if stop == array.shape[0] and array.stream.read(1):
            raise DataRefused(f"{location} has more data after its {stop} rows")


@contextlib.contextmanager
def _opened(location: Location) -> Iterator[_ArrayStream]:
    with contextlib.ExitStack() as stack:
        stream: Any = stack.enter_context(location.open())
        head = bytes(stream.read(2))
        stream.seek(0)
        if head == b"PK":
            archive = stack.enter_context(zipfile.ZipFile(stream))
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            member = members[choose_array(location, list(members))]
            stream = stack.enter_context(archive.open(member))
        elif head == b"\x1f\x8b":
            stream = stack.enter_context(gzip.GzipFile(fileobj=stream))
        dtype, shape = _read_header(location, stream)
        if dtype.kind not in "uifb":
            raise DataRefused(f"{location} must hold numbers, got {dtype}")
        if not shape:
            raise DataRefused(f"{location} must hold at least one row, got ()")
        yield _ArrayStream(stream, dtype, shape, head in (b"PK", b"\x1f\x8b"))


def _read_header(location: Location, stream: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    is_npy = stream.read(2) == b"\x93N"
    stream.seek(0)
    if not is_npy:
        return read_idx_header(stream)
    version = np.lib.format.read_magic(stream)
    if version not in _NPY_HEADERS:
        raise DataRefused(
            f"{location} has .npy format {version}, which holds tables of named fields"
        )
    shape, fortran, dtype = _NPY_HEADERS[version](stream)
    if fortran and len(shape) > 1:
        raise DataRefused(
            f"{location} is stored by columns: save numpy.ascontiguousarray(x), so that rows "
            "follow each other"
        )
    return dtype, shape
