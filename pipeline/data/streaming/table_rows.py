"""The rows of Parquet and Arrow files, here or at a URI, in blocks that are read at once.

A block is a row group or a batch of a file, or a slice of one that is large. Rows are decoded by
the functions that read a table into memory. Raises `DataRefused` if a file has changed or cannot be
read.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data.plan import Shuffle
from pipeline.data.running_check import RunningCheck
from pipeline.data.streamed_rows import FileStamp
from pipeline.data.streaming.chunks import Chunk, RowKind, describe_rows
from serving.errors import DataRefused
from serving.io.row_formats import list_blocks
from serving.io.rows import Rows

Array = NDArray[Any]

BLOCK_BYTES = 64 << 20
"""The most bytes of decoded rows in a block: the same on every machine, as the order of an epoch
depends on the blocks. To read a slice of a row group, what stands before it is decoded too, unless
a slice before it was read last."""
_BATCH_BYTES = 4 << 20
_LEAST_ROWS = 1024


class Reader(Protocol):
    """Turns record batches into rows, in their order."""

    def read(self, batch: pa.RecordBatch) -> tuple[Array, Array]:
        """Return the good rows, and a code (rows,) for each row of the batch, 0 for a good one."""

    def finish(self) -> None:
        """Refuse what was read if it cannot be used."""


class Decoder(Protocol):
    """How the columns of a table become rows."""

    def reader(self, drop_missing: bool, *, check: bool) -> Reader:
        """Return what reads batches; with `check` it judges at the end what they hold."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A range of rows of one file, counted over all files."""

    file: int
    rows: range
    group: range
    """All rows of its row group or batch."""

    @property
    def is_whole(self) -> bool:
        """Whether they are all rows of a row group or a batch."""
        return self.rows == self.group


