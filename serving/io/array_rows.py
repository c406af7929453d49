"""Read rows of the array in an `.npy`, `.npz` or IDX file as record batches with a column `x`.

Every file, even a compressed one, is read as a stream, so that memory is bounded by a batch. A file
that is stored by columns (Fortran's order) has each row spread over all of it: it is mapped into
memory if it is plain and on this machine, otherwise read whole. A file may be what
`serving.io.array_streams` opens.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serving.errors import DataRefused
from serving.io.array_streams import ArrayStream, open_array
from serving.io.arrow_types import to_column
from serving.io.filesystems import Location
from serving.io.memory import require_memory


def count_array(location: Location, array: str = "") -> tuple[pa.Schema, int]:
    """Return the schema and the number of rows, from the header; `array` is a name in `.npz`."""
    with _opened(location, array) as found:
        wanted = found.stream.tell() + found.value_bytes
        if not found.is_packed and location.info().size < wanted:
            raise DataRefused(
                f"{location} is cut off: shape {found.shape} needs {wanted} bytes, "
                f"got {location.info().size}"
            )
        kind = pa.from_numpy_dtype(_arrow_dtype(found.dtype))
        for size in reversed(found.shape[1:]):
            kind = pa.list_(kind, size)
        return pa.schema([("x", kind)]), found.shape[0]


def read_array_rows(
    array: str, location: Location, start: int, stop: int, columns: Sequence[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Read batches of rows `start` to `stop`."""
    with _opened(location, array) as found:
        kind = _arrow_dtype(found.dtype)
        if found.by_columns:
            values = _read_columns(location, found)
            for row in range(start, stop, batch_rows):
                rows = values[row : min(row + batch_rows, stop)]
                yield pa.record_batch([to_column(rows.astype(kind))], ["x"]).select(columns)
            return
        found.stream.seek(found.stream.tell() + start * found.row_bytes)
        for row in range(start, stop, batch_rows):
            shape = (min(batch_rows, stop - row), *found.shape[1:])
            content = found.stream.read(shape[0] * found.row_bytes)
            if len(content) < shape[0] * found.row_bytes:
                raise DataRefused(
                    f"{location} is cut off in row {row + len(content) // found.row_bytes}"
                )
            values = np.frombuffer(content, found.dtype).reshape(shape)
            values = values.astype(kind, copy=False)
            yield pa.record_batch([to_column(values)], ["x"]).select(columns)
        # gzip and zip compare their checksums when the end is read
        if stop == found.shape[0] and found.stream.read(1):
            raise DataRefused(f"{location} has more data after its {stop} rows")


@contextlib.contextmanager
def _opened(location: Location, array: str) -> Iterator[ArrayStream]:
    with location.open() as stream, open_array(location, stream, array) as found:
        if found.dtype.kind not in "uifb":
            raise DataRefused(f"{location} must hold numbers, got {found.dtype}")
        if not found.shape:
            raise DataRefused(f"{location} must hold at least one row, got ()")
        yield found


def _read_columns(location: Location, found: ArrayStream) -> NDArray[Any]:
    """Return the values of a file that is stored by columns."""
    start = found.stream.tell()
    if location.is_local and not found.is_packed:
        return np.memmap(location.path, found.dtype, "r", start, found.shape, order="F")
    require_memory(location, found.value_bytes)
    content = found.stream.read(found.value_bytes + 1)
    if len(content) != found.value_bytes:
        raise DataRefused(
            f"{location} must hold {found.value_bytes} bytes of values, got {len(content)}"
        )
    return np.frombuffer(content, found.dtype).reshape(found.shape, order="F")


def _arrow_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in this machine's byte order; Arrow has no floats beyond 64 bits."""
    plain = dtype.newbyteorder("=")
    return np.dtype(np.float64) if plain.kind == "f" and plain.itemsize > 8 else plain
