"""Read what `--data` names; each format has a function from a path to rows and labels.

In: `mnist`, or a path. Out: the rows, those of the source's own validation and test sets if it has
them, and a label for each row if the source has labels. Raises `DataRefused` if the source cannot
be read, and `UsageRefused` if there is nothing at the path, or no such column or array.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DATA_KINDS
from pipeline.data.image_folder import ImageFolder, find_images
from pipeline.data.labelled_rows import LabelledRows, SourceSplits
from pipeline.data.selection import EVERYTHING, Selection
from pipeline.data.split_folders import (
    find_split_folders,
    join_names,
    list_shown,
    tell_split_folders,
    tell_splits,
)
from serving.console import say
from serving.errors import DataRefused, UsageRefused
from serving.files import reading
from serving.io.array_choice import ArrayNames, SplitName, choose_splits, find_split
from serving.io.array_files import read_array, read_array_names, read_array_type
from serving.io.image_files import is_image_name
from serving.io.image_folders import list_files
from serving.io.remote_paths import Place, list_folder, to_place
from serving.schema import Schema

Array = NDArray[Any]

MNIST = Path(__file__).parent / "mnist"
_TABLE_SUFFIXES = (".parquet", ".arrow")
_IDX_NAME = re.compile(r"(\w+)-(images|labels)[-.]idx\d-ubyte(\.gz)?", re.IGNORECASE)
_LABEL_KINDS = "uiUS"
_HEAD = 16
_LISTED = 8


Reader = Callable[[Place, Selection], SourceSplits]
SetReaders = Mapping[SplitName, Callable[[], LabelledRows]]


def read_source(source: str, selection: Selection = EVERYTHING) -> SourceSplits:
    """Read all rows of `source`, `mnist` or a path.

    A folder of folders of splits, such as `train`, `val` and `test`, has sets of its own.
    """
    path = locate_source(source)
    kind = kind_of(path)
    check_selection(source, kind, selection)
    if path.is_dir() and kind != "idx" and (folders := find_split_folders(path)):
        return _read_folders(path, folders, READERS[kind], selection)
    return READERS[kind](path, selection)


def check_selection(source: str, kind: str, selection: Selection) -> None:
    """Refuse what cannot be chosen from a source of this kind."""
    if (selection.columns or selection.label) and kind != "table":
        raise UsageRefused(f"--columns and --label choose from a table, and {source} is not one")
    if selection.schema and kind != "table":
        raise UsageRefused(f"--schema is about the columns of a table, and {source} is not one")
    if selection.array and kind != "array":
        raise UsageRefused(f"--array chooses from an .npz file, and {source} is not one")


def read_like(source: str, selection: Selection) -> SourceSplits:
    """Read a source other than the one that `selection` was made for.

    An array has no columns; a table must have those that are named, and may have the label.
    """
    if kind_of(locate_source(source)) != "table":
        return read_source(source, replace(selection, columns=(), label="", schema=""))
    try:
        return read_source(source, selection)
    except UsageRefused:
        if not selection.label:
            raise
        return read_source(source, replace(selection, label=""))


def locate_table(source: str) -> Place:
    """Return where the rows to train on of a table are: a file, or a folder of files.

    Raises:
        UsageRefused: the source is no table.
    """
    path = locate_source(source)
    if kind_of(path) != "table":
        raise UsageRefused(f"only a table has columns, and {source} is not one")
    folders = find_split_folders(path) if path.is_dir() else {}
    return folders.get("train", path)


def has_array(source: str, array: str) -> bool:
    """Whether a source is an `.npz` file with an array of this name."""
    path = locate_source(source)
    return path.is_file() and kind_of(path) == "array" and array in (read_array_names(path) or ())


def read_idx(path: Place, selection: Selection) -> SourceSplits:
    """Read a folder that holds the files of MNIST under their names, plain or gzipped."""
    return SourceSplits(**{split: read() for split, read in idx_sets(path).items()})


def idx_sets(path: Place) -> SetReaders:
    """Return what reads each set of a folder of MNIST's files."""
    files = find_idx(path)
    for split, name in (("train", "train-images"), ("test", "t10k-images")):
        if (split, "images") not in files:
            raise DataRefused(f"{path} has no {name}-idx3-ubyte or {name}-idx3-ubyte.gz")
    if others := [name for name in list_shown(path) if not _IDX_NAME.fullmatch(name)]:
        say(f"{path}: passed over {list_files(others)}")

    def read(split: SplitName) -> LabelledRows:
        labels = files.get((split, "labels")) if split == "test" else None
        x = read_array(files[split, "images"])
        return LabelledRows(x, match_labels(path, len(x), read_array(labels) if labels else None))

    splits: tuple[SplitName, ...] = ("train", "test", "valid")
    return {split: partial(read, split) for split in splits if (split, "images") in files}


def read_arrays(path: Place, selection: Selection) -> SourceSplits:
    """Read an `.npy` or IDX file, or of an `.npz` file the arrays that `choose_splits` names."""
    names = read_array_names(path)
    if names is None:
        return SourceSplits(LabelledRows(read_array(path, selection.array)))
    chosen = choose_named(path, names, selection)
    return SourceSplits(**{split: read_named(path, chosen, split) for split in chosen.rows})


