"""Read what `--data` names; each format has a function from a path to rows and labels.

In: `mnist`, or a path. Out: the rows, the rows of the source's own test set if it has one, and a
label for each row if the source has labels. Raises `DataRefused` if the source cannot be read, and
`UsageRefused` if there is nothing at the path, or no column that is asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import DataRefused, UsageRefused
from serving.io.array_files import choose_array, read_array, read_npz
from serving.io.images import IMAGE_SUFFIXES, decode_image, read_image_shape

Array = NDArray[Any]

MNIST = Path(__file__).parent / "mnist"
_KINDS = (
    "mnist, a folder in MNIST's IDX layout, an .npy, .npz, .parquet or .csv file, "
    "or a folder of Parquet files or of PNG and JPEG images"
)
_SUFFIXES = {".npz": "npz", ".csv": "table", ".parquet": "table", ".arrow": "table"}


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Rows (rows, *x_shape) as a source holds them, and their labels (rows,) if it has any."""

    x: Array
    labels: Array | None = None
    columns: tuple[str, ...] = ()
    """Names of the features, if the source is a table with a column for each."""


SourceSplits = tuple[LabelledRows, LabelledRows | None]
"""Rows to train on, and the rows of the source's own test set, if it has one."""


Reader = Callable[[Path, Sequence[str], str], SourceSplits]
"""Reads all rows of a path; of a table it reads `columns`, or all but `label` if none are named."""


def read_source(source: str, columns: Sequence[str] = (), label: str = "") -> SourceSplits:
    """Read all rows of `source`.

    A folder that contains the folders `train` and `test` has a test set of its own.

    Args:
        source: `mnist` or a path.
        columns: columns of a table to train on; empty for all but the label.
        label: the column of a table that holds labels; empty for none.
    """
    path = MNIST if source == "mnist" else Path(source).expanduser()
    if not source or not path.exists():
        raise UsageRefused(f"no data at {source!r}: give {_KINDS}")
    kind = _kind(path)
    if (columns or label) and kind != "table":
        raise UsageRefused(f"--columns and --label choose from a table, and {source} is not one")
    read = READERS[kind]
    if path.is_dir() and kind != "idx" and (halves := _find_halves(path)):
        train, _ = read(halves[0], columns, label)
        test, _ = read(halves[1], columns or train.columns, label)
        return train, test
    return read(path, columns, label)


def read_like(source: str, columns: Sequence[str], label: str) -> SourceSplits:
    """Read a source other than the one that `columns` and `label` were chosen for.

    An array has neither; a table must have the columns, and may have the label.
    """
    path = MNIST if source == "mnist" else Path(source).expanduser()
    is_table = path.exists() and _kind(path) == "table"
    if not is_table or not label:
        return read_source(source, columns if is_table else ())
    try:
        return read_source(source, columns, label)
    except UsageRefused:
        return read_source(source, columns)


def read_idx(path: Path, columns: Sequence[str], label: str) -> SourceSplits:
    """Read a folder that holds the files of MNIST under their names, plain or gzipped."""
    train, test = (
        read_array(_require_idx(path, f"{split}-images-idx3-ubyte")) for split in ("train", "t10k")
    )
    labels = _find_idx(path, "t10k-labels-idx1-ubyte")
    return LabelledRows(train), _label(path, test, read_array(labels) if labels else None)


def read_npz_splits(path: Path, columns: Sequence[str], label: str) -> SourceSplits:
    """Read `x_train` and `x_test`, else `x`, else the only array; labels are `y_test` or `y`."""
    arrays = read_npz(path)
    if {"x_train", "x_test"} <= arrays.keys():
        return LabelledRows(arrays["x_train"]), _label(path, arrays["x_test"], arrays.get("y_test"))
    if "x" in arrays:
        return _label(path, arrays["x"], arrays.get("y")), None
    return LabelledRows(arrays[choose_array(path, list(arrays))]), None


def read_rows(path: Path, columns: Sequence[str], label: str) -> SourceSplits:
    """Read the array of an `.npy` or IDX file."""
    return LabelledRows(read_array(path)), None


