"""Training rows that stay outside memory and are read anew in each epoch.

In: row numbers, or the number of a block. Out: rows as the data has them. Row numbers are those of
the training split: rows that are held out are not counted. Raises `DataRefused` if a file has
changed, or is gone, since the rows were counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_BLOCK_BYTES = 4 << 20


class StreamedRows(Protocol):
    """Rows (rows, *x_shape) of uint8 or float32."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of rows, and the shape of a row."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the values."""

    @property
    def blocks(self) -> Sequence[range]:
        """The row numbers that are read at once, in order and without gaps."""

    @property
    def random_access(self) -> bool:
        """Whether `take` reads scattered rows as fast as those that follow each other."""

    def read_block(self, block: int) -> Array:
        """Return the rows of a block, (rows of the block, *x_shape)."""

    def take(self, rows: Array) -> Array:
        """Return the rows of these numbers, (len(rows), *x_shape), in their order."""


@dataclass(frozen=True, slots=True)
class MappedRows:
    """The rows of a mapped file, without those that are held out."""

    source: Array
    """All rows of the file, (all rows, *x_shape), as `numpy.load(mmap_mode="r")` maps them."""
    held_out: Array
    """The sorted numbers, in the file, of the rows that are not among these."""

    random_access = True

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of rows, and the shape of a row."""
        return len(self.source) - len(self.held_out), *self.source.shape[1:]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the values."""
        return self.source.dtype

    @property
    def blocks(self) -> Sequence[range]:
        """Ranges of rows of some megabytes."""
        rows = self.shape[0]
        step = max(1, _BLOCK_BYTES // max(1, self.source[:1].nbytes))
        return [range(start, min(start + step, rows)) for start in range(0, rows, step)]

    def read_block(self, block: int) -> Array:
        """Return the rows of a block, (rows of the block, *x_shape)."""
        return self.take(np.asarray(self.blocks[block]))

    def take(self, rows: Array) -> Array:
        """Return the rows of these numbers, (len(rows), *x_shape), in their order."""
        before = np.searchsorted(self.held_out - np.arange(len(self.held_out)), rows, "right")
        return np.asarray(self.source[rows + before])