def choose_named(path: Place, names: Sequence[str], selection: Selection) -> ArrayNames:
    """Choose the arrays of an `.npz` file, and say which, if it is not plain."""
    chosen = choose_splits(path, names, selection.array)
    unused = [] if selection.array else chosen.list_unused(names)
    if unused or len(chosen.rows) > 1:
        said = tell_splits(chosen.rows)
        say(f"{path}: {said}" + (f"; not used: {join_names(unused)}" if unused else ""))
    return chosen


def read_table(path: Place, selection: Selection) -> SourceSplits:
    """Read a CSV, Parquet or Arrow file, or a folder of these in the order of their names."""
    from pipeline.data.mixed_tables import read_mixed
    from pipeline.data.table_source import open_source
    from pipeline.data.tables import read_numbers

    source = open_source(path, selection)
    rows = read_mixed(source, selection) or read_numbers(source, selection)
    return SourceSplits(LabelledRows(*rows))


def read_images(path: Place, selection: Selection) -> SourceSplits:
    """Read a folder of images of one size, in the order of their names.

    If all pixels of all images are gray, whatever their format, the rows are gray; otherwise gray
    images get three equal channels. If each image lies in a folder below `path`, the name of that
    folder is its label.
    """
    folder = ImageFolder(path)
    x = selection.read_images(folder.read, folder.size)
    return SourceSplits(LabelledRows(x, folder.labels))


READERS: Mapping[str, Reader] = {
    "idx": read_idx,
    "array": read_arrays,
    "table": read_table,
    "images": read_images,
}


def locate_source(source: str) -> Place:
    """Return the path of what `--data` names, which must be there."""
    path = MNIST if source == "mnist" else to_place(source)
    if not source or not path.exists():
        raise UsageRefused(f"no data at {source!r}: give {DATA_KINDS}")
    return path


def kind_of(path: Place) -> str:
    """Return which of `READERS` reads what is at a path."""
    from serving.io.csv_format import is_csv_name
    from serving.io.row_formats import find_kind

    if path.is_dir():
        return _folder_kind(path)
    if path.suffix.lower() in _TABLE_SUFFIXES or is_csv_name(path.name):
        return "table"
    with reading(path), path.open("rb") as file:
        kind = find_kind(file.read(_HEAD))
    if is_image_name(path.name) or kind == "picture":
        raise DataRefused(f"{path} is a single image: give a folder of them")
    return "table" if kind is not None and kind != "array" else "array"


def _folder_kind(folder: Place) -> str:
    if find_idx(folder):
        return "idx"
    return "images" if find_images(folder)[0] else "table"


def _read_folders(
    folder: Place, folders: Mapping[SplitName, Place], read: Reader, selection: Selection
) -> SourceSplits:
    """Read the folders of splits, the others with the columns, colours and dtype of the first."""
    tell_split_folders(folder, folders)
    train, *_ = read(folders["train"], selection)
    like = select_like(selection, train.x.shape[1:], train.x.dtype, train.columns, train.schema)
    return SourceSplits(
        train,
        **{split: read(path, like).train for split, path in folders.items() if split != "train"},
    )


def select_like(
    selection: Selection,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    columns: Sequence[str],
    schema: Schema | None,
) -> Selection:
    """Return how to read the sets that stand beside training rows of this kind."""
    return replace(
        selection,
        columns=selection.columns or tuple(columns),
        table_schema=schema,
        likelihood="",  # what the columns are is settled by the training rows
        schema="",
        x_shape=shape,
        x_dtype=str(dtype),
    )


def find_idx(folder: Place) -> dict[tuple[SplitName | None, str], Place]:
    """Find the files of MNIST by split, and by `images` or `labels`; plain ones go before gzip."""
    found = {}
    for path in reversed(list_folder(folder)):
        if path.is_file() and (match := _IDX_NAME.fullmatch(path.name)):
            split = "test" if match[1].lower() == "t10k" else find_split(match[1])[0]
            found[split, match[2].lower()] = path
    return found


def read_named(path: Place, chosen: ArrayNames, split: SplitName) -> LabelledRows:
    """Read the rows of a split, and the labels of those that are, or will be, the test set."""
    x = read_array(path, chosen.rows[split])
    return LabelledRows(x, read_labels(path, chosen, split, len(x)))


def read_labels(path: Place, chosen: ArrayNames, split: SplitName, rows: int) -> Array | None:
    """Read the labels of the rows of a split of an `.npz` file, if they may be needed."""
    labels = chosen.labels.get(split) if split == "test" or "test" not in chosen.rows else None
    if labels is None or not _may_be_labels(*read_array_type(path, labels), rows):
        return None
    return match_labels(path, rows, read_array(path, labels))


def match_labels(source: Place, rows: int, labels: Array | None) -> Array | None:
    """Return one integer or string per row; targets of other types are ignored."""
    if labels is None or not _may_be_labels(labels.dtype, labels.shape, rows):
        return None
    if labels.size != rows:
        raise DataRefused(f"{source} has {labels.size} labels for {rows} rows")
    return labels.reshape(-1)


def _may_be_labels(dtype: np.dtype[Any], shape: tuple[int, ...], rows: int) -> bool:
    """Whether an array is of classes; several values for each row are none, as one-hot codes."""
    several = len(shape) > 1 and shape[0] == rows and math.prod(shape) > rows
    return dtype.kind in _LABEL_KINDS and not several
