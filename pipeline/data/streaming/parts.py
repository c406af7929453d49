"""Find the rows to train on in a source, and read the sets that it has beside them.

In: a path, and what is chosen of it. Out: where the rows to train on are, and functions that read
the source's own validation and test sets into memory once the training rows are known.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from numpy.typing import NDArray

from pipeline.data.labelled_rows import LabelledRows
from pipeline.data.readers import (
    READERS,
    check_selection,
    choose_named,
    find_idx,
    idx_sets,
    kind_of,
    locate_source,
    read_labels,
    read_named,
    select_like,
)
from pipeline.data.selection import Selection
from pipeline.data.split_folders import find_split_folders, tell_split_folders
from pipeline.data.streaming.chunks import RowKind
from serving.io.array_choice import SplitName
from serving.io.array_files import read_array_names, read_array_type
from serving.io.remote_paths import Place

Array = NDArray[Any]
ReadSet = Callable[[RowKind], LabelledRows]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The rows to train on, and the other sets of a source."""

    path: Place
    """The file or folder of the rows to train on."""
    kind: str
    """Which of `READERS` reads it."""
    array: str = ""
    """The array of an `.npz` file that holds them."""
    labels: Array | None = None
    """Labels of all these rows, if some of them will be tested on."""
    own: Mapping[str, ReadSet] = field(default_factory=dict)
    """Read `valid` and `test`, if the source has them."""


def find_parts(source: str, selection: Selection) -> Parts:
    """Find the rows to train on.

    Raises:
        DataRefused: the source has other sets, but none to train on.
        UsageRefused: there is nothing at the source, or nothing of what is chosen.
    """
    path = locate_source(source)
    kind = kind_of(path)
    check_selection(source, kind, selection)
    if kind == "idx":
        return _find_in_idx(path)
    if path.is_dir() and (folders := find_split_folders(path)):
        return _find_in_folders(path, folders, kind, selection)
    if kind == "array" and (names := read_array_names(path)) is not None:
        return _find_in_npz(path, names, selection)
    return Parts(path=path, kind=kind)


def _find_in_idx(path: Place) -> Parts:
    def read(split: SplitName, kind: RowKind) -> LabelledRows:
        return sets[split]()

    sets = idx_sets(path)
    own: dict[str, ReadSet] = {split: partial(read, split) for split in sets if split != "train"}
    return Parts(path=find_idx(path)["train", "images"], kind="array", own=own)


def _find_in_npz(path: Place, names: Sequence[str], selection: Selection) -> Parts:
    def read(split: SplitName, kind: RowKind) -> LabelledRows:
        return read_named(path, chosen, split)

    chosen = choose_named(path, names, selection)
    array = chosen.rows["train"]
    _, shape = read_array_type(path, array)
    return Parts(
        path=path,
        kind="array",
        array=array,
        labels=read_labels(path, chosen, "train", shape[0]) if shape else None,
        own={split: partial(read, split) for split in chosen.rows if split != "train"},
    )


def _find_in_folders(
    path: Place, folders: Mapping[SplitName, Place], name: str, selection: Selection
) -> Parts:
    def read(split: SplitName, kind: RowKind) -> LabelledRows:
        like = select_like(selection, kind.shape, kind.dtype, kind.columns, kind.schema)
        return READERS[name](folders[split], like).train

    tell_split_folders(path, folders)
    own: dict[str, ReadSet] = {split: partial(read, split) for split in folders if split != "train"}
    return Parts(path=folders["train"], kind=name, own=own)
