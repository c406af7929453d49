"""The order of rows that are read in blocks: blocks at random, a window of them at a time.

An epoch's blocks come in a random order. They are read into windows, and the rows of a window are
permuted. If one window holds all rows, that is a permutation of all rows. The order depends on
nothing but the seed of the training, the number of the epoch and the size of the windows, so that
windows can be read before the epoch begins, and any of them again when a training is resumed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.streamed_rows import MappedRows, StreamedRows

Array = NDArray[Any]
Numbers = NDArray[np.int64]

WINDOW_ROWS, WINDOW_BYTES = 1 << 18, 1 << 30
"""The most rows of a window, and its bytes if that is more rows. Windows are of equal size up to a
block, so that if there are several, each has at least half of that."""
MEMORY_SHARE = 8
"""The share of the memory that a window may take, and a permutation of all rows: one in so many.
Two windows are in memory at a time: one that is trained on, and one that is being read."""
_ORDER_BYTES = 8


@dataclass(frozen=True, slots=True)
class Window:
    """Rows in memory, and the order in which they are trained on."""

    epoch: int
    start: int
    """The place, in the epoch, of the first row in this order."""
    x: Array
    """(rows, *x_shape)"""
    order: Numbers
    """A permutation of the rows (rows,)."""

    @property
    def stop(self) -> int:
        """The place, in the epoch, after the last row."""
        return self.start + len(self.order)


def choose_window(x: StreamedRows, passes: int, memory: int) -> int:
    """Return the most rows of a window; 0 if an epoch has one order of all rows.

    It has one if rows can be read in any order, and that order fits in its share of `memory`.
    """
    rows, share = x.shape[0], memory // MEMORY_SHARE
    if isinstance(x, MappedRows) and rows * passes * _ORDER_BYTES <= share:
        return 0
    row_bytes = math.prod(x.shape[1:]) * x.dtype.itemsize + _ORDER_BYTES
    return max(1, min(max(WINDOW_ROWS, WINDOW_BYTES // row_bytes), share // row_bytes))


def read_windows(
    x: StreamedRows,
    window_rows: int,
    *,
    seed: int,
    epoch: int,
    passes: int = 1,
    position: int = 0,
    closing: Event | None = None,
) -> Iterator[Window]:
    """Read the windows of an epoch, except those that end before row `position` of its order.

    Between two blocks it looks whether it is `closing`, and ends if it is.

    Raises:
        DataRefused: a file has changed, or is gone.
    """
    sizes = np.array([len(block) for block in x.blocks])
    start = 0
    for number in range(passes):
        blocks = _random(seed, epoch, number).permutation(len(sizes))
        for index, chosen in enumerate(_group(blocks, sizes[blocks], window_rows)):
            rows = int(sizes[chosen].sum())
            if start + rows > position:
                read = _read(x, chosen, rows, closing)
                if read is None:
                    return
                order = _random(seed, epoch, number, index).permutation(rows)
                yield Window(epoch, start, read, order)
            start += rows


def _group(blocks: Numbers, sizes: Numbers, window_rows: int) -> Iterator[Numbers]:
    """Divide blocks into the least number of windows, equal up to a block."""
    rows = int(sizes.sum())
    count = math.ceil(rows / window_rows)
    window = (np.cumsum(sizes) - sizes) * count // rows
    yield from np.split(blocks, np.flatnonzero(np.diff(window)) + 1)


def _read(x: StreamedRows, blocks: Numbers, rows: int, closing: Event | None) -> Array | None:
    read = np.empty((rows, *x.shape[1:]), x.dtype)
    start = 0
    for number in blocks.tolist():
        if closing is not None and closing.is_set():
            return None
        block = x.read_block(number)
        read[start : start + len(block)] = block
        start += len(block)
    return read


def _random(seed: int, *key: int) -> np.random.Generator:
    sequence = np.random.SeedSequence(seed, spawn_key=key)  # a key of its own for each length
    return np.random.Generator(np.random.Philox(sequence))
