"""Go once over the rows of a source: check them, hold rows out, and find what models need of them.

In: a source, and the shares to hold out. Out: the splits, of which the rows to train on stay where
they are. Memory is bounded by the rows that are held out and the sample. Raises `DataRefused`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.plan import HELD_OUT_BYTES, SAMPLE_BYTES
from pipeline.data.splits import RunningDigest, StreamedSplit, choose_held_out
from pipeline.data.streamed_rows import count_up
from pipeline.data.streaming.chunks import Chunk, RowKind, RowSource
from pipeline.data.table_labels import as_labels
from serving.console import progress, say

Array = NDArray[Any]
Numbers = NDArray[np.int64]

_SAMPLE_KEY = 4
"""Of the generator that chooses the sample; 0 to 3 hold rows out and binarize."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """The fractions of the rows to hold out: 0 if the source has such a set of its own."""

    valid: float
    test: float
    drop_missing: bool = False
    """Whether rows may be left out for a gap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstPass:
    """What one pass over the rows has found."""

    train: StreamedSplit
    valid: Array
    test: Array
    labels: Array | None
    """Integers or strings (test rows,), if the source has labels."""
    left_out: Numbers
    """The sorted numbers of the rows that are not trained on."""
    capped: bool
    """Whether fewer rows are held out than the shares ask for."""


class _Picked:
    """Collects the rows of sorted numbers."""

    def __init__(self, kind: RowKind, numbers: Numbers) -> None:
        self.x = np.empty((len(numbers), *kind.shape), kind.dtype)
        self.labels: list[Any] = []
        self._numbers = numbers

    def add(self, chunk: Chunk) -> None:
        """Copy the rows of a chunk that are wanted."""
        if not len(chunk.numbers):
            return
        ends = chunk.numbers[0], chunk.numbers[-1] + 1
        start, stop = np.searchsorted(self._numbers, ends)
        if start < stop:
            places = np.searchsorted(chunk.numbers, self._numbers[start:stop])
            self.x[start:stop] = chunk.x[places]
            if chunk.labels is not None:
                self.labels.append(chunk.labels.take(places))


class _Extremes:
    """Keeps a row for each fact that decides how data are modelled."""

    def __init__(self, kind: RowKind) -> None:
        self._kind = kind
        self._low, self._high = np.inf, -np.inf
        self._rows: dict[str, Array] = {}

    def add(self, x: Array) -> None:
        """Look at the next rows."""
        if not x.size:
            return
        flat = x.reshape(len(x), -1)
        low, high = np.fmin.reduce(flat, None), np.fmax.reduce(flat, None)
        if low < self._low:
            self._low = low
            self._keep("least", flat, lambda rows: rows == low)
        if high > self._high:
            self._high = high
            self._keep("largest", flat, lambda rows: rows == high)
        if x.dtype != np.uint8 and "fraction" not in self._rows:
            self._keep("fraction", flat, lambda rows: (rows != np.rint(rows)) & (rows == rows))

    def _keep(self, fact: str, flat: Array, shows: Callable[[Array], Array]) -> None:
        rows = shows(flat).any(1)
        if rows.any():
            self._rows[fact] = flat[int(rows.argmax())].copy()

    @property
    def x(self) -> Array:
        """The rows (at most three, *x_shape)."""
        rows = np.array([*self._rows.values()], self._kind.dtype)
        return rows.reshape(len(self._rows), *self._kind.shape)


def take_first_pass(source: RowSource, shares: Shares) -> FirstPass:
    """Check all rows, and split them as the same rows in memory would be split.

    Raises:
        DataRefused: rows cannot be used, or are too few to split.
    """
    kind, name = source.kind, source.kind.name
    say(f"{name}: reading {source.total:,} rows once, to check them and to hold rows out")
    dropped = _find_dropped(source) if shares.drop_missing else np.arange(0)
    kept = source.total - len(dropped)
    most = max(1, HELD_OUT_BYTES // kind.row_bytes)
    test = choose_held_out(name, kept, shares.test, most)
    rest = kept - len(test)
    valid = choose_held_out(name, rest, shares.valid, most)
    capped = most in (len(test), len(valid))
    valid = count_up(count_up(valid, test), dropped)
    test = count_up(test, dropped)
    left_out = np.sort(np.concatenate([dropped, test, valid]))
    rows = source.total - len(left_out)
    held_out = _Picked(kind, test), _Picked(kind, valid)
    sample = _Picked(kind, count_up(_choose_sample(rows, kind.row_bytes), left_out))
    digest = RunningDigest(kind.dtype, (rows, *kind.shape))
    extremes = _Extremes(kind)
    for chunk in _watched(source, check=not shares.drop_missing):
        for picked in (*held_out, sample):
            picked.add(chunk)
        x = chunk.x
        if len(chunk.numbers):
            start, stop = np.searchsorted(left_out, [chunk.numbers[0], chunk.numbers[-1] + 1])
            x = np.delete(x, np.searchsorted(chunk.numbers, _among(left_out[start:stop], chunk)), 0)
        digest.add(x)
        extremes.add(x)
    train = StreamedSplit(source.without(left_out), digest.hexdigest(), sample.x, extremes.x)
    return FirstPass(
        train=train,
        valid=held_out[1].x,
        test=held_out[0].x,
        labels=_join_labels(held_out[0].labels),
        left_out=left_out,
        capped=capped,
    )


def _watched(source: RowSource, *, check: bool) -> Iterator[Chunk]:
    """Yield all rows, and show how many have been read."""
    with progress(source.total, "rows") as bar:
        for chunk in source.chunks(check=check):
            yield chunk
            bar.advance(len(chunk.numbers))


def _among(numbers: Numbers, chunk: Chunk) -> Numbers:
    """Return those of the numbers that rows of the chunk have."""
    return numbers[np.isin(numbers, chunk.numbers, assume_unique=True)]


def _find_dropped(source: RowSource) -> Numbers:
    """Return the sorted numbers of the rows that are left out for a gap; check the others."""
    dropped, done = [np.arange(0)], 0
    for chunk in _watched(source, check=True):
        if not len(chunk.numbers):
            continue
        last = int(chunk.numbers[-1]) + 1
        gaps = np.ones(last - done, np.bool_)
        gaps[chunk.numbers - done] = False
        dropped.append(done + np.flatnonzero(gaps))
        done = last
    return np.concatenate([*dropped, np.arange(done, source.total)])


def _join_labels(parts: Sequence[Any]) -> Array | None:
    if not parts:
        return None
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else as_labels(parts)


def _choose_sample(rows: int, row_bytes: int) -> Numbers:
    """Return the sorted numbers of the training rows from which statistics are taken."""
    count = max(1, SAMPLE_BYTES // row_bytes)
    if count >= rows:
        return np.arange(rows)
    generator = np.random.Generator(np.random.Philox(key=_SAMPLE_KEY))
    return np.sort(generator.choice(rows, count, replace=False, shuffle=False))
