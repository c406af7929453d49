"""Read files of Parquet, Arrow IPC, arrays, CSV and images as record batches.

In: the location of a file. Out: its columns and number of rows, and a function that reads some of
them. The first bytes of a file tell its format; CSV files and images are known by their names. The
rows of an array become a column `x`. An image is one row, with its bytes as `x`, and its row is bad
if it cannot be decoded. Memory is bounded by one batch, or for Arrow IPC by one of the file's own
batches. Raises `DataRefused` if a file cannot be read.
"""

import contextlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

import pyarrow as pa
from pyarrow import dataset, ipc, parquet

from serving.errors import DataRefused, UsageRefused
from serving.files import reading
from serving.io import csv_rows
from serving.io.array_rows import count_array, read_array_rows
from serving.io.array_streams import ARRAY_MAGICS
from serving.io.csv_format import CsvFormat, find_format, is_csv_name
from serving.io.filesystems import Location
from serving.io.image_files import IMAGE_MAGICS, is_image_name
from serving.io.side_columns import partition_keys
from serving.io.unread_formats import explain_unread

_READ_BYTES = 1 << 20
_COLUMNS = 8
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
    keys: Mapping[str, str | None]
    """Keys and values in the names of its folders."""
    note: str = ""
    version: str = ""
    """See `Location.version`."""


def open_file(
    name: str,
    location: Location,
    info: Any,
    types: Mapping[str, pa.DataType],
    others_as_text: bool,
    array: str,
    delimiter: str,
) -> InputFile:
    """Find out how a file is read, and count its rows; the other arguments are those of `Rows`."""
    with reading(location, pa.ArrowException):
        version = location.version(info)  # before anything of it is read
        if info.size == 0 and not is_image_name(location.path):
            raise DataRefused(f"{location} is empty")
        if is_csv_name(location.path):
            layout = find_format(location, delimiter)
            schema, rows = _count_csv(location, layout, types, others_as_text)
            read: RowReader = partial(_read_stream, partial(csv_rows.open_rows, layout, schema))
            note = layout.describe()
        else:
            count, read = _find_reader(location, array)
            schema, rows = count(location)
            note = ""
    keys, size, mtime_ns = partition_keys(name), info.size, info.mtime_ns
    return InputFile(name, location, size, mtime_ns, schema, rows, read, keys, note, version)


def _find_reader(location: Location, array: str) -> tuple[RowCounter, RowReader]:
    """Return the functions that count and read the rows of a file that is no CSV."""
    with location.open() as stream:
        head = bytes(stream.read(_HEAD))
    kind = "picture" if is_image_name(location.path) else find_kind(head)
    if kind is None:
        raise DataRefused(explain_unread(str(location), head))
    if not array:
        return (_count_ipc_file, _IpcFile()) if kind == "arrow file" else _FORMATS[kind]
    if kind != "array":
        raise UsageRefused(f"--array chooses from an .npz file, and {location} is not one")
    return partial(count_array, array=array), partial(read_array_rows, array)


def find_kind(head: bytes) -> str | None:
    """Return the format that the first bytes of a file tell, if they tell one."""
    return next((kind for kind, magics in _MAGICS.items() if head.startswith(magics)), None)


def list_blocks(file: InputFile) -> list[int] | None:
    """Return the numbers of rows of the parts of a file at which reading can start.

    They are Parquet's row groups, and the batches of an Arrow file; None for any other format,
    which is read from its first row on.
    """
    with reading(file.location, pa.ArrowException):
        if isinstance(file.read, _IpcFile):
            return file.read.sizes(file.location)
        if file.read is not _read_parquet:
            return None
        with _parquet(file.location) as opened:
            groups = range(opened.num_row_groups)
            return [opened.metadata.row_group(index).num_rows for index in groups]


def _count_parquet(location: Location) -> tuple[pa.Schema, int]:
    with _parquet(location) as file:
        return file.schema_arrow, file.metadata.num_rows


def _read_parquet(
    location: Location, start: int, stop: int, columns: Sequence[str], batch_rows: int
) -> Batches:
    """Read each column through a buffered stream, so that memory never holds a whole row group.

    A group that is asked for as one batch is read column after column, without these buffers.
    """
    with _parquet(location) as file:
        groups, first, skipped, wanted = [], 0, 0, 0
        for index in range(file.num_row_groups):
            rows = file.metadata.row_group(index).num_rows
            if first + rows <= start:
                skipped += rows
            elif first < stop:
                groups.append(index)
                wanted += rows
            first += rows
        names = list(columns)
        if len(groups) == 1 and wanted == stop - start <= batch_rows:
            batches = iter([_read_group(file, groups[0], names)])
        else:
            batches = file.iter_batches(batch_rows, groups, names, use_threads=False)
        yield from _cut(batches, start - skipped, stop - skipped, columns)