def read_table(path: Path, columns: Sequence[str], label: str) -> SourceSplits:
    """Read a CSV, Parquet or Arrow file, or a folder of these in the order of their names."""
    from pipeline.data.tables import read_table

    return LabelledRows(*read_table(path, columns, label)), None


def read_images(path: Path, columns: Sequence[str], label: str) -> SourceSplits:
    """Read a folder of PNG and JPEG images of one size, in the order of their names.

    If some are in colour, the gray ones get three equal channels. If each image lies in a folder
    below `path`, the name of that folder is its label.
    """
    files = _find_images(path)
    if not files:
        raise DataRefused(f"{path} has no PNG or JPEG images")
    shapes = [_read_shape(file) for file in files]
    for file, shape in zip(files, shapes, strict=True):
        if shape[:2] != shapes[0][:2]:
            raise DataRefused(
                f"images must be of one size: {files[0]} has {shapes[0][1]}x{shapes[0][0]} pixels, "
                f"{file} has {shape[1]}x{shape[0]}"
            )
    shape = max(shapes, key=len)
    x = np.empty((len(files), *shape), np.uint8)
    for row, file in zip(x, files, strict=True):
        image = decode_image(file.read_bytes(), shape)
        if image is None:
            raise DataRefused(f"cannot read {file}: its pixels are damaged or cut off")
        row[...] = image
    names = [file.relative_to(path).parts[:-1] for file in files]
    labels = np.array([name[0] for name in names]) if all(names) else None
    return LabelledRows(x, labels), None


READERS: Mapping[str, Reader] = {
    "idx": read_idx,
    "npz": read_npz_splits,
    "array": read_rows,
    "table": read_table,
    "images": read_images,
}


def _kind(path: Path) -> str:
    return _folder_kind(path) if path.is_dir() else _SUFFIXES.get(path.suffix.lower(), "array")


def _folder_kind(folder: Path) -> str:
    if any(_find_idx(folder, f"{split}-images-idx3-ubyte") for split in ("train", "t10k")):
        return "idx"
    if not any(path.is_file() for path in folder.rglob("*")):
        raise DataRefused(f"{folder} is empty: give {_KINDS}")
    return "images" if _find_images(folder) else "table"


def _find_halves(folder: Path) -> tuple[Path, Path] | None:
    """Find the folders `train` and `test`; refuse a third one, whose rows would be ignored."""
    halves = folder / "train", folder / "test"
    if not all(half.is_dir() for half in halves):
        return None
    for other in sorted(folder.iterdir()):
        if other.is_dir() and other not in halves and other.name[0] not in "._":
            raise DataRefused(
                f"{folder} has {other.name!r} beside 'train' and 'test': move it into one of them, "
                "or away; rows to choose the best epoch on are taken from 'train'"
            )
    return halves


def _find_images(folder: Path) -> list[Path]:
    """Find the images below a folder; names that start with `_` or `.` are ignored."""
    images = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    above = len(folder.parts)
    shown = (path for path in images if not any(name[0] in "_." for name in path.parts[above:]))
    return sorted((path for path in shown if path.is_file()), key=str)


def _read_shape(file: Path) -> tuple[int, ...]:
    try:
        return read_image_shape(file.read_bytes())
    except DataRefused as err:
        raise DataRefused(f"cannot read {file}: {err}") from err


def _find_idx(folder: Path, name: str) -> Path | None:
    """Find a file of MNIST; the plain file is preferred to the gzipped one."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)


def _require_idx(folder: Path, name: str) -> Path:
    path = _find_idx(folder, name)
    if path is None:
        raise DataRefused(f"{folder} has no {name} or {name}.gz")
    return path


def _label(source: Path, x: Array, labels: Array | None) -> LabelledRows:
    """Add labels to rows: one integer or string per row; targets of other types are ignored."""
    if labels is None or labels.dtype.kind not in "uiUS":
        return LabelledRows(x)
    if x.ndim and labels.size != len(x):
        raise DataRefused(f"{source} has {labels.size} labels for {len(x)} rows")
    return LabelledRows(x, labels.reshape(-1))
