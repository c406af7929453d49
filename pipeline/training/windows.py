"""The order of rows that are read in blocks: blocks at random, a window of them at a time.

An epoch's blocks come in a random order, are divided into windows, and the rows of a window are
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
"""The most rows of a window, and its bytes if that is more rows. If there are several windows, each
has at least half of that, less a block."""
MEMORY_SHARE = 8
"""The share of the memory that a window may take, and a permutation of all rows: one in so many.
Two windows are in memory at a time: one that is trained on, and one that is being read. A block of
more rows is a window of its own."""
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
    """Return the most rows of a window of several blocks; 0 if an epoch has one order of all rows.

    It has one if rows can be read in any order, and that order fits in its share of `memory`.
    """
    rows, share = x.shape[0], memory // MEMORY_SHARE
    if isinstance(x, MappedRows) and rows * passes * _ORDER_BYTES <= share:
        return 0
    row_bytes = math.prod(x.shape[1:]) * x.dtype.itemsize + _ORDER_BYTES
    return max(1, min(max(WINDOW_ROWS, WINDOW_BYTES // row_bytes), share // row_bytes))


def largest_window(x: StreamedRows, window_rows: int) -> int:
    """Return the rows that no window exceeds: `window_rows`, all rows, or those of a block."""
    return max(min(window_rows, x.shape[0]), *map(len, x.blocks))


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
                read = _read(x, chosen, sizes[chosen], closing)
                if read is None:
                    return
                order = _random(seed, epoch, number, index).permutation(rows)
                yield Window(epoch, start, read, order)
            start += rows


def _group(blocks: Numbers, sizes: Numbers, window_rows: int) -> list[Numbers]:
    """Divide blocks into few windows of about equal size.

    None has more than `window_rows` rows, unless it is a single block.
    """
    left, filled, wanted = int(sizes.sum()), 0, 0.0
    edges = []
    for place, size in enumerate(sizes.tolist()):
        if filled >= wanted or filled + size > window_rows:
            edges.append(place)
            filled, wanted = 0, left / math.ceil(left / window_rows)
        filled += size
        left -= size
    return np.split(blocks, edges[1:])


def _read(x: StreamedRows, blocks: Numbers, sizes: Numbers, closing: Event | None) -> Array | None:
    """Read blocks in the order of the files, each to its place among `blocks`.

    Slices of a row group that are read forward are decoded once.
    """
    read = np.empty((sizes.sum(), *x.shape[1:]), x.dtype)
    stops = np.cumsum(sizes)
    for place in np.argsort(blocks).tolist():
        if closing is not None and closing.is_set():
            return None
        stop = stops[place]
        read[stop - sizes[place] : stop] = x.read_block(int(blocks[place]))
    return read


def _random(seed: int, *key: int) -> np.random.Generator:
    sequence = np.random.SeedSequence(seed, spawn_key=key)  # a key of its own for each length
    return np.random.Generator(np.random.Philox(sequence))
