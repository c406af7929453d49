"""Load data from a name or a path into three fixed splits with their digests.

In: what `pipeline.data.readers` reads. Out: a `Dataset`. Raises `DataRefused`, with the reason, for
data that cannot be used. Splits and binarized images depend on the data alone and not on the seed
of a training, so that models of different seeds are compared on the same held-out rows.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Binarize
from pipeline.data.readers import LabelledRows, SourceSplits, read_like, read_source
from pipeline.data.row_checks import check_encoded, check_rows
from pipeline.data.selection import Selection
from serving.errors import DataRefused
from serving.schema import Schema
from serving.value_range import MAX_BYTE, Range, find_range, max_byte_of

Array = NDArray[Any]

_BINARIZED_ROWS = 4096
"""Rows binarized at a time, which bounds memory; another number would change the random bits."""
_MOVED_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Split:
    """Rows (rows, *x_shape) of uint8 or float32, and their SHA-256."""

    x: Array
    sha256: str
    labels: Array | None = None
    """Integers or strings (rows,), used only in figures; only a test split has them."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows to train on, to choose the best epoch on, and to report on; `valid` may be empty."""

    source: str
    train: Split
    valid: Split
    test: Split
    columns: tuple[str, ...] = field(default=(), kw_only=True)
    """Names of the features, if the source is a table with a column for each."""
    schema: Schema | None = field(default=None, kw_only=True)
    """The kinds of the columns, if they are not all complete numbers; gaps in `x` are NaN."""

    @property
    def x_shape(self) -> tuple[int, ...]:
        """The shape of one row."""
        return self.train.x.shape[1:]

    @property
    def rows(self) -> tuple[Array, Array, Array]:
        """The rows of the three splits."""
        return self.train.x, self.valid.x, self.test.x

    @property
    def value_range(self) -> Range:
        """The smallest and the largest value of all splits."""
        return find_range(*self.rows)

    @property
    def max_byte(self) -> int:
        """The value of a full byte: 255, unless the bytes are bits or levels, see `max_byte_of`."""
        return max_byte_of(self.value_range[1])

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each split."""
        return {name: split.sha256 for name, split in self._splits().items()}

    def describe(self) -> dict[str, Any]:
        """Return source, range, numbers of rows and digests, as the manifest keeps them."""
        return {
            "source": self.source,
            **({"columns": list(self.columns)} if self.columns else {}),
            **({"schema": self.schema.to_json()} if self.schema else {}),
            "range": list(self.value_range),
            "splits": {
                name: {"rows": len(split.x), "sha256": split.sha256}
                for name, split in self._splits().items()
            },
        }

    def _splits(self) -> dict[str, Split]:
        return {"train": self.train, "valid": self.valid, "test": self.test}


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
        train = _binarize_once(train, max_byte, key=1)
    if binarize != "none":
        valid = _binarize_once(valid, max_byte, key=2)
        test = _binarize_once(test, max_byte, key=3)
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
        choices.insert(0, _take(rest, _held_out(source, len(rest.x), test_fraction)))
    for part in choices:
        final = part if binarize == "none" else _binarize_once(part, max_byte, key=3)
        split = Split(final.x, digest(final.x), final.labels)
        if split.sha256 == known:
            break
    return split


def binarize(x: Array, generator: np.random.Generator, max_byte: int = MAX_BYTE) -> Array:
    """Draw each value as one or zero: one with probability x/max_byte for bytes, x for floats.

    See Burda et al. (2016), after Salakhutdinov & Murray (2008). Bytes become 0 or `max_byte`,
    which keeps their unit. The probability is exact for bytes, and within 2^-24 for floats.

    Raises:
        DataRefused: not all floats are from 0 to 1.
    """
    ones = np.empty_like(x)
    is_bytes = x.dtype == np.uint8
    one = x.dtype.type(max_byte if is_bytes else 1)
    if not is_bytes and x.size and not (x.min() >= 0 and x.max() <= 1):
        raise DataRefused(
            "to be binarized, data must be bytes, or floats from 0 to 1; "
            f"got {x.min():g} to {x.max():g}: use --binarize none"
        )
    for start in range(0, len(x), _BINARIZED_ROWS):
        rows = x[start : start + _BINARIZED_ROWS]
        if is_bytes:  # exactly x of the numbers from 0 to max_byte - 1 are below x
            uniform = generator.integers(0, max_byte, rows.shape, np.uint8)
        else:
            uniform = generator.random(rows.shape, np.float32)
        ones[start : start + len(rows)] = (uniform < rows) * one
    return ones


def digest(x: Array) -> str:
    """Return the SHA-256 of dtype, shape and little-endian bytes."""
    canonical = np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("<"))
    sha = hashlib.sha256(f"{x.dtype.name}{x.shape}".encode())
    sha.update(canonical.view(np.uint8).data if x.size else b"")
    return sha.hexdigest()


def _binarize_once(part: LabelledRows, max_byte: int, *, key: int) -> LabelledRows:
    """Binarize a split with a fixed `key`, so that it is the same for every training."""
    generator = np.random.Generator(np.random.Philox(key=key))
    return replace(part, x=binarize(part.x, generator, max_byte))


def _read(read: Callable[..., SourceSplits], source: str, selection: Selection) -> SourceSplits:
    """Read a source and check its rows: those of all its sets must be alike."""
    splits = read(source, selection)
    train = _check(source, splits.train, selection)
    test = _check_like(train, source, "test", splits.test, selection)
    return SourceSplits(
        train, test, _check_like(train, source, "validation", splits.valid, selection)
    )


def _check_like(
    train: LabelledRows, source: str, name: str, part: LabelledRows | None, selection: Selection
) -> LabelledRows | None:
    """Check the rows of a set of the source's own, if it has it: they must be like `train`."""
    if part is None:
        return None
    part = _check(f"{source} ({name})", part, selection)
    if (part.x.dtype, part.x.shape[1:]) != (train.x.dtype, train.x.shape[1:]):
        raise DataRefused(
            f"{source}: {name} rows are {part.x.dtype} {part.x.shape[1:]}, "
            f"training rows {train.x.dtype} {train.x.shape[1:]}"
        )
    return part


