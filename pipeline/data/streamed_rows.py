"""Training rows that stay outside memory and are read anew in each epoch.

In: row numbers, or the number of a block. Out: rows as the data has them. Row numbers are those of
the training split: rows that are held out are not counted. Raises `DataRefused` if a file has
changed, or is gone, since the rows were counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from serving.errors import DataRefused

if TYPE_CHECKING:
    from pyarrow import fs

    from serving.io.filesystems import Location

Array = NDArray[Any]

_BLOCK_BYTES = 4 << 20


class StreamedRows(Protocol):
    """Rows (rows, *x_shape) of uint8 or float32, which are read in blocks."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of rows, and the shape of a row."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the values."""

    @property
    def blocks(self) -> Sequence[range]:
        """The row numbers that are read at once, in order and without gaps."""

    def read_block(self, block: int) -> Array:
        """Return the rows of a block, (rows of the block, *x_shape)."""


@dataclass(frozen=True, slots=True)
class FileStamp:
    """A file as it was when its rows were counted."""

    location: "Location"
    size: int
    version: str
    """See `Location.version`; empty if only the size tells whether it has changed."""

    @classmethod
    def of(cls, location: "Location", info: "fs.FileInfo | None" = None) -> "FileStamp":
        """Return the stamp of a file as it is now, or as `info` has it."""
        found = info or location.info()
        return cls(location, found.size, location.version(found))

    def check(self) -> None:
        """Look whether the file is still the same.

        Raises:
            DataRefused: it is gone, or has another size or time of change.
        """
        info = self.location.info()
        if not info.is_file:
            raise DataRefused(f"{self.location} is gone: it was there when its rows were counted")
        if (info.size, self.location.version(info)) != (self.size, self.version):
            raise DataRefused(
                f"{self.location} has changed since its rows were counted: it has {info.size:,} "
                f"bytes, and had {self.size:,}, or it was written again"
            )


@dataclass(frozen=True, slots=True)
class MappedRows:
    """The rows of a mapped file, without those that are held out; `StreamedRows`.

    `take` reads scattered rows as fast as those that follow each other.
    """

    source: Array
    """All rows of the file, (all rows, *x_shape), as `numpy.load(mmap_mode="r")` maps them."""
    held_out: Array
    """The sorted numbers, in the file, of the rows that are not among these."""
    wanted: np.dtype[Any] | None = field(kw_only=True, default=None)
    """The dtype to which values are converted, if it is not that of the file."""
    stamp: FileStamp | None = field(kw_only=True, default=None)
    """What the file must still be when rows are read."""

    _before: Array = field(init=False, repr=False)
    """The number of rows before each of `held_out` that are among these."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_before", _count_before(self.held_out))

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of rows, and the shape of a row."""
        return len(self.source) - len(self.held_out), *self.source.shape[1:]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the values."""
        return self.source.dtype if self.wanted is None else self.wanted

    @property
    def blocks(self) -> Sequence[range]:
        """Ranges of rows of some megabytes."""
        rows, step = self.shape[0], self._block_rows
        return [range(start, min(start + step, rows)) for start in range(0, rows, step)]

    @property
    def _block_rows(self) -> int:
        return max(1, _BLOCK_BYTES // max(1, self.source[:1].nbytes))

    def read_block(self, block: int) -> Array:
        """Return the rows of a block, (rows of the block, *x_shape)."""
        start = block * self._block_rows
        return self.take(np.arange(start, min(start + self._block_rows, self.shape[0])))

    def take(self, rows: Array) -> Array:
        """Return the rows of these numbers, (len(rows), *x_shape), in their order."""
        if self.stamp is not None:
            self.stamp.check()
        return np.asarray(self.source[_count_up(rows, self._before)], self.dtype)


def count_up(rows: Array, left_out: Array) -> Array:
    """Return the numbers, among all rows, of rows that are counted without those left out.

    `left_out` must be sorted.
    """
    return _count_up(rows, _count_before(left_out))


def _count_before(left_out: Array) -> Array:
    """Return how many rows that are not left out stand before each that is."""
    return np.asarray(left_out - np.arange(len(left_out)))


def _count_up(rows: Array, before: Array) -> Array:
    return np.asarray(rows + np.searchsorted(before, rows, "right"))
