"""Rows of files as record batches, in bounded memory: Parquet, Arrow IPC, arrays, CSV, pictures.

In: a file, a folder, a pattern or a URI. Out: batches of a range of rows, which are counted over
the files in the order of their names. What a file is shows in its first bytes, CSV in its name. The
rows of an array are a column `x`; a PNG or JPEG is one row, its bytes are `x`, and so is a file of
such a name whatever it holds: a bad one is a bad row. Memory is bounded by a batch, for Arrow IPC
by one of the file's own batches.
Raises `DataRefused` where a file cannot be read.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import dataset, ipc, parquet

from serving.errors import DataRefused, UsageRefused, VaeError
from serving.files import READ_ERRORS
from serving.io import csv_rows
from serving.io.array_rows import count_array, read_array_rows
from serving.io.filesystems import Place, find_files
from serving.io.images import IMAGE_SUFFIXES
from serving.io.row_filter import Where, parse_where

FILE, ROW = "file", "row"
DEFAULT_IDS = (FILE, ROW)
"""The file's name relative to the input, and the row's index in its file."""
_READ_BYTES = 1 << 20
_PICTURE = pa.schema([("x", pa.binary())])

Counter = Callable[[Place], tuple[pa.Schema, int]]
Reader = Callable[[Place, int, int, Sequence[str], int], Iterator[pa.RecordBatch]]


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file of rows: what it is, and what tells whether it has changed."""

    name: str
    place: Place
    size: int
    mtime_ns: int | None
    schema: pa.Schema
    rows: int
    read: Reader


class Rows:
    """The rows of all files at a location, in order.

    Args:
        location: a file, a folder, a pattern or a URI.
        ids: columns that identify a row; empty for `file` and `row`, None for none.
        where: a filter, see `serving.io.row_filter`; empty for all rows.

    Raises:
        DataRefused: there are no rows, or a file cannot be read.
        UsageRefused: the filter or an id does not fit the columns.
    """

    def __init__(self, location: str, ids: Sequence[str] | None = (), where: str = "") -> None:
        self.location = location
        found = find_files(location)
        self.files = [_open(name, place, info, ids or ()) for name, place, info in found]
        self.total = sum(file.rows for file in self.files)
        if not self.total:
            raise DataRefused(f"{location} must hold at least one row, it has none")
        self.schema = self.files[0].schema
        self._numbered = ids is not None and not ids
        self.ids = DEFAULT_IDS if self._numbered else tuple(ids or ())
        if self._numbered:
            self.schema = _with_ids(self.schema)
        self.where: Where | None = parse_where(where, self.schema) if where else None

    def read(
        self, start: int, stop: int, columns: Sequence[str], batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Batches of rows `start` to `stop`, with `columns`, the ids and what `keep` looks at.

        A batch has at most `batch_rows` rows, all of one file.
        """
        needed = dict.fromkeys((*columns, *self.ids, *(self.where.columns if self.where else ())))
        for file, low, high in self._ranges(start, stop):
            names = [name for name in needed if not (self._numbered and name in DEFAULT_IDS)]
            if missing := [name for name in names if name not in file.schema.names]:
                raise DataRefused(f"{file.place} has no column {missing[0]!r}")
            row = low
            batches = file.read(file.place, low, high, names, batch_rows)
            for batch in _reading_all(file.place, batches):
                rows = batch.num_rows
                if self._numbered:
                    batch = _number(batch, file.name, row)
                row += rows
                yield batch
            if row != high:
                raise DataRefused(f"{file.place} ends at row {row}, it said {file.rows}")

    def keep(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows of a batch that the filter lets through."""
        return self.where.apply(batch) if self.where else batch

    def _ranges(self, start: int, stop: int) -> Iterator[tuple[InputFile, int, int]]:
        """The files that hold rows `start` to `stop`, with the range in each."""
        first = 0
        for file in self.files:
            low, high = max(0, start - first), min(file.rows, stop - first)
            if low < high:
                yield file, low, high
            first += file.rows


def _open(name: str, place: Place, info: Any, ids: Sequence[str]) -> InputFile:
    read: Reader
    with reading(place):
        is_picture = place.path.lower().endswith(IMAGE_SUFFIXES)
        if info.size == 0 and not is_picture:
            raise DataRefused(f"{place} is empty")
        if place.path.lower().endswith(".csv"):
            schema, rows = _count_csv(place, ids)
            read = partial(_read_csv, schema)
            return InputFile(name, place, info.size, info.mtime_ns, schema, rows, read)
        with place.open() as stream:
            head = bytes(stream.read(8))
        kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
        if kind is None and is_picture:
            kind = "picture"
        if kind is None:
            raise DataRefused(
                f"{place} is no Parquet, Arrow IPC, .npy, .npz, IDX, PNG, JPEG or .csv file: "
                f"it starts with 0x{head.hex()}"
            )
        count, read = _FORMATS[kind]
        schema, rows = count(place)
    return InputFile(name, place, info.size, info.mtime_ns, schema, rows, read)


@contextlib.contextmanager
def reading(place: Place) -> Iterator[None]:
    """Turn what goes wrong with a file into one line that names it."""
    try:
        yield
    except VaeError:
        raise
    except (*READ_ERRORS, pa.ArrowException) as err:
        first_line = (str(err) or type(err).__name__).splitlines()[0]
        raise DataRefused(f"cannot read {place}: {first_line}") from err


def _reading_all(place: Place, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    while True:
        with reading(place):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _with_ids(schema: pa.Schema) -> pa.Schema:
    if taken := {FILE, ROW} & set(schema.names):
        raise UsageRefused(
            f"the input has a column {sorted(taken)[0]!r} of its own: "
            "name the columns that identify a row by --id"
        )
    text = pa.dictionary(pa.int32(), pa.string())
    return schema.append(pa.field(FILE, text)).append(pa.field(ROW, pa.int64()))


def _number(batch: pa.RecordBatch, name: str, row: int) -> pa.RecordBatch:
    rows = batch.num_rows
    files = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), [name])
    batch = batch.append_column(FILE, files)
    return batch.append_column(ROW, pa.array(np.arange(row, row + rows)))


