"""Refuse rows that a model cannot learn from, before they are split.

Models take float32 or bytes. Features are refused by name if float32 would round them: whole
numbers beyond 2^24, and numbers whose spread is small beside their size, such as time stamps. So
are values that are not finite, or so far from all others that they would drown them. Raises
`DataRefused`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.console import say
from serving.errors import DataRefused
from serving.schema import Schema
from serving.value_range import MAX_EXACT

Array = NDArray[Any]

MAX_LOSS = 1e-3
"""Largest root mean square of a feature's rounding errors, as a share of its standard deviation."""
MAX_DISTANCE = 1e6
"""Largest distance of a value from the median, in units of what the middle 90 % of rows span."""
MAX_SIZE = 1e15
"""Largest distance where nearly all rows are equal; the squares of much larger ones overflow."""
_SAMPLE_ROWS, _LEAST_ROWS, _SAMPLE_VALUES = 10_000, 200, 10_000_000
_CHUNK = 1 << 20
_SHOWN = 3


class Float32Check:
    """Watches the values (rows, features) of a source, and then judges each feature.

    Args:
        source: named in errors.
        names: names of the features; empty for their numbers.
        whole: whether each feature holds whole numbers, although all are read as floats; if it is
            empty, the type that is read tells.
    """

    def __init__(
        self, source: object, names: Sequence[str] = (), whole: Sequence[bool] = ()
    ) -> None:
        self._source, self._names, self._whole = source, names, np.array(whole, bool)
        self._rows = 0
        self._start = np.zeros(0)
        self._largest = np.zeros(0)
        self._sums = np.zeros((3, 0))

    def watch(self, values: Array) -> None:
        """Add rows; floats of 32 bits and bytes are what they will be, and are not looked at."""
        if not len(values) or values.dtype in (np.uint8, np.float32, np.float16):
            return
        if not self._rows:
            first = np.isfinite(values).argmax(0)  # the sums are of offsets from these values
            start = values[first, np.arange(values.shape[1])].astype(np.float64)
            self._start = np.where(np.isfinite(start), start, 0)
            self._largest = np.zeros(values.shape[1])
            self._sums = np.zeros((3, values.shape[1]))
        self._rows += len(values)
        step = max(1, _CHUNK // values.shape[1])
        for first in range(0, len(values), step):
            self._add(values[first : first + step])

    def _add(self, values: Array) -> None:
        exact = values.astype(np.float64)
        if not np.isfinite(exact).all():
            exact = np.where(np.isfinite(exact), exact, self._start)
        if self._whole.any() or values.dtype.kind in "iu":
            self._largest = np.maximum(self._largest, np.abs(exact).max(0))
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # what is not finite is refused elsewhere
            errors = exact.astype(np.float32) - exact
            offsets = exact - self._start
            self._sums += [offsets.sum(0), np.square(offsets).sum(0), np.square(errors).sum(0)]

    def finish(self) -> None:
        """Judge all features.

        Raises:
            DataRefused: a feature would be rounded.
        """
        if not self._rows:
            return
        whole = self._whole if self._whole.size else True
        if (large := np.flatnonzero((self._largest > MAX_EXACT) & whole)).size:
            raise DataRefused(
                f"{self._source}: {self._list(large)} must be whole numbers from {-MAX_EXACT} to "
                f"{MAX_EXACT}, which float32 holds exactly; got up to "
                f"{self._largest[large[0]]:.15g}: use a larger unit, subtract an offset"
                f"{self._leave_out}"
            )
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            mean, square, error = self._sums / self._rows
            spread = np.sqrt(np.maximum(square - np.square(mean), 0))
            rounding = np.sqrt(error)
            lost = np.flatnonzero((spread > 0) & (rounding > MAX_LOSS * spread))
        if lost.size:
            first = lost[0]
            raise DataRefused(
                f"{self._source}: {self._list(lost)} would be rounded by {rounding[first]:.2g} in "
                f"float32, but spreads by {spread[first]:.3g} only, near "
                f"{self._start[first] + mean[first]:.6g}; allowed is {MAX_LOSS:g} of the spread: "
                f"subtract an offset{self._leave_out}"
            )

    @property
    def _leave_out(self) -> str:
        return ", or leave it out by --columns" if len(self._names) else ""

    def _list(self, features: Array) -> str:
        return list_features(self._names, features)


def check_rows(
    source: object, x: Array, names: Sequence[str] = (), drop_missing: bool = False
) -> tuple[Array, Array]:
    """Return rows of uint8 or finite float32, and which of the rows (rows,) of `x` they are.

    Other numbers are converted, everything else is refused. With `drop_missing`, rows that hold a
    NaN are left out.
    """
    if x.dtype.kind not in "buif":
        raise DataRefused(f"{source} must be numbers, got {x.dtype}")
    if x.ndim < 2 or x.size == 0:
        raise DataRefused(f"{source} must be rows of features, at least one of each; got {x.shape}")
    kept: Array = np.ones(len(x), bool)
    if drop_missing and x.dtype.kind == "f":
        kept = np.asarray(~np.isnan(x).reshape(len(x), -1).any(1))
        if not kept.any():
            raise DataRefused(f"{source} has no row without a missing value")
        if gaps := len(x) - int(kept.sum()):
            x = x[kept]
            say(f"{source}: {gaps:,} rows with missing values are left out")
    if x.dtype not in (np.uint8, np.float32):
        check = Float32Check(source, names)
        check.watch(x.reshape(len(x), -1))
        check.finish()
        with np.errstate(over="ignore"):  # too large a value becomes inf, refused below
            x = x.astype(np.float32)
    if x.dtype == np.float32:
        bad = ~np.isfinite(x.reshape(len(x), -1)).all(1)
        if bad.any():
            row = int(bad.argmax())
            feature = np.flatnonzero(~np.isfinite(x[row].reshape(-1)))[:1]
            first = f"row {row}, {list_features(names, feature)}"
            refuse_infinite(source, int(bad.sum()), len(x), first, bool(np.isnan(x).any()))
        _refuse_outliers(source, x, names)
    return x, kept


def refuse_infinite(source: object, bad: int, rows: int, first: str, has_nan: bool) -> None:
    """Refuse `bad` of the rows, which hold values that are not finite."""
    advice = "; --drop-missing leaves out rows with a NaN" if has_nan else ""
    raise DataRefused(
        f"{source} must be finite: {bad} of {rows} rows are not, the first is {first}{advice}"
    )


def check_encoded(source: object, x: Array, schema: Schema) -> Array:
    """Return rows that hold what a schema makes of a table, as float32; gaps are NaN.

    Raises:
        DataRefused: they have other columns, a value is infinite, or a code stands for no word.
    """
    if x.dtype.kind not in "buif" or x.shape[1:] != (len(schema.columns),):
        raise DataRefused(
            f"{source} must be rows of {len(schema.columns)} numbers, as the model's schema makes "
            f"them; got {x.dtype} {x.shape[1:]}"
        )
    x = x.astype(np.float32)
    for place, column in enumerate(schema.columns):
        values = x[:, place]
        bad = np.isinf(values)
        if column.words:
            bad |= ~np.isnan(values) & ~np.isin(values, np.arange(len(column.words) + 1))
        if bad.any():
            row = int(bad.argmax())
            allowed = f"a code from 0 to {len(column.words)}" if column.words else "finite"
            raise DataRefused(
                f"{source}: column {column.name!r} must be {allowed}, got {values[row]:g} in row "
                f"{row}"
            )
    x[np.isnan(x)] = np.nan  # one NaN, whatever bits the file has
    return x


def list_features(names: Sequence[str], features: Array) -> str:
    """Name features for a message, by their numbers if they have no names."""
    shown = [repr(names[index][:40]) if len(names) else str(index) for index in features[:_SHOWN]]
    more = f" and {len(features) - _SHOWN} more" if len(features) > _SHOWN else ""
    word = "column" if len(names) else "feature"
    return f"{word}{'s' if len(features) > 1 else ''} {', '.join(shown)}{more}"


def _refuse_outliers(source: object, x: Array, names: Sequence[str] = ()) -> None:
    """Refuse float32 rows (rows, *x_shape) with a value that would drown all others."""
    x = x.reshape(len(x), -1)
    judge_outliers(
        source,
        names,
        x[:: sample_step(len(x), x.shape[1])],
        (x.min(0), x.max(0)),
        lambda feature: x[:, feature],
    )


def sample_step(rows: int, features: int) -> int:
    """Return the distance between the rows that show where the middle of all rows lies."""
    return -(-rows // max(_LEAST_ROWS, min(_SAMPLE_ROWS, _SAMPLE_VALUES // features)))


def judge_outliers(
    source: object,
    names: Sequence[str],
    sample: Array,
    ends: tuple[Array, Array],
    column: Callable[[int], Array],
    rows_of: Callable[[int], Array] | None = None,
) -> None:
    """Refuse a feature with a value far from all others.

    One such value sets the scale by which a feature is standardized, or makes its likelihood
    overflow. If the middle 90 % of the rows are all equal, the others are judged beside the median
    of their distances from it.

    Args:
        source: named in errors.
        names: names of the features.
        sample: some rows (rows, features).
        ends: the least and the largest value of each feature.
        column: returns values of a feature, the farthest among them.
        rows_of: returns the numbers of the rows of these values, if they are not all rows.

    Raises:
        DataRefused: with the feature and the row, counted from 0.
    """
    low, median, high = np.quantile(sample, (0.05, 0.5, 0.95), axis=0).astype(np.float64)
    reach = MAX_DISTANCE * (high - low)
    largest = np.maximum(ends[1] - median, median - ends[0])
    for feature in np.flatnonzero((reach == 0) & (largest > MAX_DISTANCE)).tolist():
        distances = np.abs(column(feature) - median[feature])
        reach[feature] = min(MAX_DISTANCE * np.median(distances[distances > 0]), MAX_SIZE)
    if (far := np.flatnonzero((reach > 0) & ~(largest <= reach))).size:
        values = column(far[0])
        place = int(np.abs(values - median[far[0]]).argmax())
        row = place if rows_of is None else int(rows_of(far[0])[place])
        raise DataRefused(
            f"{source}: {list_features(names, far[:1])} holds {values[place]:g} in row {row}, but "
            f"the middle 90 % of its rows are from {low[far[0]]:g} to {high[far[0]]:g}: correct "
            "the value, or leave the row out"
        )
