"""What a source of rows gives that is read in order, a part at a time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.data.plan import Shuffle
from pipeline.data.streamed_rows import FileStamp, StreamedRows
from serving.schema import Schema

Array = NDArray[Any]

CHUNK_BYTES = 4 << 20
"""Bytes of rows that are read at once, where the format leaves the choice."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows that follow each other in a source, without those that are left out."""

    x: Array
    """(rows, *x_shape), uint8 or float32."""
    numbers: NDArray[np.int64]
    """Their numbers in the source (rows,), in order."""
    labels: Any = None
    """An Arrow array or a numpy array (rows,), if the source has labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowKind:
    """What all rows of a source have in common."""

    name: str
    """The source, in messages."""
    shape: tuple[int, ...]
    """The shape of a row."""
    dtype: np.dtype[Any]
    columns: tuple[str, ...] = ()
    """Names of the features, if the source is a table with a column for each."""
    schema: Schema | None = None
    """By which the table is read, if its cells are of several kinds."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


class RowSource(Protocol):
    """Rows outside memory; their numbers count also those that are left out for a gap."""

    @property
    def kind(self) -> RowKind:
        """What the rows have in common."""

    @property
    def total(self) -> int:
        """The number of rows."""

    @property
    def shuffle(self) -> Shuffle:
        """How an epoch can order the rows."""

    @property
    def cache(self) -> Path | None:
        """The file that was made of the source, if one was."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the rows depend on: files, sizes, times, and what is chosen; in JSON's own types.

        It is empty if nothing tells whether a file has changed, so that nothing may be kept of it.
        """

    def chunks(self, *, check: bool) -> Iterator[Chunk]:
        """Yield all rows; with `check`, refuse them at the end if a model cannot learn from them.

        Raises:
            DataRefused: a file cannot be read, or rows cannot be used.
        """

    def without(self, left_out: NDArray[np.int64]) -> StreamedRows:
        """Return all rows but those of the sorted numbers `left_out`."""


def describe_rows(
    kind: RowKind, files: Sequence[FileStamp], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what rows depend on, in JSON's own types; nothing if a file may change unseen."""
    if not all(file.version for file in files):
        return {}
    return {
        "files": [(str(file.location), file.size, file.version) for file in files],
        "options": options,
        "shape": kind.shape,
        "dtype": str(kind.dtype),
        "columns": kind.columns,
        "schema": kind.schema.to_json() if kind.schema else None,
    }
