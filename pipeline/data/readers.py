"""Read what `--data` names; each format has a function from a path to rows and labels.

In: `mnist`, or a path. Out: the rows, those of the source's own validation and test sets if it has
them, and a label for each row if the source has labels. Raises `DataRefused` if the source cannot
be read, and `UsageRefused` if there is nothing at the path, or no such column or array.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DATA_KINDS
from pipeline.data.selection import EVERYTHING, Selection
from pipeline.data.split_folders import find_split_folders
from serving.console import say
from serving.errors import DataRefused, UsageRefused
from serving.files import reading
from serving.io.array_choice import ArrayNames, SplitName, choose_splits, find_split
from serving.io.array_files import read_array, read_array_names, read_array_type
from serving.io.image_files import is_image_name, read_image, read_image_shape
from serving.io.image_folders import keep_images, list_files
from serving.io.memory import require_memory
from serving.schema import Schema

Array = NDArray[Any]

MNIST = Path(__file__).parent / "mnist"
_TABLE_SUFFIXES = (".parquet", ".arrow")
_IDX_NAME = re.compile(r"(\w+)-(images|labels)[-.]idx\d-ubyte(\.gz)?", re.IGNORECASE)
_LABEL_KINDS = "uiUS"
_HEAD = 16
_LISTED = 8


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Rows (rows, *x_shape) as a source holds them, and their labels (rows,) if it has any."""

    x: Array
    labels: Array | None = None
    columns: tuple[str, ...] = ()
    """Names of the features, if the source is a table with a column for each."""
    schema: Schema | None = None
    """By which the table was read, if its cells are of several kinds."""


class SourceSplits(NamedTuple):
    """Rows to train on, and those of the source's own test and validation sets, if it has them."""

    train: LabelledRows
    test: LabelledRows | None = None
    valid: LabelledRows | None = None


Reader = Callable[[Path, Selection], SourceSplits]


def read_source(source: str, selection: Selection = EVERYTHING) -> SourceSplits:
    """Read all rows of `source`, `mnist` or a path.

    A folder of folders of splits, such as `train`, `val` and `test`, has sets of its own.
    """
    path = _locate(source)
    kind = _kind(path)
    if (selection.columns or selection.label) and kind != "table":
        raise UsageRefused(f"--columns and --label choose from a table, and {source} is not one")
    if selection.schema and kind != "table":
        raise UsageRefused(f"--schema is about the columns of a table, and {source} is not one")
    if selection.array and kind != "array":
        raise UsageRefused(f"--array chooses from an .npz file, and {source} is not one")
    if path.is_dir() and kind != "idx" and (folders := find_split_folders(path)):
        return _read_folders(path, folders, READERS[kind], selection)
    return READERS[kind](path, selection)


def read_like(source: str, selection: Selection) -> SourceSplits:
    """Read a source other than the one that `selection` was made for.

    An array has no columns; a table must have those that are named, and may have the label.
    """
    if _kind(_locate(source)) != "table":
        return read_source(source, replace(selection, columns=(), label="", schema=""))
    try:
        return read_source(source, selection)
    except UsageRefused:
        if not selection.label:
            raise
        return read_source(source, replace(selection, label=""))


def locate_table(source: str) -> Path:
    """Return where the rows to train on of a table are: a file, or a folder of files.

    Raises:
        UsageRefused: the source is no table.
    """
    path = _locate(source)
    if _kind(path) != "table":
        raise UsageRefused(f"only a table has columns, and {source} is not one")
    folders = find_split_folders(path) if path.is_dir() else {}
    return folders.get("train", path)


def has_array(source: str, array: str) -> bool:
    """Whether a source is an `.npz` file with an array of this name."""
    path = _locate(source)
    return path.is_file() and _kind(path) == "array" and array in (read_array_names(path) or ())


