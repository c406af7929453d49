"""Counters and flags that the processes of one server share, in a memory-mapped file.

Each process writes its own row of float64 cells and reads all rows, so that no lock is needed
and no count is lost when a worker dies. Row 0 belongs to the parent.
"""

import mmap
import os
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import get_args

from serving.errors import VaeError
from serving.operations import OperationName

OPERATIONS: tuple[str, ...] = get_args(OperationName)
TRANSPORTS = ("rest", "grpc")
STATUSES = (200, 400, 401, 403, 404, 405, 408, 413, 415, 429, 499, 500, 503, 504)
"""Answers are counted by HTTP status, those of gRPC too. 499: the client closed the connection."""
SECONDS = (1e-4, 25e-5, 5e-4, 1e-3, 25e-4, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
HISTOGRAMS: Mapping[str, tuple[float, ...]] = {
    "request": SECONDS,
    "queue": SECONDS,
    "compute": SECONDS,
    "encode": SECONDS,
    "batch_rows": ROWS,
}
"""Upper bounds of the buckets of each operation's histograms."""
GAUGES = ("ready", "queued_rows", "queued_bytes")
COUNTERS = ("reloads", "reload_failures", "registry_failures")
UNKNOWN_CELLS = ("unseen_words", "new_gaps")
"""Counters of each operation: cells of tables that a schema does not know."""
FLAGS = (
    "draining",
    "stopping",
    "started",
    "poll_requests",
    *(f"unloaded.{operation}" for operation in OPERATIONS),
)


def _fields() -> Iterator[tuple[object, ...]]:
    for name in (*GAUGES, *COUNTERS, *FLAGS):
        yield (name,)
    for operation in OPERATIONS:
        for transport in TRANSPORTS:
            for status in STATUSES:
                yield ("requests", operation, transport, status)
        for name in ("rows", "last_inference", "request_compute", *UNKNOWN_CELLS):
            yield (name, operation)
        for name, bounds in HISTOGRAMS.items():
            for place in range(len(bounds) + 1):
                yield (name, operation, place)
            yield (name, operation, "sum")


CELLS: Mapping[tuple[object, ...], int] = {field: place for place, field in enumerate(_fields())}


def _reserve(file: FileIO, size: int) -> None:
    """Fill a new file with zeros: on a full disk, writing to a page without a block kills us."""
    try:
        while (missing := size - file.seek(0, os.SEEK_END)) > 0:
            file.write(bytes(missing))
    except OSError as err:
        raise VaeError(
            f"cannot reserve {size} bytes for the counters in {Path(file.name).parent}: "
            f"{err.strerror}; make room there, or name another temporary folder in TMPDIR"
        ) from err


class SharedCounters:
    """The shared file, as one process sees it.

    Args:
        path: the file, made if it is missing.
        rows: one for the parent and one for each worker.
        row: the row that this process writes: 0 for the parent, from 1 for workers.

    Raises:
        VaeError: there is no room for the file.
    """

    def __init__(self, path: Path, rows: int, row: int) -> None:
        size = rows * len(CELLS) * 8
        with path.open("a+b", buffering=0) as file:
            _reserve(file, size)
            self._cells = memoryview(mmap.mmap(file.fileno(), size)).cast("d")
        self.rows = rows
        self._first = row * len(CELLS)
        self._histograms = {
            (name, operation): (bounds, self._first + CELLS[(name, operation, 0)])
            for name, bounds in HISTOGRAMS.items()
            for operation in OPERATIONS
        }

    def add(self, *field: object, value: float = 1.0) -> None:
        """Add to a cell of this process."""
        self._cells[self._first + CELLS[field]] += value

    def set(self, *field: object, value: float) -> None:
        """Set a cell of this process."""
        self._cells[self._first + CELLS[field]] = value

    def observe(self, name: str, operation: str, value: float) -> None:
        """Count a value in a histogram of this process."""
        bounds, place = self._histograms[(name, operation)]
        self._cells[place + bisect_left(bounds, value)] += 1
        self._cells[place + len(bounds) + 1] += value

    def total(self, *field: object) -> float:
        """Return the sum of a cell over all processes."""
        return sum(self._cells[CELLS[field] :: len(CELLS)])

    def maximum(self, *field: object) -> float:
        """Return the largest value of a cell over all processes."""
        return max(self._cells[CELLS[field] :: len(CELLS)])

    def get(self, *field: object, row: int = 0) -> float:
        """Return a cell of one process, by default the parent's, which holds the flags."""
        return self._cells[row * len(CELLS) + CELLS[field]]

    def set_flag(self, *field: object, value: float) -> None:
        """Set a flag, which any process may do; it is kept in the parent's row."""
        self._cells[CELLS[field]] = value
