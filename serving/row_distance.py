"""How far a row of a mixed table is from the rows that a model was trained on.

Training rows are gathered around centres, and a row is as far as its nearest centre. A number, or
the log of a count or of a positive number, is in units of its column's standard deviation; a word
is a unit vector of its column (one-hot), and so is a gap. The method of k nearest neighbours takes
such distances from the rows themselves, which a bundle need not hold then.

Numbers are rounded to steps, so that each cell's part of the distance is looked up by its code.
In: centres and rows `x` (rows, columns). Out: distances (rows,). They depend on the row alone: no
product of matrices is taken, whose bits depend on how many rows there are.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

STEPS = 8
"""Of a number in a standard deviation."""
FARTHEST = 4
"""Standard deviations from the mean beyond which a number is no farther."""
_ENDS = STEPS * FARTHEST
_BLOCK_ROWS = 128
"""Rows at a time, whose distances from all centres fit the processor's second cache."""


@dataclass(frozen=True, slots=True)
class CellCodes:
    """The code of each cell: a number's steps from the least one, a word's own; then a gap."""

    words: NDArray[np.int64]
    """The number of words of each column, (columns,); 0 for numbers."""
    offset: NDArray[np.float64]
    """What is added to numbers before their log is taken, (columns,)."""
    least: NDArray[np.float64]
    """Sums below this count as it, (columns,); 0 where no log is taken."""
    shift: NDArray[np.float64]
    """The mean of each column of numbers or of their logs, (columns,)."""
    scale: NDArray[np.float64]
    """Its standard deviation, (columns,)."""

    @property
    def gap(self) -> NDArray[np.int64]:
        """The code of a gap, (columns,), which is the last; that of other words stands before."""
        return np.where(self.words > 0, self.words, 2 * _ENDS) + 1

    def __call__(self, x: Array) -> NDArray[np.int64]:
        """Return the codes of rows, (rows, columns); what is no code of a word is another word."""
        is_word = self.words > 0
        steps = np.rint((self.bend(x) - self.shift) * (STEPS / self.scale))
        codes = np.clip(steps, -_ENDS, _ENDS) + _ENDS
        if is_word.any():
            values, other = x[:, is_word], self.words[is_word]
            is_code = (values >= -0.5) & (values <= other)
            codes[:, is_word] = np.where(is_code, np.rint(values), other)
        return np.where(np.isnan(x), self.gap, codes).astype(np.int64)

    def bend(self, x: Array) -> NDArray[np.float64]:
        """Return numbers as they are, or their logs, (rows, columns)."""
        values, bent = np.array(x, np.float64), self.least > 0
        if bent.any():
            sums = values[:, bent] + self.offset[bent]
            values[:, bent] = np.log(np.maximum(sums, self.least[bent]))  # NaN stays NaN
        return values

    def vectors(self) -> list[NDArray[np.float32]]:
        """Return of each column what its codes stand for, (codes, axes): distances are Euclidean.

        Of a number the axes are the number and whether it is a gap, which is 0 in the first.
        """
        numbers = np.zeros((2 * _ENDS + 2, 2), np.float32)
        numbers[:-1, 0] = np.arange(-_ENDS, _ENDS + 1) / STEPS
        numbers[-1, 1] = 1
        return [np.eye(count + 2, dtype=np.float32) if count else numbers for count in self.words]

    def encode(self, x: Array) -> NDArray[np.float32]:
        """Return rows as vectors of all columns, (rows, axes)."""
        pairs = zip(self.vectors(), self(x).T, strict=True)
        return np.concatenate([vectors[codes] for vectors, codes in pairs], axis=1)


@dataclass(frozen=True)
class RowDistance:
    """The distance of rows from the nearest of some centres."""

    codes: CellCodes
    centres: NDArray[np.float32]
    """Means of encoded rows, (centres, axes)."""

    @cached_property
    def _tables(self) -> list[NDArray[np.float32]]:
        """Of each column the square of the distance of each code from each centre."""
        vectors = self.codes.vectors()
        ends = np.cumsum([own.shape[1] for own in vectors])
        parts = zip(vectors, np.split(self.centres, ends[:-1], axis=1), strict=True)
        return [np.square(own[:, None] - means).sum(-1) for own, means in parts]

    def __call__(self, x: Array) -> NDArray[np.float32]:
        """Return the distances of rows (rows, columns), (rows,)."""
        codes, found = self.codes(x), np.empty(len(x), np.float32)
        for start in range(0, len(x), _BLOCK_ROWS):
            block = codes[start : start + _BLOCK_ROWS]
            squares = np.zeros((len(block), len(self.centres)), np.float32)
            for table, column in zip(self._tables, block.T, strict=True):
                squares += table.take(column, axis=0)
            found[start : start + _BLOCK_ROWS] = squares.min(1)
        return np.sqrt(found)
