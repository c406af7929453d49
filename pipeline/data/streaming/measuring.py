"""Find out from metadata how many bytes the decoded rows of a source take in memory.

Footers of Parquet, headers of arrays and of one image, sizes of files: no rows are read.
"""

import math
from collections.abc import Iterable, Sequence

import pyarrow as pa
from pyarrow import parquet

from pipeline.data.image_folder import find_images
from pipeline.data.readers import find_idx, kind_of, locate_source
from serving.errors import DataRefused
from serving.files import reading
from serving.io.array_choice import choose_splits
from serving.io.array_files import read_array_names, read_array_type
from serving.io.csv_format import is_csv_name
from serving.io.filesystems import Location, find_files
from serving.io.image_files import read_image_shape
from serving.io.image_folders import keep_images
from serving.io.remote_paths import Place

_FLOAT_BYTES = 4
_CSV_GROWTH, _PACKED_GROWTH = 2, 10
"""Bytes in memory of a byte of CSV, and of one of any compressed file."""
_PACKED = (".gz", ".bz2", ".zip", ".zst", ".xz")


def measure_source(source: str, columns: Sequence[str] = (), array: str = "") -> int:
    """Return the bytes that all rows of a source take in memory; 0 if it cannot be read.

    `columns` and `array` are what is chosen of it, as by `Selection`.

    They are exact for arrays and images, and estimated from below for tables of text.

    Raises:
        UsageRefused: there is nothing at the source.
    """
    path = locate_source(source)
    try:
        return _MEASURES[kind_of(path)](path, columns, array)
    except DataRefused:
        return 0  # whoever reads it says what is wrong


def _measure_idx(path: Place, columns: Sequence[str], array: str) -> int:
    files = find_idx(path)
    return sum(_measure_array(file) for (_, what), file in files.items() if what == "images")


def _measure_arrays(path: Place, columns: Sequence[str], array: str) -> int:
    names = read_array_names(path)
    if names is None:
        return _measure_array(path)
    chosen = choose_splits(path, names, array)
    return sum(_measure_array(path, name) for name in chosen.rows.values())


def _measure_array(path: Place, name: str = "") -> int:
    """Return the bytes of an array as it is read, and of its copy if it must be converted."""
    dtype, shape = read_array_type(path, name)
    converted = 0 if dtype.name in ("uint8", "float32") else _FLOAT_BYTES
    return math.prod(shape) * (dtype.itemsize + converted)


def _measure_images(path: Place, columns: Sequence[str], array: str) -> int:
    files, _ = find_images(path)
    with reading(files[0][1]):
        shape = read_image_shape(files[0][1].read())
    return len(files) * math.prod(shape)


def _measure_table(path: Place, columns: Sequence[str], array: str) -> int:
    files, _ = keep_images(path, find_files(str(path)))
    return sum(_measure_file(location, info.size, columns) for _, location, info in files)


def _measure_file(location: Location, size: int, columns: Iterable[str]) -> int:
    if is_csv_name(location.path):
        return size * (_PACKED_GROWTH if location.path.endswith(_PACKED) else _CSV_GROWTH)
    with reading(location, pa.ArrowException), location.open() as stream:
        if bytes(stream.read(4)) != b"PAR1":
            return size * 2  # Arrow files are as large as what they hold, unless compressed
        stream.seek(0)
        return _measure_footer(parquet.read_metadata(stream), frozenset(columns))


def _measure_footer(footer: parquet.FileMetaData, columns: frozenset[str]) -> int:
    """Return the bytes of the values of a Parquet file's columns: of text, those in the file."""
    kinds = [footer.schema.column(index) for index in range(len(footer.schema))]
    chosen = [
        (index, _width_of(kind))
        for index, kind in enumerate(kinds)
        if not columns or kind.path.split(".")[0] in columns
    ]
    total = 0
    for group in map(footer.row_group, range(footer.num_row_groups)):
        for index, width in chosen:
            chunk = group.column(index)
            total += chunk.num_values * width if width else chunk.total_uncompressed_size
    return total


def _width_of(kind: parquet.ColumnSchema) -> int:
    """Return the bytes of a value in `x`; 0 if the value is bytes of any length."""
    if kind.physical_type == "FIXED_LEN_BYTE_ARRAY":
        return int(kind.length)
    if kind.physical_type == "BYTE_ARRAY":
        return 0
    is_byte = str(kind.logical_type) == "Int(bitWidth=8, isSigned=false)"
    return 1 if is_byte else _FLOAT_BYTES


_MEASURES = {
    "idx": _measure_idx,
    "array": _measure_arrays,
    "images": _measure_images,
    "table": _measure_table,
}
