"""Find out from metadata how many bytes the decoded rows of a source take in memory.

Numbers of rows and types of columns, headers of arrays and of one image, sizes of CSV files. Rows
are read where types do not tell the size of values: the first of the first file.
"""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.data.image_folder import find_images
from pipeline.data.readers import find_idx, kind_of, locate_source
from serving.errors import DataRefused
from serving.files import reading
from serving.io.array_choice import choose_splits
from serving.io.array_files import read_array_names, read_array_type
from serving.io.arrow_types import (
    is_bytes,
    is_number,
    is_text,
    list_sizes,
    number_type,
    unwrap_type,
    widen_view,
)
from serving.io.columns import unwrap_array
from serving.io.csv_format import is_csv_name
from serving.io.filesystems import Location, find_files
from serving.io.image_files import read_image_shape
from serving.io.image_folders import keep_images
from serving.io.remote_paths import Place
from serving.io.row_formats import Batches, InputFile, open_file

_FLOAT_BYTES = 4
_OFFSET_BYTES = 4
"""Bytes of an offset in an Arrow column of text or bytes."""
_SAMPLE_ROWS = 1024
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
    known: dict[pa.Field, float] = {}
    return sum(_measure_file(*file, frozenset(columns), known) for file in files)


def _measure_file(
    name: str,
    location: Location,
    info: Any,
    columns: frozenset[str],
    known: dict[pa.Field, float],
) -> int:
    """Return the bytes of the rows of a file; `known` has those of a value of earlier columns."""
    if is_csv_name(location.path):
        packed = location.path.endswith(_PACKED)
        return int(info.size) * (_PACKED_GROWTH if packed else _CSV_GROWTH)
    file = open_file(name, location, info, {}, others_as_text=False, array="", delimiter="")
    chosen = [item for item in file.schema if not columns or item.name in columns]
    if new := [item for item in chosen if item not in known]:
        known |= _measure_values(file, new)
    return int(file.rows * sum(known[item] for item in chosen))


def _measure_values(file: InputFile, fields: Sequence[pa.Field]) -> dict[pa.Field, float]:
    """Return the bytes that a value of each column takes, from the first rows if the type is open.

    They are those of `x`; cells of text also take what they do in an Arrow table meanwhile.
    """
    found = {item: float(_FLOAT_BYTES) for item in fields}
    text = []
    for item in fields:
        kind = unwrap_type(item.type)
        sizes = list_sizes(kind)
        if is_text(kind):
            text.append(item)
        elif pa.types.is_fixed_size_binary(kind):
            found[item] = kind.byte_width
        elif is_bytes(kind) or None in sizes:
            found[item] = _measure_first(file, item)
        elif is_number(number_type(kind)):
            found[item] = math.prod(size or 0 for size in sizes) * _width_of(kind)
    if text and (batch := next(_read_first(file, text, _SAMPLE_ROWS), None)) is not None:
        for item, column in zip(text, batch.columns, strict=True):
            cells = column.indices if isinstance(column, pa.DictionaryArray) else column
            cells = cells.cast(widen_view(cells.type))  # a view counts what all its slices share
            found[item] += cells.nbytes / len(cells)
    return found


def _measure_first(file: InputFile, field: pa.Field) -> float:
    """Return the bytes of an image, of a list of any size or of other bytes: of the first one."""
    for batch in _read_first(file, [field], 1):
        for value in unwrap_array(batch.column(0)).drop_null().to_pylist():
            if not isinstance(value, bytes):
                return float(math.prod(np.shape(value)) * _width_of(field.type))
            with contextlib.suppress(DataRefused):
                return math.prod(read_image_shape(value))
            return float(len(value) + _OFFSET_BYTES + _FLOAT_BYTES)
    return _FLOAT_BYTES


def _read_first(file: InputFile, fields: Sequence[pa.Field], batch_rows: int) -> Batches:
    """Yield batches of the first rows, in the order of the fields."""
    names = [item.name for item in fields]
    with reading(file.location, pa.ArrowException):
        stop = min(file.rows, _SAMPLE_ROWS)
        for batch in file.read(file.location, 0, stop, names, batch_rows):
            yield batch.select(names)


def _width_of(kind: pa.DataType) -> int:
    """Return the bytes in `x` of a number, or of one in lists."""
    return 1 if pa.types.is_uint8(number_type(unwrap_type(kind))) else _FLOAT_BYTES


_MEASURES = {
    "idx": _measure_idx,
    "array": _measure_arrays,
    "images": _measure_images,
    "table": _measure_table,
}
