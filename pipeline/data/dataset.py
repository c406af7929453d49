"""Load data from a name or a path into three fixed splits with their digests.

In: what `pipeline.data.readers` reads. Out: a `Dataset`. Raises `DataRefused`, with the reason, for
data that cannot be used. Splits and binarized images depend on the data alone and not on the seed
of a training, so that models of different seeds are compared on the same held-out rows.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Binarize
from pipeline.data.binarization import binarize, binarize_once
from pipeline.data.labelled_rows import LabelledRows, SourceSplits
from pipeline.data.readers import read_like, read_source
from pipeline.data.selection import Selection
from pipeline.data.source_checks import check_like, check_part
from pipeline.data.splits import Dataset, Split, choose_held_out, digest
from serving.value_range import MAX_BYTE, find_range, max_byte_of

__all__ = ["Dataset", "Split", "binarize", "digest", "load_dataset", "load_rows"]

Array = NDArray[Any]

_MOVED_ROWS = 4096


def load_dataset(
    source: str,
    *,
    valid_fraction: float,
    test_fraction: float,
    binarize: Binarize = "none",
    **chosen: Any,
) -> Dataset:
    """Load and split the data at `source`; `chosen` are settings of `Selection`.

    If the source has a validation or a test set of its own, its fraction is not used.
    """
    if binarize != "none":
        chosen = {**chosen, "likelihood": ""}  # it needs bytes, or numbers from 0 to 1
    rest, test, valid = _read(read_source, source, Selection(**chosen))
    names, schema = rest.columns, rest.schema
    if test is None:
        rest, test = _split(source, rest, test_fraction)
    max_byte = max_byte_of(find_range(*(part.x for part in (rest, test, valid) if part))[1])
    train, valid = (rest, valid) if valid else _split(source, rest, valid_fraction)
    del rest  # so that memory holds no more than the data and one copy
    if binarize == "static":  # "dynamic" binarizes each batch anew during training
        train = replace(train, x=binarize_once(train.x, max_byte, key=1))
    if binarize != "none":
        valid = replace(valid, x=binarize_once(valid.x, max_byte, key=2))
        test = replace(test, x=binarize_once(test.x, max_byte, key=3))
    return Dataset(
        source,
        train=Split(train.x, digest(train.x)),
        valid=Split(valid.x, digest(valid.x)),
        test=Split(test.x, digest(test.x), test.labels),
        columns=names,
        schema=schema,
    )


def load_rows(
    source: str,
    known: str,
    *,
    test_fraction: float,
    binarize: Binarize = "none",
    max_byte: int = MAX_BYTE,
    **chosen: Any,
) -> Split:
    """Load rows to evaluate on: the test set of the source, its validation set, or all rows.

    If the source is the data that the model was trained on, whose test split has the digest
    `known`, the rows are that test split. `max_byte` is that of the training's data.
    """
    rest, test, valid = _read(read_like, source, Selection(**chosen))
    choices = [test or valid or rest]
    if test is None and len(rest.x) > 1:
        choices.insert(0, _take(rest, choose_held_out(source, len(rest.x), test_fraction)))
    for part in choices:
        x = part.x if binarize == "none" else binarize_once(part.x, max_byte, key=3)
        split = Split(x, digest(x), part.labels)
        if split.sha256 == known:
            break
    return split


def _read(read: Callable[..., SourceSplits], source: str, selection: Selection) -> SourceSplits:
    """Read a source and check its rows: those of all its sets must be alike."""
    splits = read(source, selection)
    train = check_part(source, splits.train, selection)
    test = check_like(train, source, "test", splits.test, selection)
    return SourceSplits(
        train, test, check_like(train, source, "validation", splits.valid, selection)
    )


def _split(source: str, part: LabelledRows, fraction: float) -> tuple[LabelledRows, LabelledRows]:
    """Split off a fixed random `fraction` of the rows, at least one row unless it is 0.

    The remaining rows move up within their array, so that memory holds the rows only once.
    """
    held = choose_held_out(source, len(part.x), fraction)
    cut = _take(part, held)
    kept = np.delete(np.arange(len(part.x)), held)
    labels = None if part.labels is None else part.labels[kept]
    return LabelledRows(_move_up(part.x, kept), labels), cut


def _move_up(x: Array, kept: Array) -> Array:
    """Move the rows `kept`, sorted indices, to the front of `x`; copy them if `x` is read-only."""
    if not x.flags.writeable:
        return x[kept]
    for start in range(0, len(kept), _MOVED_ROWS):
        moved = kept[start : start + _MOVED_ROWS]
        x[start : start + len(moved)] = x[moved]
    return x[: len(kept)]


def _take(part: LabelledRows, rows: Array) -> LabelledRows:
    return LabelledRows(part.x[rows], None if part.labels is None else part.labels[rows])
