"""Read IDX, `.npy` and `.npz` files whole; write `.npy`, tables and PNG files.

Reading raises `DataRefused`. A file that is written is whole or absent.
"""

import contextlib
import gzip
import io
import math
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import DataRefused, UsageRefused
from serving.files import reading, staged_file
from serving.io.images import write_grid

Array = NDArray[Any]

_IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_array(path: Path) -> Array:
    """Read an `.npy` file, the array of an `.npz` file that `choose_array` names, or an IDX file.

    Files of `.npy` and `.npz` are known by their suffix. An IDX file of any name may be gzipped.
    """
    if path.suffix == ".npz":
        arrays = read_npz(path)
        return arrays[choose_array(path, list(arrays))]
    with _opened(path) as file:
        if path.suffix == ".npy":
            array: Array = np.lib.format.read_array(file, allow_pickle=False)
            return array
        return _read_idx(file.read())


def read_npz(path: Path) -> dict[str, Array]:
    """Read all arrays of an `.npz` file."""
    with _opened(path) as file, np.lib.npyio.NpzFile(file) as arrays:
        return dict(arrays)


def choose_array(source: object, names: Sequence[str]) -> str:
    """Choose the array `x` of an `.npz` file, or its only one.

    Raises:
        DataRefused: there are several arrays, and none is named `x`.
    """
    if "x" not in names and len(names) != 1:
        raise DataRefused(f"{source} must hold one array, or one named x; got {', '.join(names)}")
    return "x" if "x" in names else names[0]


def write_array(path: Path, array: Array, names: Sequence[str] = ()) -> None:
    """Write rows as `.npy`, as a table (`.parquet`, `.csv`) or as a grid of images (`.png`).

    A table has a column for each of `names`, or the column `x_loc` of lists.
    """
    if path.suffix == ".npy":
        # not "wb": numpy bypasses Python when it writes to such a file, and loses a write's error
        with staged_file(path) as temporary, temporary.open("w+b") as file:
            np.save(file, array)
    elif path.suffix == ".png":
        write_grid(path, array)
    else:
        write_table(path, named_columns(array, names))


def named_columns(x_loc: Array, names: Sequence[str]) -> dict[str, Array]:
    """Return rows (rows, *x_shape) as a column for each of `names`; without names, as `x_loc`."""
    values = x_loc.reshape(len(x_loc), -1)
    return dict(zip(names, values.T, strict=True)) if names else {"x_loc": values}


def free_name(name: str, taken: Collection[str]) -> str:
    """Return a column name that no feature has: `name`, with a `_` at its end if it must be."""
    return free_name(f"{name}_", taken) if name in taken else name


def check_table_file(path: Path, names: Sequence[str]) -> None:
    """Refuse a `.csv` of rows without names: it holds no lists."""
    if path.suffix == ".csv" and not names:
        raise UsageRefused(
            f"a .csv needs a model of named columns: end --out {str(path)!r} in .parquet or .npy"
        )


def write_table(path: Path, columns: Mapping[str, Any]) -> None:
    """Write named columns as Parquet or CSV; a two-dimensional array becomes a column of lists."""
    try:
        import pyarrow as pa
        from pyarrow import csv, parquet

        from serving.io.arrow_types import to_column
    except ImportError as err:
        raise UsageRefused("tables need pyarrow: pip install 'vae-pipeline[files]'") from err
    table = pa.table({name: to_column(np.asarray(values)) for name, values in columns.items()})
    write = csv.write_csv if path.suffix == ".csv" else parquet.write_table
    with staged_file(path) as temporary:
        write(table, temporary)


def read_idx_header(stream: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Read the dtype and shape of IDX; raises `ValueError`."""
    start = stream.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _IDX_DTYPES:
        raise ValueError(f"not an IDX file: it starts with 0x{start.hex()}")
    sizes = stream.read(4 * start[3])
    if len(sizes) < 4 * start[3]:
        raise ValueError(f"the IDX header is cut off after {4 + len(sizes)} bytes")
    return np.dtype(_IDX_DTYPES[start[2]]), struct.unpack(f">{start[3]}I", sizes)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    with reading(path), path.open("rb") as file:
        if not file.peek(1):
            raise DataRefused(f"{path} is empty")
        yield file


def _read_idx(content: bytes) -> Array:
    """Decode IDX (see the MNIST page): two zero bytes, type, rank, big-endian sizes, values."""
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    stream = io.BytesIO(content)
    dtype, shape = read_idx_header(stream)
    header = stream.tell()
    wanted = header + math.prod(shape) * dtype.itemsize
    if len(content) != wanted:
        raise ValueError(f"IDX shape {shape} needs {wanted} bytes, got {len(content)}")
    values = np.frombuffer(content, dtype, offset=header).reshape(shape)
    return values.astype(dtype.newbyteorder("="))
