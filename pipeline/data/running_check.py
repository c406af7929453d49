"""Check rows that come in parts, as `pipeline.data.row_checks` checks an array of all of them.

In: parts of the rows of a source, in order. Out: the same rows as uint8 or finite float32. Raises
`DataRefused` at the end, for what is wrong in all of them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.row_checks import (
    Float32Check,
    judge_outliers,
    list_features,
    refuse_infinite,
    sample_step,
)
from serving.console import say
from serving.errors import DataRefused

Array = NDArray[Any]


class RunningCheck:
    """Converts and watches the rows of a source.

    Args:
        source: named in errors.
        shape: the shape of a row.
        total: the number of rows.
        names: names of the features; empty for their numbers.
        drop_missing: whether rows that hold a NaN are left out, and not refused.
    """

    def __init__(
        self,
        source: object,
        shape: tuple[int, ...],
        total: int,
        names: Sequence[str] = (),
        drop_missing: bool = False,
    ) -> None:
        self._source, self._names, self._drop = source, names, drop_missing
        self._float32 = Float32Check(source, names)
        features = self._features = int(np.prod(shape))
        if not total or not features:
            raise DataRefused(
                f"{source} must be rows of features, at least one of each; got {(total, *shape)}"
            )
        self._step = sample_step(total, features)
        self._rows = self._dropped = self._bad = 0
        self._first_bad = (0, np.zeros(0, np.int64))
        self._has_nan = False
        self._sample: list[Array] = []
        self._ends = np.full((2, features), [[np.inf], [-np.inf]], np.float32)
        self._end_rows = np.zeros((2, features), np.int64)

    def add(self, x: Array) -> tuple[Array, NDArray[np.bool_]]:
        """Return the next rows as uint8 or float32, and which of them (rows,) are kept."""
        if x.dtype.kind not in "buif":
            raise DataRefused(f"{self._source} must be numbers, got {x.dtype}")
        kept = np.ones(len(x), np.bool_)
        x = x.astype(x.dtype.newbyteorder("="), copy=False)
        if self._drop and x.dtype.kind == "f":
            kept = np.asarray(~np.isnan(x).reshape(-1, self._features).any(1))
            self._dropped += len(kept) - int(kept.sum())
            x = x if kept.all() else x[kept]
        if x.dtype not in (np.uint8, np.float32):
            self._float32.watch(x.reshape(-1, self._features))
            with np.errstate(over="ignore"):  # too large a value becomes inf, refused below
                x = x.astype(np.float32)
        if x.dtype == np.float32:
            self._watch(x.reshape(-1, self._features))
        self._rows += len(x)
        return x, kept

    def _watch(self, x: Array) -> None:
        if not len(x):
            return
        low, high = x.min(0), x.max(0)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            bad = ~np.isfinite(x).all(1)
            if not self._bad:
                row = int(bad.argmax())
                self._first_bad = self._rows + row, np.flatnonzero(~np.isfinite(x[row]))[:1]
            self._bad += int(bad.sum())
            self._has_nan |= bool(np.isnan(x).any())
            return
        self._sample.append(x[-self._rows % self._step :: self._step].copy())
        for end, values, find in ((0, low, np.argmin), (1, high, np.argmax)):
            known = self._ends[end]
            new = np.flatnonzero(values < known if end == 0 else values > known)
            known[new] = values[new]
            self._end_rows[end, new] = self._rows + find(x[:, new], axis=0)

    def finish(self) -> None:
        """Judge all rows.

        Raises:
            DataRefused: they cannot be used.
        """
        if self._drop and not self._rows:
            raise DataRefused(f"{self._source} has no row without a missing value")
        if self._dropped:
            say(f"{self._source}: {self._dropped:,} rows with missing values are left out")
        self._float32.finish()
        if self._bad:
            feature = list_features(self._names, self._first_bad[1])
            first = f"row {self._first_bad[0]}, {feature}"
            refuse_infinite(self._source, self._bad, self._rows, first, self._has_nan)
        if self._sample:
            self._judge()

    def _judge(self) -> None:
        """Judge the ends of each feature beside a sample of its values."""
        sample = np.concatenate(self._sample)

        def column(feature: int) -> Array:
            return np.concatenate([self._ends[:, feature], sample[:, feature]])

        judge_outliers(
            self._source,
            self._names,
            sample,
            (self._ends[0], self._ends[1]),
            column,
            lambda feature: np.pad(self._end_rows[:, feature], (0, len(sample))),
        )
