"""The rows of an input: of a file, or of all files of a folder in the order of their names.

In: a file, a folder, a pattern or a URI. Out: batches of a range of rows; rows are counted over all
files. The keys in the names of a partitioned folder's folders, such as `year=2026`, are columns.
Raises `DataRefused` if a file cannot be read.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce

import numpy as np
import pyarrow as pa

from serving.errors import DataRefused, UsageRefused
from serving.files import reading
from serving.io.filesystems import Location, find_files
from serving.io.image_folders import keep_images
from serving.io.row_filter import parse_row_filter
from serving.io.row_formats import Batches, InputFile, open_file
from serving.io.side_columns import DEFAULT_IDS, FILE, ROW, partition_fields


class Rows:
    """The rows of all files of an input, in order.

    Args:
        input_path: a file, a folder, a pattern or a URI.
        ids: columns that identify a row; empty for `file` and `row`, None for none.
        row_filter: see `serving.io.row_filter`; empty for all rows.
        array: the array of `.npz` files, see `serving.io.array_choice`; empty for the usual names.
        delimiter: the delimiter of CSV files; empty to find it.
        types: types by which columns of CSV files are read, see `arrow_cells.csv_types`; the ids
            are read as text.
        others_as_text: whether all other columns of CSV files are read as text, too, and not as
            their first rows look.

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
        delimiter: str = "",
        types: Mapping[str, pa.DataType] | None = None,
        others_as_text: bool = False,
    ) -> None:
        self.input_path = input_path
        self.array = array
        found, note = keep_images(input_path, find_files(input_path))
        known = {**(types or {}), **dict.fromkeys(ids or (), pa.string())}
        self.files = [open_file(*file, known, others_as_text, array, delimiter) for file in found]
        self.total = sum(file.rows for file in self.files)
        if not self.total:
            raise DataRefused(f"{input_path} must hold at least one row, it has none")
        own = self.files[0].schema
        keys = partition_fields([file.keys for file in self.files])
        fields = [item for item in keys if own.get_field_index(item.name) < 0]
        self._partition = {item.name: item for item in fields}
        self.schema = reduce(pa.Schema.append, fields, own)
        first = self.files[0]
        said = f"{first.location}: {first.note}" if first.note else ""
        self.notes = [text for text in (note, said) if text]
        """What a person should know about how the input is read."""
        self._numbered = ids is not None and not ids
        self.ids = DEFAULT_IDS if self._numbered else tuple(ids or ())
        if self._numbered:
            self.schema = _add_id_fields(self.schema)
        self._added = {*self._partition, *(DEFAULT_IDS if self._numbered else ())}
        self.filter = parse_row_filter(row_filter, self.schema) if row_filter else None

    def read(self, start: int, stop: int, columns: Sequence[str], batch_rows: int) -> Batches:
        """Read batches of rows `start` to `stop`, with `columns`, the ids and the filter's columns.

        A batch has at most `batch_rows` rows, all from one file.
        """
        needed = dict.fromkeys((*columns, *self.ids, *(self.filter.columns if self.filter else ())))
        for file, low, high in self._ranges(start, stop):
            own = frozenset(file.schema.names)
            names = [name for name in needed if name not in self._added or name in own]
            if missing := [name for name in names if name not in own]:
                raise DataRefused(f"{file.location} has no column {missing[0]!r}")
            row = low
            batches = file.read(file.location, low, high, names, batch_rows)
            for batch in _read_all(file.location, batches):
                rows = batch.num_rows
                batch = _add_keys(batch, file.keys, self._partition)
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


def _add_keys(
    batch: pa.RecordBatch, keys: Mapping[str, str | None], fields: Mapping[str, pa.Field]
) -> pa.RecordBatch:
    """Append the keys of a partitioned folder, which have one value in all rows of a file."""
    for name, field in fields.items():
        value = pa.scalar(keys[name]).cast(field.type)
        batch = batch.append_column(field, pa.repeat(value, batch.num_rows))
    return batch
