"""Read IDX, `.npy` and `.npz` files whole; write `.npy`, tables and PNG files.

A file may be what `serving.io.array_streams` opens. Reading raises `DataRefused`; `UsageRefused` if
there is no array of the name that is asked for. A file that is written is whole or absent.
"""

import contextlib
import io
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import DataRefused, UsageRefused
from serving.files import reading, staged_file
from serving.io.array_streams import ArrayStream, list_arrays, open_array
from serving.io.images import write_grid
from serving.io.memory import require_memory
from serving.io.remote_paths import Place

Array = NDArray[Any]


def read_array(path: Place, array: str = "") -> Array:
    """Read all values; of an `.npz` file, those of the array that `choose_array` names."""
    with _opened(path) as file, open_array(path, file, array) as found:
        return _read_values(path, found)


def read_array_type(path: Place, array: str = "") -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Read dtype and shape alone."""
    with _opened(path) as file, open_array(path, file, array) as found:
        return found.dtype, found.shape


def read_array_names(path: Place) -> list[str] | None:
    """Read the names of the arrays of an `.npz` file; None for another file."""
    with _opened(path) as file:
        return list_arrays(path, file)


def write_array(
    path: Path, array: Array, names: Sequence[str] = (), unnamed: str = "x_loc"
) -> None:
    """Write rows as `.npy`, as a table (`.parquet`, `.csv`) or as a grid of images (`.png`).

    A table has a column for each of `names`, or the column `unnamed` of lists.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        # not "wb": numpy bypasses Python when it writes to such a file, and loses a write's error
        with staged_file(path) as temporary, temporary.open("w+b") as file:
            np.save(file, array)
    elif suffix == ".png":
        write_grid(path, array)
    else:
        write_table(path, named_columns(array, names, unnamed))


def named_columns(x: Array, names: Sequence[str], unnamed: str = "x_loc") -> dict[str, Array]:
    """Return rows (rows, *x_shape) as a column for each of `names`; without names, as `unnamed`."""
    values = x.reshape(len(x), -1)
    return dict(zip(names, values.T, strict=True)) if names else {unnamed: values}


def free_name(name: str, taken: Collection[str]) -> str:
    """Return a column name that no feature has: `name`, with a `_` at its end if it must be."""
    return free_name(f"{name}_", taken) if name in taken else name


def check_table_file(path: Path, names: Sequence[str]) -> None:
    """Refuse a `.csv` of rows without names: it holds no lists."""
    if path.suffix.lower() == ".csv" and not names:
        raise UsageRefused(
            f"a .csv needs a model of named columns: end --out {str(path)!r} in .parquet or .npy"
        )


def write_table(path: Path, columns: Any) -> None:
    """Write a record batch, or arrays by the names of their columns, as Parquet or CSV.

    A two-dimensional array becomes a column of lists.
    """
    try:
        import pyarrow as pa
        from pyarrow import csv, parquet

        from serving.io.arrow_types import to_column
    except ImportError as err:
        raise UsageRefused("tables need pyarrow: pip install 'vae-pipeline[files]'") from err
    if isinstance(columns, pa.RecordBatch):
        table = pa.Table.from_batches([columns])
    else:
        table = pa.table({name: to_column(np.asarray(y)) for name, y in columns.items()})
    write = csv.write_csv if path.suffix.lower() == ".csv" else parquet.write_table
    with staged_file(path) as temporary:
        write(table, temporary)


@contextlib.contextmanager
def _opened(path: Place) -> Iterator[io.BufferedReader]:
    with reading(path), path.open("rb") as file:
        if not file.peek(1):
            raise DataRefused(f"{path} is empty")
        yield file


def _read_values(path: Place, found: ArrayStream) -> Array:
    if found.dtype.hasobject:
        raise DataRefused(f"{path} holds Python objects, which are never unpickled: save numbers")
    require_memory(path, found.value_bytes)
    values = np.empty(found.shape[::-1] if found.by_columns else found.shape, found.dtype)
    content: memoryview = values.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(content) and (count := found.stream.readinto(content[done:])):
        done += count
    if done < len(content):
        raise DataRefused(
            f"{path} is cut off: shape {found.shape} needs {len(content)} bytes of values, "
            f"got {done}"
        )
    if found.stream.read(1):  # where gzip and zip compare their checksums
        raise DataRefused(f"{path} has more data after its array of shape {found.shape}")
    values = values.astype(found.dtype.newbyteorder("="), copy=False)
    return values.T if found.by_columns else values