def read_idx(path: Path, selection: Selection) -> SourceSplits:
    """Read a folder that holds the files of MNIST under their names, plain or gzipped."""
    files = _find_idx(path)
    for split, name in (("train", "train-images"), ("test", "t10k-images")):
        if (split, "images") not in files:
            raise DataRefused(f"{path} has no {name}-idx3-ubyte or {name}-idx3-ubyte.gz")
    if others := [name for name in _list_files(path) if not _IDX_NAME.fullmatch(name)]:
        say(f"{path}: passed over {list_files(others)}")
    valid = files.get(("valid", "images"))
    labels = files.get(("test", "labels"))
    return SourceSplits(
        LabelledRows(read_array(files["train", "images"])),
        _label(path, read_array(files["test", "images"]), read_array(labels) if labels else None),
        LabelledRows(read_array(valid)) if valid else None,
    )


def read_arrays(path: Path, selection: Selection) -> SourceSplits:
    """Read an `.npy` or IDX file, or of an `.npz` file the arrays that `choose_splits` names."""
    names = read_array_names(path)
    if names is None:
        return SourceSplits(LabelledRows(read_array(path, selection.array)))
    chosen = choose_splits(path, names, selection.array)
    unused = [] if selection.array else chosen.list_unused(names)
    if unused or len(chosen.rows) > 1:
        said = _tell_splits(chosen.rows)
        say(f"{path}: {said}" + (f"; not used: {_join(unused)}" if unused else ""))
    return SourceSplits(**{split: _read_split(path, chosen, split) for split in chosen.rows})


def read_table(path: Path, selection: Selection) -> SourceSplits:
    """Read a CSV, Parquet or Arrow file, or a folder of these in the order of their names."""
    from pipeline.data.mixed_tables import read_mixed
    from pipeline.data.table_source import open_source
    from pipeline.data.tables import read_numbers

    source = open_source(path, selection)
    rows = read_mixed(source, selection) or read_numbers(source, selection)
    return SourceSplits(LabelledRows(*rows))


def read_images(path: Path, selection: Selection) -> SourceSplits:
    """Read a folder of images of one size, in the order of their names.

    If all pixels of all images are gray, whatever their format, the rows are gray; otherwise gray
    images get three equal channels. If each image lies in a folder below `path`, the name of that
    folder is its label.
    """
    files, note = _find_images(path)
    if not files:
        raise DataRefused(f"{path} has no images")
    if note:
        say(note)
    shapes = [_read_shape(path / name) for name in files]
    for name, shape in zip(files, shapes, strict=True):
        if shape[:2] != shapes[0][:2]:
            raise DataRefused(
                f"images must be of one size: {path / files[0]} has {shapes[0][1]}x{shapes[0][0]} "
                f"pixels, {path / name} has {shape[1]}x{shape[0]}"
            )
    x = selection.read_images(partial(_read_all, path, files), shapes[0][:2])
    folders = [name.split("/")[:-1] for name in files]
    labels = np.array([names[0] for names in folders]) if all(folders) else None
    return SourceSplits(LabelledRows(x, labels))


def _read_all(path: Path, files: Sequence[str], shape: tuple[int, ...]) -> Array:
    require_memory(path, len(files) * math.prod(shape))
    x = np.empty((len(files), *shape), np.uint8)
    for row, name in zip(x, files, strict=True):
        with _opened(path / name) as content:
            row[...] = read_image(content, shape)
    return x


READERS: Mapping[str, Reader] = {
    "idx": read_idx,
    "array": read_arrays,
    "table": read_table,
    "images": read_images,
}


def _locate(source: str) -> Path:
    path = MNIST if source == "mnist" else Path(source).expanduser()
    if not source or not path.exists():
        raise UsageRefused(f"no data at {source!r}: give {DATA_KINDS}")
    return path


def _kind(path: Path) -> str:
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


def _folder_kind(folder: Path) -> str:
    if _find_idx(folder):
        return "idx"
    return "images" if _find_images(folder)[0] else "table"