def _read_group(file: parquet.ParquetFile, group: int, columns: Sequence[str]) -> pa.RecordBatch:
    """Read all rows of a row group, a few columns at a time: each of them has buffers."""
    arrays = {}
    for start in range(0, len(columns), _COLUMNS):
        names = columns[start : start + _COLUMNS]
        table = file.read_row_group(group, list(names), use_threads=False)
        for name, column in zip(table.column_names, table.columns, strict=True):
            arrays[name] = column.combine_chunks()
    return pa.RecordBatch.from_arrays([arrays[name] for name in columns], list(columns))


@contextlib.contextmanager
def _parquet(location: Location) -> Iterator[parquet.ParquetFile]:
    with location.open() as stream:
        yield parquet.ParquetFile(stream, pre_buffer=False, buffer_size=_READ_BYTES)


def _count_ipc_file(location: Location) -> tuple[pa.Schema, int]:
    fragment = dataset.IpcFileFormat().make_fragment(location.path, location.system)
    return fragment.physical_schema, fragment.count_rows()


@dataclass(slots=True)
class _IpcFile:
    """Reads an Arrow file, from the one of its batches that holds the first row that is wanted.

    The rows of all batches are counted once. A compressed batch is decompressed to be counted, but
    one column of it alone.
    """

    _sizes: list[int] | None = field(init=False, default=None)

    def sizes(self, location: Location) -> list[int]:
        """Return the number of rows of each batch."""
        if self._sizes is None:
            options = ipc.IpcReadOptions(included_fields=[0])
            with _mapped(location) as stream, ipc.open_file(stream, options=options) as file:
                batches = range(file.num_record_batches)
                self._sizes = [file.get_batch(index).num_rows for index in batches]
        return self._sizes

    def __call__(
        self, location: Location, start: int, stop: int, columns: Sequence[str], batch_rows: int
    ) -> Batches:
        """Read rows `start` to `stop`; a `RowReader`."""
        first, skipped = 0, 0
        if start:
            ends = list(accumulate(self.sizes(location)))
            first = bisect_right(ends, start)
            skipped = ends[first - 1] if first else 0
        with _mapped(location) as stream, ipc.open_file(stream) as file:
            batches = (file.get_batch(index) for index in range(first, file.num_record_batches))
            yield from _cut(_slices(batches, batch_rows), start - skipped, stop - skipped, columns)


def _count_ipc_stream(location: Location) -> tuple[pa.Schema, int]:
    with _mapped(location) as stream, ipc.open_stream(stream) as batches:
        return batches.schema, sum(batch.num_rows for batch in batches)


@contextlib.contextmanager
def _open_ipc_stream(location: Location, columns: Sequence[str]) -> Iterator[Batches]:
    with _mapped(location) as stream, ipc.open_stream(stream) as batches:
        yield batches


def _count_csv(
    location: Location,
    layout: CsvFormat,
    types: Mapping[str, pa.DataType],
    others_as_text: bool,
) -> tuple[pa.Schema, int]:
    """Read the whole file, so that a value of the wrong type is found before the work starts."""
    schema = csv_rows.read_schema(location, layout, types, others_as_text)
    with csv_rows.open_rows(layout, schema, location, schema.names) as batches:
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


def _select(batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    """Select columns by place: by name, pyarrow takes seconds for thousands of them."""
    names = batch.schema.names
    if names == list(columns):
        return batch
    places = {name: index for index, name in enumerate(names)}
    return batch.select([places[name] for name in columns])


def _cut(batches: Batches, start: int, stop: int, columns: Sequence[str]) -> Batches:
    first = 0
    for batch in batches:
        low, high = max(0, start - first), min(batch.num_rows, stop - first)
        first += batch.num_rows
        if low < high:
            yield _select(batch, columns).slice(low, high - low)
        if first >= stop:
            return


_FORMATS: Mapping[str, tuple[RowCounter, RowReader]] = {
    "parquet": (_count_parquet, _read_parquet),
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
