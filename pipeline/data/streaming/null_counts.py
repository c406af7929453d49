"""Find which columns of a table lack cells, where footers count them.

In: the files of a table. Out: the names of the columns. Raises `DataRefused` if a file cannot be
read.
"""

from collections.abc import Collection

import pyarrow as pa
from pyarrow import parquet

from serving.files import reading
from serving.io.filesystems import Location
from serving.io.rows import Rows


def find_columns_with_nulls(rows: Rows, names: Collection[str]) -> set[str]:
    """Return those of the columns that lack a cell by the footers of Parquet files.

    Arrow files have no such counts, and NaN counts as a cell.
    """
    wanted = set(names)
    found: set[str] = set()
    for file in rows.files:
        found |= _find_in_file(file.location, wanted - found)
    return found


def _find_in_file(location: Location, names: Collection[str]) -> set[str]:
    with reading(location, pa.ArrowException), location.open() as stream:
        if bytes(stream.read(4)) != b"PAR1":
            return set()
        stream.seek(0)
        footer = parquet.read_metadata(stream)
        places = {footer.schema.column(index).path: index for index in range(footer.num_columns)}
        groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
        chosen = [(name, places[name]) for name in names if name in places]
        return {name for name, place in chosen if any(_has_nulls(g, place) for g in groups)}


def _has_nulls(group: parquet.RowGroupMetaData, place: int) -> bool:
    statistics = group.column(place).statistics
    return bool(statistics and statistics.has_null_count and statistics.null_count)
