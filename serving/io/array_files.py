"""Files of arrays: read IDX, `.npy` and `.npz`; write `.npy`, Parquet and PNG, each in one step.

Reading raises `DataRefused`. Writing goes to a temporary file beside the target and renames it, so
that a target is whole or absent.
"""

import contextlib
import gzip
import io
import math
import os
import struct
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from serving.bundle import MANIFEST
from serving.errors import DataRefused, UsageRefused, VaeError

Array = NDArray[Any]

_IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_IMAGE_FORMATS = ("PNG", "JPEG")
_GRAY_MODES = ("1", "L")
_IMAGE_MODES = (*_GRAY_MODES, "P", "RGB")  # of 8 bits a channel: others would lose some
READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    MemoryError,
    RuntimeError,  # zipfile: encrypted, or packed in a way that it does not know
    SyntaxError,
    tokenize.TokenError,  # numpy, as SyntaxError: a header that is no Python literal
    zlib.error,
    zipfile.BadZipFile,
)


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


def check_target(path: Path, suffixes: tuple[str, ...], option: str = "--out") -> None:
    """Refuse a target of another kind, in a bundle or in no writable folder, before the work."""
    if path.suffix not in suffixes:
        raise UsageRefused(f"{option} must end in {', '.join(suffixes)}, got {str(path)!r}")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as err:
        raise UsageRefused(f"cannot write {path}: {err.strerror}") from err
    if (path.parent / MANIFEST).exists():
        raise UsageRefused(
            f"{option} must lie outside the bundle {path.parent}, which may hold nothing more, "
            f"got {str(path)!r}"
        )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` when the block ends well."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as err:
        raise VaeError(f"cannot write {path}: {err.strerror or err}") from err
    finally:
        temporary.unlink(missing_ok=True)


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


def is_picture(shape: Sequence[int]) -> bool:
    """Whether rows of a shape can be shown: (height, width) is gray, (height, width, 3) is RGB."""
    return len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)


def write_grid(path: Path, images: Array, columns: int | None = None) -> None:
    """Write images, see `is_picture`, in units of bytes as one PNG, `columns` a line."""
    if not is_picture(images.shape[1:]):
        raise UsageRefused(
            f"a picture needs rows of (height, width) or (height, width, 3), got {images.shape[1:]}"
        )
    content = encode_png(tile(images, columns))
    with writing(path) as temporary:
        temporary.write_bytes(content)


def write_pairs(path: Path, upper: Array, lower: Array, columns: int) -> None:
    """Write lines of images, each above the line of its counterparts, as one PNG.

    Where there are fewer images than `columns`, the lines are shorter; a line that would not be
    full is left out.
    """
    columns = min(columns, len(upper))
    shown = len(upper) // columns * columns
    write_grid(path, interleave(upper[:shown], lower[:shown], columns), columns)


def interleave(upper: Array, lower: Array, columns: int) -> Array:
    """Lay lines of `upper` and of `lower` in turn, `columns` images a line, for `tile`."""
    lines = [
        part[start : start + columns]
        for start in range(0, len(upper), columns)
        for part in (upper, lower)
    ]
    return np.concatenate(lines)


def byte_unit(x: Array) -> float:
    """What stretches the values of images to bytes: floats up to 1 are shares of a byte."""
    return 1.0 if x.dtype == np.uint8 or x.max() > 1 else 255.0


def encode_png(image: Array) -> bytes:
    """Encode an image (height, width) or (height, width, 3) in units of bytes."""
    stream = io.BytesIO()
    _pillow().fromarray(np.rint(image).clip(0, 255).astype(np.uint8)).save(stream, format="PNG")
    return stream.getvalue()


def read_image_shape(content: bytes) -> tuple[int, ...]:
    """Shape of a PNG or JPEG, from its header: (height, width) if gray, else (height, width, 3).

    Raises:
        DataRefused: it is neither, or has more than 8 bits a channel, or transparency.
        UsageRefused: pillow is missing.
    """
    pillow = _pillow()
    try:
        with pillow.open(io.BytesIO(content), formats=_IMAGE_FORMATS) as image:
            size, mode = (image.height, image.width), image.mode
    except (*READ_ERRORS, pillow.DecompressionBombError) as err:
        raise DataRefused("it is no PNG or JPEG") from err
    if mode not in _IMAGE_MODES:
        raise DataRefused(f"its mode is {mode}: save it as gray or RGB of 8 bits, without alpha")
    return size if mode in _GRAY_MODES else (*size, 3)


def decode_image(content: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """Decode a PNG or JPEG to `shape`, see `is_picture`; None if it is none.

    Raises:
        UsageRefused: pillow is missing.
    """
    pillow = _pillow()
    if not is_picture(shape):
        return None
    try:
        with pillow.open(io.BytesIO(content), formats=_IMAGE_FORMATS) as image:
            if (image.height, image.width) != shape[:2] or image.mode not in _IMAGE_MODES:
                return None  # before its pixels are decoded
            return np.asarray(image.convert("L" if len(shape) == 2 else "RGB"))
    except (*READ_ERRORS, pillow.DecompressionBombError):
        return None


def tile(images: Array, columns: int | None = None) -> NDArray[np.uint8]:
    """Lay images, see `is_picture`, in units of bytes out as one image, 2 pixels apart."""
    count, height, width, *channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    lines = math.ceil(count / columns)
    size = (lines * (height + 2) + 2, columns * (width + 2) + 2)
    canvas = np.full((*size, *channels), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = (
            2 + place * (size + 2)
            for place, size in zip(divmod(index, columns), (height, width), strict=True)
        )
        canvas[top : top + height, left : left + width] = np.rint(image).clip(0, 255)
    return canvas


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


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as err:
        raise UsageRefused("images need pillow: pip install 'vae-pipeline[files]'") from err
    return Image


def _column(pa: Any, values: Any) -> Any:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.array(values)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
