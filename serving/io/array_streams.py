"""Open the array of an `.npy`, `.npz` or IDX file as a stream, without reading its values.

In: a stream of the file; its first bytes tell the format, whatever its name. An `.npy` or IDX file
may be compressed by gzip or bzip2. Out: dtype, shape, and the stream at the first value. Raises
`DataRefused`, `UsageRefused` for the name of an array that there is not, and what the libraries
raise for a damaged file. Nothing is unpickled.
"""

import bz2
import contextlib
import gzip
import math
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from serving.errors import DataRefused, UsageRefused
from serving.io.array_choice import choose_array
from serving.io.unread_formats import explain_unread

ARRAY_MAGICS = (b"\x93NUMPY", b"PK", b"\x1f\x8b", b"BZh", b"\0\0")
"""How the files start: `.npy`, `.npz`, gzip, bzip2, IDX."""

_NPY, _NPZ, _GZIP, _BZIP2, _IDX = ARRAY_MAGICS
_HEAD = 16
_IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_DECOMPRESSED: Mapping[bytes, Any] = {_GZIP: gzip.open, _BZIP2: bz2.open}
_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True, slots=True)
class ArrayStream:
    """A stream positioned at the first value of an array, and the array's dtype and shape."""

    stream: Any
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    by_columns: bool
    """Whether the first axis, and not the last, varies fastest."""
    is_packed: bool
    """Whether the values are compressed, or one of several members of a file."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def value_bytes(self) -> int:
        """Bytes of all values."""
        return math.prod(self.shape) * self.dtype.itemsize


@contextlib.contextmanager
def open_array(name: object, stream: Any, array: str = "") -> Iterator[ArrayStream]:
    """Open the array in a stream; of an `.npz` file, the one that `choose_array` names."""
    with contextlib.ExitStack() as stack:
        head = _peek(stream)
        if head.startswith(_NPZ):
            archive = stack.enter_context(zipfile.ZipFile(stream))
            names = _list_members(name, archive, head)
            stream = stack.enter_context(archive.open(f"{choose_array(name, names, array)}.npy"))
        elif array:
            raise UsageRefused(f"--array chooses from an .npz file, and {name} is not one")
        elif decompress := _DECOMPRESSED.get(_find_packing(head)):
            stream = stack.enter_context(decompress(stream))
        dtype, shape, by_columns = _read_header(name, stream)
        yield ArrayStream(stream, dtype, shape, by_columns, not head.startswith((_NPY, _IDX)))


def list_arrays(name: object, stream: Any) -> list[str] | None:
    """Return the names of the arrays of an `.npz` file, None for another file."""
    head = _peek(stream)
    if not head.startswith(_NPZ):
        return None
    with zipfile.ZipFile(stream) as archive:
        return _list_members(name, archive, head)


def _peek(stream: Any) -> bytes:
    head = bytes(stream.read(_HEAD))
    stream.seek(0)
    return head


def _find_packing(head: bytes) -> bytes:
    return next((magic for magic in _DECOMPRESSED if head.startswith(magic)), b"")


def _list_members(name: object, archive: zipfile.ZipFile, head: bytes) -> list[str]:
    members = archive.namelist()
    names = [member.removesuffix(".npy") for member in members if member.endswith(".npy")]
    if members and not names:
        raise DataRefused(explain_unread(str(name), head))
    return names


def _read_header(name: object, stream: Any) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    head = _peek(stream)
    if head.startswith(_NPY):
        version = np.lib.format.read_magic(stream)
        if version not in _NPY_HEADERS:
            raise DataRefused(
                f"{name} has .npy format {version}, which holds tables of named fields"
            )
        shape, by_columns, dtype = _NPY_HEADERS[version](stream)
        if min(shape, default=0) < 0:
            raise ValueError(f"its header has a negative size: {shape}")
        return dtype, shape, by_columns and len(shape) > 1
    if not head.startswith(_IDX) or (len(head) > 3 and head[2] not in _IDX_DTYPES):
        raise DataRefused(explain_unread(str(name), head))
    return *_read_idx_header(stream), False


def _read_idx_header(stream: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Read IDX's header (see the MNIST page): two zero bytes, type, rank, big-endian sizes."""
    start = stream.read(4)
    sizes = stream.read(4 * start[3]) if len(start) == 4 else b""
    if len(start) < 4 or len(sizes) < 4 * start[3]:
        raise ValueError(f"the IDX header is cut off after {len(start) + len(sizes)} bytes")
    return np.dtype(_IDX_DTYPES[start[2]]), struct.unpack(f">{start[3]}I", sizes)
