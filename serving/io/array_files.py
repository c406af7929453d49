"""Files of arrays: read IDX, `.npy` and `.npz`; write `.npy`, Parquet and PNG, each in one step.

Reading raises `DataRefused`. Writing goes to a temporary file beside the target and renames it, so
that a target is whole or absent.
"""

import contextlib
import gzip
import io
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import DataRefused, UsageRefused
from serving.files import READ_ERRORS, writing
from serving.io.images import write_grid

Array = NDArray[Any]

_IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_array(path: Path) -> Array:
    """Read a file's array: `.npy`, `.npz` with one array or one named `x`, or IDX, also gzipped."""
    if path.suffix == ".npz":
        arrays = read_npz(path)
        if "x" in arrays:
            return arrays["x"]
        if len(arrays) == 1:
            return next(iter(arrays.values()))
        raise DataRefused(f"{path} must hold one array, or one named x; got {', '.join(arrays)}")
    with _reading(path):
        if path.suffix == ".npy":
            with path.open("rb") as file:
                array: Array = np.lib.format.read_array(file, allow_pickle=False)
            return array
        return _read_idx(path)


def read_npz(path: Path) -> dict[str, Array]:
    """Read all arrays of an `.npz` file."""
    with _reading(path), path.open("rb") as file, np.lib.npyio.NpzFile(file) as arrays:
        return dict(arrays)


def write_array(path: Path, array: Array) -> None:
    """Write rows of data as `.npy`, `.parquet` (one list column) or `.png` (a grid of images)."""
    if path.suffix == ".npy":
        # not "wb": numpy writes to such a file past Python, and cannot say why a write failed
        with writing(path) as temporary, temporary.open("w+b") as file:
            np.save(file, array)
    elif path.suffix == ".parquet":
        write_table(path, {"x_loc": array.reshape(len(array), -1)})
    else:
        write_grid(path, array)


def write_table(path: Path, columns: Mapping[str, Any]) -> None:
    """Write named columns as Parquet; a two-dimensional array becomes a column of lists."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as err:
        raise UsageRefused("Parquet needs pyarrow: pip install 'vae-pipeline[files]'") from err
    table = pa.table({name: _column(pa, values) for name, values in columns.items()})
    with writing(path) as temporary:
        parquet.write_table(table, temporary)


def read_idx_header(stream: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Dtype and shape of IDX; raises `ValueError`."""
    start = stream.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _IDX_DTYPES:
        raise ValueError(f"no IDX file, it starts with 0x{start.hex()}")
    sizes = stream.read(4 * start[3])
    if len(sizes) < 4 * start[3]:
        raise ValueError(f"the IDX header is cut off after {4 + len(sizes)} bytes")
    return np.dtype(_IDX_DTYPES[start[2]]), struct.unpack(f">{start[3]}I", sizes)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        if path.is_file() and not path.stat().st_size:
            raise DataRefused(f"{path} is empty")
        yield
    except FileNotFoundError:
        raise DataRefused(f"no file {path}") from None
    except IsADirectoryError:
        raise DataRefused(f"{path} is a folder: give a file") from None
    except READ_ERRORS as err:
        raise DataRefused(f"cannot read {path}: {err}") from err


def _read_idx(path: Path) -> Array:
    """IDX as of the MNIST page: two zero bytes, a type, a rank, big-endian sizes, the values."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    content = gzip.decompress(path.read_bytes()) if zipped else path.read_bytes()
    stream = io.BytesIO(content)
    dtype, shape = read_idx_header(stream)
    header = stream.tell()
    wanted = header + math.prod(shape) * dtype.itemsize
    if len(content) != wanted:
        raise ValueError(f"IDX shape {shape} needs {wanted} bytes, got {len(content)}")
    values = np.frombuffer(content, dtype, offset=header).reshape(shape)
    return values.astype(dtype.newbyteorder("="))


def _column(pa: Any, values: Any) -> Any:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.array(values)
