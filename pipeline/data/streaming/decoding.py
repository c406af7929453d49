"""Decode, from the first row to the last, what can be neither mapped nor read by blocks.

Folders of images, CSV, arrays that are compressed, stored by columns or at a URI, and tables in
files without row groups: `pipeline.data.streaming.row_cache` keeps what is decoded here. Raises
`DataRefused` if rows cannot be used.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data.image_folder import ImageFolder
from pipeline.data.running_check import RunningCheck
from pipeline.data.selection import Selection
from pipeline.data.streamed_rows import FileStamp
from pipeline.data.streaming.chunks import CHUNK_BYTES, Chunk, RowKind
from pipeline.data.streaming.mapped import fit_model
from pipeline.data.streaming.table_rows import Decoder
from serving.errors import DataRefused
from serving.files import reading
from serving.io.array_rows import count_array, read_array_rows
from serving.io.array_streams import open_array
from serving.io.filesystems import Location

Array = NDArray[Any]


class Decodable(Protocol):
    """Rows that are decoded in order, all or none."""

    @property
    def kind(self) -> RowKind:
        """What the rows have in common."""

    @property
    def files(self) -> list[FileStamp]:
        """The files that the rows are in."""

    @property
    def options(self) -> Mapping[str, Any]:
        """What else decides what is decoded, in JSON's own types."""

    @property
    def most_rows(self) -> int:
        """The number of rows, or a bound of it."""

    @property
    def exact(self) -> bool:
        """Whether `most_rows` is the number of rows."""

    def chunks(self) -> Iterator[Chunk]:
        """Yield all rows but those left out, and judge them at the end."""


@dataclass(frozen=True, slots=True)
class DecodedImages:
    """The images of a folder."""

    folder: ImageFolder
    kind: RowKind

    exact = True

    @property
    def files(self) -> list[FileStamp]:
        """The images."""
        return [FileStamp.of(location, info) for _, location, info in self.folder.files]

    @property
    def options(self) -> Mapping[str, Any]:
        """Nothing."""
        return {}

    @property
    def most_rows(self) -> int:
        """The number of images."""
        return len(self.folder.files)

    def chunks(self) -> Iterator[Chunk]:
        """Yield all images."""
        self.folder.require_one_size()
        labels = self.folder.labels
        step = max(1, CHUNK_BYTES // self.kind.row_bytes)
        for start in range(0, self.most_rows, step):
            x = self.folder.read_some(start, start + step, self.kind.shape)
            numbers = np.arange(start, start + len(x))
            x = x.astype(self.kind.dtype, copy=False)
            yield Chunk(x, numbers, None if labels is None else labels[start : start + len(x)])


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedTable:
    """The rows of a table."""

    kind: RowKind
    files: list[FileStamp]
    most_rows: int
    exact: bool
    open: Callable[[], AbstractContextManager[Iterator[pa.RecordBatch]]]
    """Opens the batches of all rows."""
    label: str
    decoder: Decoder
    selection: Selection
    judge: bool
    """Whether the values of the rows are judged, and not the cells alone."""

    @property
    def options(self) -> Mapping[str, Any]:
        """What is chosen of the table, and how it is read."""
        chosen = self.selection
        return {
            "columns": list(chosen.columns),
            "label": chosen.label,
            "delimiter": chosen.delimiter,
            "drop_missing": chosen.drop_missing,
        }

    def chunks(self) -> Iterator[Chunk]:
        """Yield all rows."""
        kind, drop = self.kind, self.selection.drop_missing
        reader = self.decoder.reader(drop, check=True)
        watch = RunningCheck(kind.name, kind.shape, self.most_rows, kind.columns)
        start = 0
        with self.open() as batches:
            for batch in batches:
                x, codes = reader.read(batch)
                good = np.flatnonzero(codes == 0)
                labels = batch.column(self.label).take(pa.array(good)) if self.label else None
                if self.judge:
                    watch.add(x)
                x = x.reshape(len(x), *kind.shape).astype(kind.dtype, copy=False)
                yield Chunk(x, start + good, labels)
                start += batch.num_rows
        reader.finish()
        if self.judge:
            watch.finish()


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedArray:
    """The rows of an array of an `.npy`, `.npz` or IDX file."""

    kind: RowKind
    location: Location
    array: str
    most_rows: int
    shape: tuple[int, ...]
    """The shape of a row in the file."""
    drop_missing: bool
    labels: Array | None = None

    exact = True

    @property
    def files(self) -> list[FileStamp]:
        """The file."""
        return [FileStamp.of(self.location)]

    @property
    def options(self) -> Mapping[str, Any]:
        """The name of the array, and whether rows are left out."""
        return {"array": self.array, "drop_missing": self.drop_missing}

    def chunks(self) -> Iterator[Chunk]:
        """Yield all rows."""
        kind, location = self.kind, self.location
        watch = RunningCheck(kind.name, kind.shape, self.most_rows, (), self.drop_missing)
        step = max(1, CHUNK_BYTES // kind.row_bytes)
        batches = read_array_rows(self.array, location, 0, self.most_rows, ["x"], step)
        start = 0
        with reading(location, pa.ArrowException):
            for batch in batches:
                x, kept = watch.add(self._to_rows(batch))
                numbers = start + np.flatnonzero(kept)
                x = x.reshape(len(x), *kind.shape).astype(kind.dtype, copy=False)
                yield Chunk(x, numbers, None if self.labels is None else self.labels[numbers])
                start += batch.num_rows
        watch.finish()

    def _to_rows(self, batch: pa.RecordBatch) -> Array:
        values = batch.column(0)
        for _ in self.shape:
            values = values.flatten()
        return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(-1, *self.shape)


def open_decoded_array(
    location: Location, array: str, name: str, selection: Selection, labels: Array | None
) -> DecodedArray:
    """Open an array by its header.

    Raises:
        DataRefused: it is cut off, or does not hold rows of numbers.
    """
    with reading(location, pa.ArrowException):
        _, rows = count_array(location, array)
        with location.open() as stream, open_array(location, stream, array) as found:
            dtype, shape = found.dtype, found.shape[1:]
    if not rows or not shape or 0 in shape:
        raise DataRefused(
            f"{location} must be rows of features, at least one of each; got {(rows, *shape)}"
        )
    plain = RowKind(
        name=name, shape=shape, dtype=np.dtype(np.uint8 if dtype == np.uint8 else np.float32)
    )
    return DecodedArray(
        kind=fit_model(plain, selection),
        location=location,
        array=array,
        most_rows=rows,
        shape=shape,
        drop_missing=selection.drop_missing,
        labels=labels,
    )