def find_pieces(rows: Rows, row_bytes: int) -> list[_Piece] | None:
    """Return what is read at once; None if a file can only be read from its first row on."""
    most = max(1, BLOCK_BYTES // row_bytes)
    pieces, start = [], 0
    for index, file in enumerate(rows.files):
        blocks = list_blocks(file)
        if blocks is None:
            return None
        if sum(blocks) != file.rows:
            raise DataRefused(f"{file.location} has changed since its rows were counted")
        for count in filter(None, blocks):
            parts = -(-count // most)
            edges = [start + count * part // parts for part in range(parts + 1)]
            group = range(start, start + count)
            pieces += [_Piece(index, range(*ends), group) for ends in pairwise(edges)]
            start += count
    return pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRows:
    """All rows of the files of a table; a `RowSource`."""

    kind: RowKind
    rows: Rows
    names: Sequence[str]
    """The columns to learn from."""
    label: str
    decoder: Decoder
    pieces: Sequence[_Piece]
    drop_missing: bool = False
    judge: bool = True
    """Whether the values of the rows are judged: those of a schema's cells were judged before."""

    shuffle: Shuffle = "blocks"
    cache: Path | None = None

    @property
    def total(self) -> int:
        """The number of rows."""
        return self.rows.total

    @property
    def stamps(self) -> list[FileStamp]:
        """The files as they were when their rows were counted."""
        return [FileStamp(file.location, file.size, file.version) for file in self.rows.files]

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the rows depend on, in JSON's own types."""
        options = {
            "names": list(self.names),
            "label": self.label,
            "drop_missing": self.drop_missing,
        }
        return describe_rows(self.kind, self.stamps, options)

    def chunks(self, *, check: bool) -> Iterator[Chunk]:
        """Yield all rows, a few megabytes at a time."""
        reader = self.decoder.reader(self.drop_missing, check=check)
        watch = RunningCheck(self.kind.name, self.kind.shape, self.total, self.kind.columns)
        batches = Batches(self, label=bool(self.label))
        for number, piece in enumerate(self.pieces):
            start = piece.rows.start
            for batch in batches.read(number):
                x, codes = reader.read(batch)
                good = np.flatnonzero(codes == 0)
                labels = batch.column(self.label).take(pa.array(good)) if self.label else None
                x = x.reshape(len(x), *self.kind.shape).astype(self.kind.dtype, copy=False)
                if check and self.judge:
                    watch.add(x)
                yield Chunk(x, start + good, labels)
                start += batch.num_rows
                del batch, x, labels  # before the next one is read
            pa.default_memory_pool().release_unused()  # otherwise the pool keeps what is read
        if check:
            reader.finish()
            if self.judge:
                watch.finish()

    def without(self, left_out: NDArray[np.int64]) -> "BlockRows":
        """Return all rows but those of the sorted numbers `left_out`."""
        return BlockRows(self, left_out)


class Batches:
    """Reads the batches of pieces.

    A slice that comes after the last one, in the same row group or next to it, is read on to,
    without a new start at the beginning of the row group. Of large slices, buffers and pages of all
    columns are in memory; a whole row group is read column after column.

    Args:
        source: the table.
        label: whether the column of labels is read too.
    """

    def __init__(self, source: TableRows, *, label: bool) -> None:
        self._source = source
        self._columns = [*source.names, *([source.label] if label else [])]
        self._stamps = source.stamps
        self._ends = np.cumsum([file.rows for file in source.rows.files])
        self._batch_rows = max(_LEAST_ROWS, _BATCH_BYTES // source.kind.row_bytes)
        self._next = (-1, 0)
        self._stream: Iterator[pa.RecordBatch] = iter(())
        self._rest: pa.RecordBatch | None = None

    def read(self, number: int) -> Iterator[pa.RecordBatch]:
        """Yield the batches of a piece, all of which must be taken before the next piece."""
        piece = self._source.pieces[number]
        self._stamps[piece.file].check()
        file, place = self._next
        self._next = (-1, 0)  # until all of it has been read
        if (
            piece.is_whole
            or file != piece.file
            or not piece.group.start <= place <= piece.rows.start
        ):
            self._open(piece)
            place = piece.rows.start
        for _ in self._take(piece.rows.start - place):
            pass
        yield from self._take(len(piece.rows))
        if not piece.is_whole:  # after it, the stream has nothing more
            self._next = (piece.file, piece.rows.stop)

    def _take(self, left: int) -> Iterator[pa.RecordBatch]:
        """Yield the next rows of the stream."""
        while left:
            batch = self._rest if self._rest is not None else next(self._stream)
            taken = batch.slice(0, min(left, self._batch_rows))
            rows = taken.num_rows
            self._rest = batch.slice(rows) if batch.num_rows > rows else None
            left -= rows
            yield taken
            del batch, taken  # before the next one is read

    def _open(self, piece: _Piece) -> None:
        self._rest = None
        stop, size = int(self._ends[piece.file]), self._batch_rows
        if piece.is_whole:
            stop, size = piece.rows.stop, len(piece.rows)
        self._stream = self._source.rows.read(piece.rows.start, stop, self._columns, size)


@dataclass(slots=True)
class BlockRows:
    """The rows of a table's blocks, without those that are left out; `StreamedRows`."""

    source: TableRows
    left_out: NDArray[np.int64]
    """The sorted numbers of the rows that are not among these."""

    _blocks: list[tuple[int, range]] = field(init=False)
    """The piece of each block, and the numbers of its rows."""
    _batches: Batches = field(init=False)
    _reader: Reader = field(init=False)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        ends = [piece.rows.stop for piece in self.source.pieces]
        own = np.array(ends) - np.searchsorted(self.left_out, ends)
        starts = [0, *own.tolist()]
        ranges = [range(*pair) for pair in pairwise(starts)]
        self._blocks = [(number, rows) for number, rows in enumerate(ranges) if len(rows)]
        self._batches = Batches(self.source, label=False)
        self._reader = self.source.decoder.reader(self.source.drop_missing, check=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of rows, and the shape of a row."""
        return self.source.total - len(self.left_out), *self.source.kind.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the values."""
        return self.source.kind.dtype

    @property
    def blocks(self) -> Sequence[range]:
        """The row numbers that are read at once, in order and without gaps."""
        return [rows for _, rows in self._blocks]

    def read_block(self, block: int) -> Array:
        """Return the rows of a block, (rows of the block, *x_shape)."""
        number, own = self._blocks[block]
        piece = self.source.pieces[number]
        x = np.empty((len(own), *self.source.kind.shape), self.dtype)
        start, done = piece.rows.start, 0
        with self._lock:
            for batch in self._batches.read(number):
                rows, codes = self._reader.read(batch)
                kept = np.ones(len(codes), np.bool_)
                low, high = np.searchsorted(self.left_out, [start, start + len(codes)])
                kept[self.left_out[low:high] - start] = False
                start += len(codes)
                if (codes[kept] != 0).any():
                    raise DataRefused(
                        f"{self.source.rows.files[piece.file].location} has changed since its "
                        "rows were checked: some of them cannot be used"
                    )
                kept = kept[codes == 0]
                rows = rows if kept.all() else rows[kept]
                x[done : done + len(rows)] = rows.reshape(len(rows), *x.shape[1:])
                done += len(rows)
        return x
