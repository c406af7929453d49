"""Tell cheaply that a source cannot hold the rows that a model learned from.

In: a source, and what is known of the model's rows. Out: whether they may be the same: only a pass
over all rows shows that they are. Headers are read, and the names of images.
"""

import math
from collections.abc import Sequence

from pipeline.data.image_folder import find_images
from pipeline.data.readers import find_idx, kind_of, locate_source
from pipeline.data.split_folders import find_split_folders
from serving.errors import DataRefused
from serving.files import reading
from serving.io.array_choice import choose_splits
from serving.io.array_files import read_array_names, read_array_type
from serving.io.csv_format import is_csv_name
from serving.io.filesystems import find_files
from serving.io.image_files import read_image_shape
from serving.io.image_folders import keep_images
from serving.io.remote_paths import Place
from serving.io.row_formats import open_file

_Counts = tuple[int, int | None]
"""The number of rows, and of the values of a row if that is told."""


def may_hold(
    source: str,
    rows: int,
    x_shape: Sequence[int],
    *,
    has_columns: bool,
    some_dropped: bool,
    array: str = "",
) -> bool:
    """Whether a source may hold so many rows of this shape.

    Args:
        source: a path or a URI.
        rows: the rows of the model's three sets.
        x_shape: the shape of a row.
        has_columns: whether each value has a column of a table.
        some_dropped: whether rows of the source may have been left out.
        array: the array of an `.npz` file to read.

    Raises:
        UsageRefused: there is nothing at the source.
    """
    path = locate_source(source)
    kind = kind_of(path)
    if has_columns and kind != "table":
        return False
    try:
        counts = _count(path, kind, array)
        some_dropped = some_dropped or bool(path.is_dir() and find_split_folders(path))
    except DataRefused:
        return True  # whoever reads it says what is wrong
    if counts is None:
        return True
    count, values = counts
    if values is not None and values not in _sizes(kind, x_shape):
        return False
    return count >= rows if some_dropped else count == rows


def _sizes(kind: str, x_shape: Sequence[int]) -> set[int]:
    """Return how many values the first row may have: a gray image may be among others."""
    size = math.prod(x_shape)
    return {size, size // 3, size * 3} if kind == "images" else {size}


def _count(path: Place, kind: str, array: str) -> _Counts | None:
    """Count the rows of all sets, as far as headers tell."""
    if kind == "idx":
        found = find_idx(path)
        return _count_arrays([(file, "") for (_, what), file in found.items() if what == "images"])
    if kind == "array":
        names = read_array_names(path)
        chosen = [""] if names is None else choose_splits(path, names, array).rows.values()
        return _count_arrays([(path, name) for name in chosen])
    if kind == "images":
        files, _ = find_images(path)
        with reading(files[0][1]):
            return len(files), math.prod(read_image_shape(files[0][1].read()))
    tables, _ = keep_images(path, find_files(str(path)))
    if any(is_csv_name(location.path) for _, location, _ in tables):
        return None
    parts = (open_file(*part, {}, others_as_text=False, array="", delimiter="") for part in tables)
    return sum(part.rows for part in parts), None


def _count_arrays(arrays: Sequence[tuple[Place, str]]) -> _Counts:
    shapes = [read_array_type(*array)[1] for array in arrays]
    return sum(shape[0] for shape in shapes), math.prod(shapes[0][1:])
