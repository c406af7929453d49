"""Map the rows of a file into memory: of an `.npy` or plain IDX file, row after row.

Raises `DataRefused` if the file is cut off or does not hold rows of numbers.
"""

import hashlib
import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.plan import Shuffle
from pipeline.data.running_check import RunningCheck
from pipeline.data.selection import Selection
from pipeline.data.streamed_rows import FileStamp, MappedRows
from pipeline.data.streaming.chunks import CHUNK_BYTES, Chunk, RowKind, describe_rows
from serving.errors import DataRefused
from serving.files import reading
from serving.io.array_streams import open_array
from serving.io.filesystems import locate
from serving.io.remote_paths import Place

Array = NDArray[Any]


class MappedFile:
    """A mapped file, whose pages this process can give back."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def array(self, dtype: np.dtype[Any], shape: tuple[int, ...], start: int) -> Array:
        """Return the values from byte `start` on, read-only."""
        return np.frombuffer(self._pages, dtype, math.prod(shape), start).reshape(shape)

    def release(self) -> None:
        """Give the pages back that were read; they remain in the page cache."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._pages.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedSource:
    """All rows of a mapped file; a `RowSource`."""

    kind: RowKind
    values: Array
    """(rows, *x_shape), in the type that the file has."""
    stamp: FileStamp
    mapping: MappedFile
    drop_missing: bool = False
    checked: bool = False
    """Whether the rows were checked before they were written."""
    cache: Path | None = None
    once: bool = False
    """Whether the file is of no use to others, as what it was made of may change unseen."""
    sha256: str = ""
    """Of the bytes of all rows, if they are to be compared with it."""
    labels: Any = None
    """A numpy or Arrow array (rows,), if the rows have labels."""

    shuffle: Shuffle = "rows"

    @property
    def total(self) -> int:
        """The number of rows."""
        return len(self.values)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the rows depend on, in JSON's own types."""
        if self.once:
            return {}
        options = {"drop_missing": self.drop_missing, "labels": self.labels is not None}
        return describe_rows(self.kind, [self.stamp], options)

    def chunks(self, *, check: bool) -> Iterator[Chunk]:
        """Yield all rows, a few megabytes at a time."""
        kind, values = self.kind, self.values
        watch = RunningCheck(kind.name, kind.shape, self.total, kind.columns, self.drop_missing)
        row_bytes = max(1, values[:1].nbytes)
        step = max(1, CHUNK_BYTES // row_bytes)
        sha = hashlib.sha256()
        for start in range(0, self.total, step):
            self.stamp.check()
            x = values[start : start + step]
            if self.sha256:
                sha.update(x.reshape(-1).view(np.uint8).data)
            numbers = np.arange(start, start + len(x))
            labels = None if self.labels is None else self.labels[start : start + step]
            if not self.checked:
                x, kept = watch.add(x)
                if not kept.all():
                    numbers = numbers[kept]
                    labels = None if labels is None else labels[kept]
            yield Chunk(x.astype(kind.dtype, copy=False), numbers, labels)
            self.mapping.release()
        if check and not self.checked:
            watch.finish()
        if self.sha256 and sha.hexdigest() != self.sha256:
            raise DataRefused(
                f"{self.stamp.location} is damaged: delete it, and its rows are decoded again"
            )

    def without(self, left_out: NDArray[np.int64]) -> MappedRows:
        """Return all rows but those of the sorted numbers `left_out`."""
        return MappedRows(
            self.values,
            left_out,
            wanted=self.kind.dtype,
            stamp=self.stamp,
        )


def map_array(path: Place, name: str, selection: Selection) -> MappedSource | None:
    """Map an `.npy` or IDX file; None if it is compressed, at a URI, or not stored row by row."""
    if not isinstance(path, Path):
        return None
    with reading(path), path.open("rb") as file, open_array(path, file) as found:
        if found.is_packed or found.by_columns:
            return None
        start = file.tell()
        if found.dtype.kind not in "buif":
            raise DataRefused(f"{path} must be numbers, got {found.dtype}")
        if len(found.shape) < 2 or not math.prod(found.shape):
            raise DataRefused(
                f"{path} must be rows of features, at least one of each; got {found.shape}"
            )
        stamp = stamp_file(path)
        if stamp.size != start + found.value_bytes:
            raise DataRefused(
                f"{path} is cut off or too long: shape {found.shape} needs "
                f"{start + found.value_bytes} bytes, got {stamp.size}"
            )
        mapping = MappedFile(path)
        values = mapping.array(found.dtype, found.shape, start)
    kind = fit_model(
        RowKind(
            name=name,
            shape=values.shape[1:],
            dtype=np.dtype(np.uint8 if values.dtype == np.uint8 else np.float32),
        ),
        selection,
    )
    return MappedSource(
        kind=kind,
        values=values.reshape(len(values), *kind.shape),
        stamp=stamp,
        mapping=mapping,
        drop_missing=selection.drop_missing,
    )


def fit_model(kind: RowKind, selection: Selection) -> RowKind:
    """Return rows in the model's shape and dtype, if there is a model that takes them so."""
    if len(kind.shape) == 1 and kind.shape[0] == math.prod(selection.x_shape or (0,)):
        kind = replace(kind, shape=tuple(selection.x_shape))
    return replace(kind, dtype=np.dtype(np.float32)) if selection.x_dtype == "float32" else kind


def stamp_file(path: Path) -> FileStamp:
    """Return what shows whether a file has changed."""
    return FileStamp.of(locate(str(path)))
