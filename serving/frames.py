"""Read the columns of a data frame as numpy arrays, and as `x`; numpy alone.

In: a DataFrame of pandas, a Table of pyarrow, or sequences by the names of columns. Neither package
is imported here. What the schema does not fit raises `FrameRefused`.

This module and those that it imports are also copied into versions of MLflow
(`pipeline.registry.versions`), where this package is not installed: so they import each other by
`from .`, and nothing else of the package.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cells import FAULTS
from .schema import Column
from .table_cells import TableCells, TableEncoder

Array = NDArray[Any]

SOURCES = ("schema", "cell_values", "cells", "table_cells", "frames")
"""The modules that read a frame: this one, and what it imports."""
_KINDS = "OSUTMbiuf"
"""The kinds of numpy's dtypes that cells have."""
_SHOWN = 40
"""Characters of a name or a value in a message."""
_AS_OBJECTS = ("dictionary", "string", "large_string", "binary", "large_binary", "decimal", "bool")
"""Types of Arrow, by the start of their names, that Python's objects say more of than numpy's."""


class FrameRefused(ValueError):
    """The columns do not fit the schema: names the column, the row and what is allowed."""


def is_frame(rows: object) -> bool:
    """Whether rows are columns with names, and not one array."""
    return isinstance(rows, Mapping) or hasattr(rows, "columns") or hasattr(rows, "column_names")


def read_frame(rows: Any) -> dict[str, Array]:
    """Return the columns (rows,) of a frame by their names.

    Raises:
        FrameRefused: two columns have one name, or one holds something else than cells.
    """
    arrays: dict[str, Array] = {}
    for name, values in _named_columns(rows):
        if name in arrays:
            raise FrameRefused(f"column {name[:_SHOWN]!r} is given twice")
        array = _to_array(values)
        if array.ndim != 1 or array.dtype.kind not in _KINDS or not _all_hashable(array):
            raise FrameRefused(
                f"column {name[:_SHOWN]!r} must be numbers, booleans, text or dates, one a row; "
                f"got {array.dtype} {array.shape}"
            )
        arrays[name] = array
    return arrays


def encode_frame(encoder: TableEncoder, arrays: Mapping[str, Array]) -> TableCells:
    """Encode columns (rows,) by their names, each cell of which must be usable; others are unread.

    Raises:
        FrameRefused: a column is missing or of another length, or a cell cannot be used.
    """
    names = encoder.schema.sources
    for name in names:
        if name not in arrays:
            raise FrameRefused(
                f"the model learned from a column {name[:_SHOWN]!r}: there is none among "
                f"{_list_names([*arrays])}"
            )
    rows = len(arrays[names[0]])
    for name in names:
        if len(arrays[name]) != rows:
            raise FrameRefused(
                f"all columns must have as many rows: {names[0][:_SHOWN]!r} has {rows}, "
                f"{name[:_SHOWN]!r} has {len(arrays[name])}"
            )
    table = encoder.encode_arrays(arrays)
    if (bad := np.flatnonzero(table.faults)).size:
        row = int(bad[0])
        name = names[table.faulty[row]]
        value = arrays[name][row]
        shown = repr(value.item() if isinstance(value, np.generic) else value)[:_SHOWN]
        more = f"; {bad.size} of {rows} rows cannot be used" if bad.size > 1 else ""
        raise FrameRefused(
            f"column {name[:_SHOWN]!r} {FAULTS[int(table.faults[row])]} in row {row}: it takes "
            f"{_allowed(encoder.encoders[name].columns[0])}, got {shown}{more}"
        )
    return table


def _allowed(column: Column) -> str:
    """Say what a column of numbers or dates takes; one of words takes all."""
    if column.part:
        return "dates, or text such as 2026-12-31 or 2026-12-31T23:59:00"
    return "numbers from 0" if column.kind == "count" else "numbers"


def _list_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(name[:_SHOWN] for name in names[:5]) + more or "none"


def _named_columns(rows: Any) -> Iterator[tuple[str, Any]]:
    if hasattr(rows, "column_names"):  # pyarrow
        yield from zip(map(str, rows.column_names), rows.columns, strict=True)
        return
    for name, values in rows.items():
        yield str(name), values


def _all_hashable(array: Array) -> bool:
    """Whether objects are cells: lists and the like are not hashable."""
    return array.dtype != object or all(kind.__hash__ for kind in {*map(type, array)})


def _to_array(values: Any) -> Array:
    """Return the values of a column as an array; numbers and dates keep their types."""
    if hasattr(values, "null_count"):  # pyarrow
        if str(values.type).startswith(_AS_OBJECTS):
            return _objects(values.to_pylist())
        return np.asarray(values.to_numpy(zero_copy_only=False))
    if isinstance(values, np.ndarray):
        return values
    if hasattr(values, "to_numpy"):  # pandas
        return _series_array(values)
    kinds = {*map(type, values)}
    if kinds in ({int}, {float}, {int, float}, {bool}):
        return np.array(values)
    return _objects(values)


def _series_array(values: Any) -> Array:
    dtype = values.dtype
    if isinstance(dtype, np.dtype):
        return np.asarray(values.to_numpy())
    plain = getattr(dtype, "numpy_dtype", None)  # of nullable numbers; objects lose float32
    if isinstance(plain, np.dtype) and plain.kind == "f":
        return np.asarray(values.to_numpy(plain, na_value=np.nan))
    return np.asarray(values.astype(object).to_numpy())


def _objects(values: Sequence[Any]) -> Array:
    return np.fromiter(values, object, len(values))
