"""Read rows of Parquet, Arrow IPC, array, CSV and picture files as record batches.

In: a file, a folder, a pattern or a URI. Out: batches of a range of rows; rows are counted over all
files in the order of their names. The first bytes of a file tell its format; a CSV file is known by
its name. The rows of an array become a column `x`. An image is one row, with its bytes as `x`; so
is any file with such a suffix, whose row is bad if it is not an image. Beside images all other
files are passed over. Memory is bounded by one batch, or for Arrow IPC by one of the file's own
batches.
Raises `DataRefused` if a file cannot be read.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import dataset, ipc, parquet

from serving.errors import DataRefused, UsageRefused
from serving.files import reading
from serving.io import csv_rows
from serving.io.array_rows import count_array, read_array_rows
from serving.io.array_streams import ARRAY_MAGICS
from serving.io.filesystems import Location, find_files
from serving.io.image_files import IMAGE_MAGICS, is_image_name
from serving.io.image_folders import keep_images
from serving.io.row_filter import parse_row_filter
from serving.io.unread_formats import explain_unread

FILE, ROW = "file", "row"
DEFAULT_IDS = (FILE, ROW)
"""Names of the default ids: the file's name relative to the input, the row's index in its file."""
_READ_BYTES = 1 << 20
_HEAD = 16
_PICTURE = pa.schema([("x", pa.binary())])

Batches = Iterator[pa.RecordBatch]
RowCounter = Callable[[Location], tuple[pa.Schema, int]]
RowReader = Callable[[Location, int, int, Sequence[str], int], Batches]


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file of rows, how to read it, and the size and time that show whether it has changed."""

    name: str
    location: Location
    size: int
    mtime_ns: int | None
    schema: pa.Schema
    rows: int
    read: RowReader