def _read_folders(
    folder: Path, folders: Mapping[SplitName, Path], read: Reader, selection: Selection
) -> SourceSplits:
    """Read the folders of splits, the others with the columns, colours and dtype of the first."""
    beside = _list_files(folder)
    if rows := [name for name in beside if is_image_name(name)]:
        raise DataRefused(
            f"{folder} has {_join(rows)} beside {_join(path.name for path in folders.values())}: "
            "move images into one of these folders, or away"
        )
    said = _tell_splits({split: path.name for split, path in folders.items()})
    say(f"{folder}: {said}" + (f"; passed over {list_files(beside)}" if beside else ""))
    train, *_ = read(folders["train"], selection)
    like = replace(
        selection,
        columns=selection.columns or train.columns,
        table_schema=train.schema,
        likelihood="",  # what the columns are is settled by the training rows
        schema="",
        x_shape=train.x.shape[1:],
        x_dtype=str(train.x.dtype),
    )
    return SourceSplits(
        train,
        **{split: read(path, like).train for split, path in folders.items() if split != "train"},
    )


def _list_files(folder: Path) -> list[str]:
    """Return the names of the files in a folder, without those that start with `_` or `.`."""
    return sorted(
        path.name for path in folder.iterdir() if path.is_file() and path.name[0] not in "._"
    )


def _find_images(folder: Path) -> tuple[list[str], str]:
    """Find the images below a folder by name, as `vae score` does, and what is passed over."""
    from serving.io.filesystems import find_files

    files, note = keep_images(folder, find_files(str(folder)))
    return [name for name, *_ in files if is_image_name(name)], note


def _read_shape(file: Path) -> tuple[int, ...]:
    with _opened(file) as content:
        return read_image_shape(content)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[bytes]:
    """Read a file, and name it in what the block refuses."""
    with reading(file):
        content = file.read_bytes()
    try:
        yield content
    except DataRefused as err:
        raise type(err)(f"cannot read {file}: {err}") from err


def _find_idx(folder: Path) -> dict[tuple[SplitName | None, str], Path]:
    """Find the files of MNIST by split, and by `images` or `labels`; plain ones go before gzip."""
    found = {}
    for path in sorted(folder.iterdir(), reverse=True):
        if path.is_file() and (match := _IDX_NAME.fullmatch(path.name)):
            split = "test" if match[1].lower() == "t10k" else find_split(match[1])[0]
            found[split, match[2].lower()] = path
    return found


def _read_split(path: Path, chosen: ArrayNames, split: SplitName) -> LabelledRows:
    """Read the rows of a split, and the labels of those that are, or will be, the test set."""
    x = read_array(path, chosen.rows[split])
    labels = chosen.labels.get(split) if split == "test" or "test" not in chosen.rows else None
    if labels is None or not _may_be_labels(*read_array_type(path, labels), len(x)):
        return LabelledRows(x)
    return _label(path, x, read_array(path, labels))


def _label(source: Path, x: Array, labels: Array | None) -> LabelledRows:
    """Add labels to rows: one integer or string per row; targets of other types are ignored."""
    if labels is None or not _may_be_labels(labels.dtype, labels.shape, len(x)):
        return LabelledRows(x)
    if labels.size != len(x):
        raise DataRefused(f"{source} has {labels.size} labels for {len(x)} rows")
    return LabelledRows(x, labels.reshape(-1))


def _may_be_labels(dtype: np.dtype[Any], shape: tuple[int, ...], rows: int) -> bool:
    """Whether an array is of classes; several values for each row are none, as one-hot codes."""
    several = len(shape) > 1 and shape[0] == rows and math.prod(shape) > rows
    return dtype.kind in _LABEL_KINDS and not several


def _tell_splits(names: Mapping[SplitName, str]) -> str:
    uses = {"train": "to train on", "valid": "to validate on", "test": "to test on"}
    return ", ".join(f"{name} {uses[split]}" for split, name in names.items())


def _join(names: Iterable[str]) -> str:
    """List names for a message."""
    every = list(names)
    more = f" and {len(every) - _LISTED} more" if len(every) > _LISTED else ""
    return ", ".join(every[:_LISTED]) + more