def _count_parquet(place: Place) -> tuple[pa.Schema, int]:
    with _parquet(place) as file:
        return file.schema_arrow, file.metadata.num_rows


def _read_parquet(
    place: Place, start: int, stop: int, columns: Sequence[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """A buffered stream a column: a row group of any size never comes whole into memory."""
    with _parquet(place) as file:
        groups, first, skipped = [], 0, 0
        for index in range(file.num_row_groups):
            rows = file.metadata.row_group(index).num_rows
            if first + rows <= start:
                skipped += rows
            elif first < stop:
                groups.append(index)
            first += rows
        batches = file.iter_batches(batch_rows, groups, list(columns), use_threads=False)
        yield from _cut(batches, start - skipped, stop - skipped, columns)


@contextlib.contextmanager
def _parquet(place: Place) -> Iterator[parquet.ParquetFile]:
    with place.open() as stream:
        yield parquet.ParquetFile(stream, pre_buffer=False, buffer_size=_READ_BYTES)


def _count_ipc_file(place: Place) -> tuple[pa.Schema, int]:
    fragment = dataset.IpcFileFormat().make_fragment(place.path, place.system)
    return fragment.physical_schema, fragment.count_rows()


def _read_ipc_file(
    place: Place, start: int, stop: int, columns: Sequence[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    with _mapped(place) as stream, ipc.open_file(stream) as file:
        batches = (file.get_batch(index) for index in range(file.num_record_batches))
        yield from _cut(_slices(batches, batch_rows), start, stop, columns)


def _count_ipc_stream(place: Place) -> tuple[pa.Schema, int]:
    with _mapped(place) as stream, ipc.open_stream(stream) as batches:
        return batches.schema, sum(batch.num_rows for batch in batches)


def _read_ipc_stream(
    place: Place, start: int, stop: int, columns: Sequence[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    with _mapped(place) as stream, ipc.open_stream(stream) as batches:
        yield from _cut(_slices(batches, batch_rows), start, stop, columns)


def _count_csv(place: Place, ids: Sequence[str]) -> tuple[pa.Schema, int]:
    """Reads all of it: a value that is not of its column's type shows before the work."""
    schema = csv_rows.read_schema(place, ids)
    with csv_rows.open_rows(place, schema) as batches:
        return schema, sum(batch.num_rows for batch in batches)


def _read_csv(
    schema: pa.Schema,
    place: Place,
    start: int,
    stop: int,
    columns: Sequence[str],
    batch_rows: int,
) -> Iterator[pa.RecordBatch]:
    wanted = pa.schema([schema.field(name) for name in columns])
    with csv_rows.open_rows(place, wanted) as batches:
        yield from _cut(_slices(batches, batch_rows), start, stop, columns)


def _count_picture(place: Place) -> tuple[pa.Schema, int]:
    return _PICTURE, 1


def _read_picture(
    place: Place, start: int, stop: int, columns: Sequence[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    yield pa.RecordBatch.from_pylist([{"x": place.read()}], _PICTURE).select(columns)


def _mapped(place: Place) -> pa.NativeFile:
    return pa.memory_map(place.path) if place.is_local else place.open()


def _slices(batches: Iterator[pa.RecordBatch], batch_rows: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for start in range(0, batch.num_rows, batch_rows):
            yield batch.slice(start, batch_rows)


def _cut(
    batches: Iterator[pa.RecordBatch], start: int, stop: int, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Rows `start` to `stop` of the batches."""
    first = 0
    for batch in batches:
        low, high = max(0, start - first), min(batch.num_rows, stop - first)
        first += batch.num_rows
        if low < high:
            yield batch.select(columns).slice(low, high - low)
        if first >= stop:
            return


_FORMATS: Mapping[str, tuple[Counter, Reader]] = {
    "parquet": (_count_parquet, _read_parquet),
    "arrow file": (_count_ipc_file, _read_ipc_file),
    "arrow stream": (_count_ipc_stream, _read_ipc_stream),
    "array": (count_array, read_array_rows),
    "picture": (_count_picture, _read_picture),
}
_MAGIC: Mapping[bytes, str] = {
    b"PAR1": "parquet",
    b"ARROW1": "arrow file",
    b"\xff\xff\xff\xff": "arrow stream",
    b"\x93NUMPY": "array",
    b"PK": "array",  # .npz
    b"\x1f\x8b": "array",  # zipped IDX
    b"\0\0": "array",  # IDX
    b"\x89PNG": "picture",
    b"\xff\xd8\xff": "picture",  # JPEG
}