class Rows:
    """The rows of all files of an input, in order.

    Args:
        input_path: a file, a folder, a pattern or a URI.
        ids: columns that identify a row; empty for `file` and `row`, None for none.
        row_filter: see `serving.io.row_filter`; empty for all rows.
        array: the array of `.npz` files, see `serving.io.array_choice`; empty for the usual names.

    Raises:
        DataRefused: there are no rows, or a file cannot be read.
        UsageRefused: the filter, an id or the array does not fit the input.
    """

    def __init__(
        self,
        input_path: str,
        ids: Sequence[str] | None = (),
        row_filter: str = "",
        array: str = "",
    ) -> None:
        self.input_path = input_path
        self.array = array
        found, self.note = keep_images(input_path, find_files(input_path))
        self.files = [_open(*file, ids or (), array) for file in found]
        self.total = sum(file.rows for file in self.files)
        if not self.total:
            raise DataRefused(f"{input_path} must hold at least one row, it has none")
        self.schema = self.files[0].schema
        self._numbered = ids is not None and not ids
        self.ids = DEFAULT_IDS if self._numbered else tuple(ids or ())
        if self._numbered:
            self.schema = _add_id_fields(self.schema)
        self.filter = parse_row_filter(row_filter, self.schema) if row_filter else None

    def read(self, start: int, stop: int, columns: Sequence[str], batch_rows: int) -> Batches:
        """Read batches of rows `start` to `stop`, with `columns`, the ids and the filter's columns.

        A batch has at most `batch_rows` rows, all from one file.
        """
        needed = dict.fromkeys((*columns, *self.ids, *(self.filter.columns if self.filter else ())))
        for file, low, high in self._ranges(start, stop):
            names = [name for name in needed if not (self._numbered and name in DEFAULT_IDS)]
            if missing := [name for name in names if name not in file.schema.names]:
                raise DataRefused(f"{file.location} has no column {missing[0]!r}")
            row = low
            batches = file.read(file.location, low, high, names, batch_rows)
            for batch in _read_all(file.location, batches):
                rows = batch.num_rows
                if self._numbered:
                    batch = _add_ids(batch, file.name, row)
                row += rows
                yield batch
            if row != high:
                raise DataRefused(
                    f"{file.location} ends at row {row}, but {file.rows} rows were counted"
                )

    def keep(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows of a batch that pass the filter."""
        return self.filter.apply(batch) if self.filter else batch

    def _ranges(self, start: int, stop: int) -> Iterator[tuple[InputFile, int, int]]:
        """Find the files that hold rows `start` to `stop`, and the range within each."""
        first = 0
        for file in self.files:
            low, high = max(0, start - first), min(file.rows, stop - first)
            if low < high:
                yield file, low, high
            first += file.rows


def _open(
    name: str, location: Location, info: Any, ids: Sequence[str], array: str = ""
) -> InputFile:
    read: RowReader
    with reading(location, pa.ArrowException):
        is_picture = is_image_name(location.path)
        if info.size == 0 and not is_picture:
            raise DataRefused(f"{location} is empty")
        if location.path.lower().endswith(".csv"):
            schema, rows = _count_csv(location, ids)
            read = partial(_read_stream, partial(csv_rows.open_rows, schema))
            return InputFile(name, location, info.size, info.mtime_ns, schema, rows, read)
        with location.open() as stream:
            head = bytes(stream.read(_HEAD))
        kind = "picture" if is_picture else find_kind(head)
        if kind is None:
            raise DataRefused(explain_unread(str(location), head))
        count, read = _FORMATS[kind]
        if array:
            if kind != "array":
                raise UsageRefused(f"--array chooses from an .npz file, and {location} is not one")
            count, read = partial(count_array, array=array), partial(read_array_rows, array)
        schema, rows = count(location)
    return InputFile(name, location, info.size, info.mtime_ns, schema, rows, read)


def find_kind(head: bytes) -> str | None:
    """Return the format that the first bytes of a file tell, if they tell one."""
    return next((kind for kind, magics in _MAGICS.items() if head.startswith(magics)), None)


def _read_all(location: Location, batches: Batches) -> Batches:
    while True:
        with reading(location, pa.ArrowException):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _add_id_fields(schema: pa.Schema) -> pa.Schema:
    if taken := {FILE, ROW} & set(schema.names):
        raise UsageRefused(
            f"the input has a column {sorted(taken)[0]!r} of its own: "
            "name the columns that identify a row by --id"
        )
    text = pa.dictionary(pa.int32(), pa.string())
    return schema.append(pa.field(FILE, text)).append(pa.field(ROW, pa.int64()))


def _add_ids(batch: pa.RecordBatch, name: str, row: int) -> pa.RecordBatch:
    rows = batch.num_rows
    files = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), [name])
    batch = batch.append_column(FILE, files)
    return batch.append_column(ROW, pa.array(np.arange(row, row + rows)))


def _count_parquet(location: Location) -> tuple[pa.Schema, int]:
    with _parquet(location) as file:
        return file.schema_arrow, file.metadata.num_rows


def _read_parquet(
    location: Location, start: int, stop: int, columns: Sequence[str], batch_rows: int
) -> Batches:
    """Read each column through a buffered stream, so that memory never holds a whole row group."""
    with _parquet(location) as file:
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
def _parquet(location: Location) -> Iterator[parquet.ParquetFile]:
    with location.open() as stream:
        yield parquet.ParquetFile(stream, pre_buffer=False, buffer_size=_READ_BYTES)


def _count_ipc_file(location: Location) -> tuple[pa.Schema, int]:
    fragment = dataset.IpcFileFormat().make_fragment(location.path, location.system)
    return fragment.physical_schema, fragment.count_rows()


@contextlib.contextmanager
def _open_ipc_file(location: Location, columns: Sequence[str]) -> Iterator[Batches]:
    with _mapped(location) as stream, ipc.open_file(stream) as file:
        yield (file.get_batch(index) for index in range(file.num_record_batches))


def _count_ipc_stream(location: Location) -> tuple[pa.Schema, int]:
    with _mapped(location) as stream, ipc.open_stream(stream) as batches:
        return batches.schema, sum(batch.num_rows for batch in batches)


@contextlib.contextmanager
def _open_ipc_stream(location: Location, columns: Sequence[str]) -> Iterator[Batches]:
    with _mapped(location) as stream, ipc.open_stream(stream) as batches:
        yield batches


def _count_csv(location: Location, ids: Sequence[str]) -> tuple[pa.Schema, int]:
    """Read the whole file, so that a value of the wrong type is found before the work starts."""
    schema = csv_rows.read_schema(location, ids)
    with csv_rows.open_rows(schema, location, schema.names) as batches:
        return schema, sum(batch.num_rows for batch in batches)


def _read_stream(
    open_batches: Callable[[Location, Sequence[str]], contextlib.AbstractContextManager[Batches]],
    location: Location,
    start: int,
    stop: int,
    columns: Sequence[str],
    batch_rows: int,
) -> Batches:
    with open_batches(location, columns) as batches:
        yield from _cut(_slices(batches, batch_rows), start, stop, columns)


def _count_picture(location: Location) -> tuple[pa.Schema, int]:
    return _PICTURE, 1


def _read_picture(
    location: Location, start: int, stop: int, columns: Sequence[str], batch_rows: int
) -> Batches:
    yield pa.RecordBatch.from_pylist([{"x": location.read()}], _PICTURE).select(columns)


def _mapped(location: Location) -> pa.NativeFile:
    return pa.memory_map(location.path) if location.is_local else location.open()


def _slices(batches: Batches, batch_rows: int) -> Batches:
    for batch in batches:
        for start in range(0, batch.num_rows, batch_rows):
            yield batch.slice(start, batch_rows)


def _cut(batches: Batches, start: int, stop: int, columns: Sequence[str]) -> Batches:
    first = 0
    for batch in batches:
        low, high = max(0, start - first), min(batch.num_rows, stop - first)
        first += batch.num_rows
        if low < high:
            yield batch.select(columns).slice(low, high - low)
        if first >= stop:
            return


_FORMATS: Mapping[str, tuple[RowCounter, RowReader]] = {
    "parquet": (_count_parquet, _read_parquet),
    "arrow file": (_count_ipc_file, partial(_read_stream, _open_ipc_file)),
    "arrow stream": (_count_ipc_stream, partial(_read_stream, _open_ipc_stream)),
    "array": (count_array, partial(read_array_rows, "")),
    "picture": (_count_picture, _read_picture),
}
_MAGICS: Mapping[str, tuple[bytes, ...]] = {
    "parquet": (b"PAR1",),
    "arrow file": (b"ARROW1",),
    "arrow stream": (b"\xff\xff\xff\xff",),
    "array": ARRAY_MAGICS,
    "picture": IMAGE_MAGICS,
}
