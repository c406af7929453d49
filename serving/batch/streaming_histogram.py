"""The distribution of any number of float32 values, in one pass and 8 MiB, to 1 part in 2048.

The bit patterns of floats sort like the floats, so values that share their leading 20 bits are
counted together. Counts add up exactly, in any order.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_BITS = 20
_SHIFT = 32 - _BITS
_HALF = 1 << (_BITS - 1)


class StreamingHistogram:
    """Counts finite values; gives their mean, spread, quantiles and histogram."""

    def __init__(self) -> None:
        self._counts = np.zeros(2 * _HALF, np.int64)
        self._mean = self._squares = 0.0
        self.rows = 0
        self.least, self.most = math.inf, -math.inf

    def add(self, values: NDArray[np.float32]) -> None:
        """Count the values of a part."""
        if len(values) == 0:
            return
        self._counts += np.bincount(_cell(values), minlength=2 * _HALF)
        self._add_moments(values.astype(np.float64))
        self.least = min(self.least, float(values.min()))
        self.most = max(self.most, float(values.max()))

    def _add_moments(self, values: NDArray[np.float64]) -> None:
        """Add sums of squares about the mean without cancellation (Chan et al., 1983)."""
        rows, mean = len(values), float(values.mean())
        shift, total = mean - self._mean, self.rows + rows
        self._squares += float(np.square(values - mean).sum())
        self._squares += shift**2 * self.rows * rows / total
        self._mean += shift * rows / total
        self.rows = total

    @property
    def mean(self) -> float:
        """Mean of the values; NaN if there are none."""
        return self._mean if self.rows else math.nan

    @property
    def sd(self) -> float:
        """Standard deviation over the values."""
        return math.sqrt(self._squares / self.rows) if self.rows else math.nan

    def quantile(self, share: float) -> float:
        """Return the value below which `share` of the values lie."""
        cells = np.flatnonzero(self._counts)
        ends = np.cumsum(self._counts[cells]) / self.rows
        cell = cells[np.searchsorted(ends, share).clip(max=len(cells) - 1)]
        middle = (_edges(cell) + _edges(cell + 1)) / 2
        return float(np.clip(middle, self.least, self.most))

    def histogram(self, edges: Array) -> NDArray[np.float64]:
        """Return the share of the values in each bin; the outer bins are open."""
        cells = np.flatnonzero(self._counts)
        ends = np.stack([_edges(cells), _edges(cells + 1)], 1).clip(self.least, self.most)
        shares = np.cumsum(self._counts[cells]) / self.rows
        levels = np.stack([np.append(0, shares[:-1]), shares], 1)
        inner = np.interp(edges[1:-1], ends.reshape(-1), levels.reshape(-1), left=0, right=1)
        return np.diff(np.concatenate([[0.0], inner, [1.0]]))


def _cell(values: NDArray[np.float32]) -> NDArray[np.int32]:
    bits = np.ascontiguousarray(values + np.float32(0)).view(np.int32)  # -0 becomes 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered >> _SHIFT) + _HALF


def _edges(cells: Array) -> NDArray[np.float64]:
    ordered = ((np.asarray(cells) - _HALF) << _SHIFT).astype(np.int32)
    bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    return bits.view(np.float32).astype(np.float64)