def _check(source: str, part: LabelledRows, selection: Selection) -> LabelledRows:
    if part.schema is not None:
        return part  # each cell was checked when it was read
    if selection.table_schema:
        return replace(part, x=check_encoded(source, part.x, selection.table_schema))
    x, kept = check_rows(source, part.x, part.columns, selection.drop_missing)
    x = _fit_model(x, selection)
    if part.labels is None or kept.all():
        return replace(part, x=x)
    return replace(part, x=x, labels=part.labels[kept])


def _fit_model(x: Array, selection: Selection) -> Array:
    """Return rows in the model's shape and dtype, if there is a model and that changes no value."""
    if selection.x_shape and x.ndim == 2 and x.shape[1] == math.prod(selection.x_shape):
        x = x.reshape(len(x), *selection.x_shape)
    if selection.x_dtype == "float32":
        return x.astype(np.float32, copy=False)
    if selection.x_dtype == "uint8" and x.dtype != np.uint8:
        whole = x.size and x.min() >= 0 and x.max() <= MAX_BYTE and (x == np.rint(x)).all()
        return x.astype(np.uint8) if whole else x
    return x


def _split(source: str, part: LabelledRows, fraction: float) -> tuple[LabelledRows, LabelledRows]:
    """Split off a fixed random `fraction` of the rows, at least one row unless it is 0.

    The remaining rows move up within their array, so that memory holds the rows only once.
    """
    held = _held_out(source, len(part.x), fraction)
    cut = _take(part, held)
    kept = np.delete(np.arange(len(part.x)), held)
    labels = None if part.labels is None else part.labels[kept]
    return LabelledRows(_move_up(part.x, kept), labels), cut


def _held_out(source: str, rows: int, fraction: float) -> Array:
    """Return the sorted indices of the rows that are held out."""
    if fraction == 0:
        return np.arange(0)
    count = max(1, round(rows * fraction))
    if count >= rows:
        raise DataRefused(f"{source} has {rows} rows, too few to split")
    order = np.random.Generator(np.random.Philox(key=0)).permutation(rows)
    return np.sort(order[-count:])


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
