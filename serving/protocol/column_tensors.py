"""The tensors of a table's columns, one each: the way that MLServer's `pd` sends a data frame.

In: a tensor of shape [rows] or [rows, 1] and of any datatype of the protocol, in JSON, in binary or
typed in gRPC. Out: an array (rows,): numbers, booleans, or objects, which are text, numbers,
booleans and None. A gap is null in JSON, NaN in floats, and an empty text in BYTES.
Source: Open Inference Protocol, tensor data types; the binary tensor data extension; MLServer's
content types `pd` of a request and `pd_json` of a column with values of several types.
"""

import struct
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from serving.cell_values import factorize, find_gaps, instant_text, number_text
from serving.errors import DataRefused, UsageRefused
from serving.operations import Operation
from serving.protocol.messages import MAX_ROWS, Array, Parameter, wire_shape

CONTENT_TYPE = "content_type"
BY_COLUMNS = "pd"
"""The content type of a request, or of an answer, with a tensor for each column."""
_JSON_CELLS = "pd_json"
_AS_THEY_STAND = ("str", "np", "pd", "datetime")
"""Content types of a column's tensor whose values mean what they are."""
BYTES = "BYTES"
_DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    BYTES: np.dtype(object),
}
_DATATYPES = {dtype: name for name, dtype in _DTYPES.items()}
DATATYPES = tuple(_DTYPES)
"""The protocol's names of the datatypes that a column may have."""
_JSON_TYPES: Mapping[str, tuple[set[type], str]] = {
    "b": ({bool}, "true, false or null"),
    "i": ({int, float}, "whole numbers or null"),
    "u": ({int, float}, "whole numbers or null"),
    "f": ({int, float}, "numbers or null"),
    "O": ({str}, "text or null"),
}
_CELL_TYPES = {str, int, float, bool, type(None)}
_SHOWN = 40
"""Characters of a name or a value in a message."""
_LENGTH = struct.Struct("<I")


def columns_sent(
    operation: Operation,
    columns: Collection[str],
    names: Sequence[object],
    parameters: Mapping[str, Parameter],
) -> Collection[str]:
    """Return which names mean columns in a request: none, if it sends the tensor `x`.

    `columns` are those of the model's table; one of them may have the name of a tensor.

    Raises:
        DataRefused: the table has no such column.
    """
    tensors = {tensor.name for tensor in operation.inputs}
    given = {name for name in names if isinstance(name, str)}
    if "x" not in tensors:
        return ()
    is_marked = parameters.get(CONTENT_TYPE) == BY_COLUMNS
    if given <= tensors and not (is_marked and not given.isdisjoint(columns)):
        return ()
    for name in names:
        if isinstance(name, str) and name not in columns and name not in tensors - {"x"}:
            advice = "send x or columns, not both" if name == "x" else "leave it out"
            raise DataRefused(f"the table has no column {name[:_SHOWN]!r}: {advice}")
    return columns


def read_values(
    name: str, datatype: object, shape: object, values: object, content_type: object = None
) -> Array:
    """Read a column from a list of JSON or gRPC, flat or of rows of one value.

    Raises:
        DataRefused: a value is not of the datatype, or there are more or fewer than in the shape.
        UsageRefused: there are too many rows, or the content type is not known.
    """
    dtype, rows = _dtype(name, datatype), _rows(name, shape)
    if isinstance(values, list) and values and isinstance(values[0], list):
        if not all(isinstance(value, list) and len(value) == 1 for value in values):
            raise DataRefused(f"data of {name} must be a flat list, or rows of one value")
        values = [value[0] for value in values]
    if not isinstance(values, list) or len(values) != rows:
        got = len(values) if isinstance(values, list) else type(values).__name__
        raise DataRefused(f"data of {name} must be a list of {rows} values, got {got}")
    types, allowed = _JSON_TYPES[dtype.kind]
    if not {*map(type, values)} - {type(None)} <= types:
        row = next(
            row
            for row, value in enumerate(values)
            if value is not None and type(value) not in types
        )
        raise DataRefused(
            f"data of {name} of {datatype} must be {allowed}, got {str(values[row])[:_SHOWN]!r} "
            f"in row {row}"
        )
    if dtype.kind == "O":
        return _objects(_read_cells(name, values, content_type))
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.array(values, np.float64).astype(dtype)  # null becomes NaN
    if dtype.kind in "iu":
        values = [_whole(name, datatype, dtype, row, value) for row, value in enumerate(values)]
    return _objects(values) if None in values else np.array(values, dtype)


def read_bytes(
    name: str, datatype: object, shape: object, content: memoryview, content_type: object = None
) -> Array:
    """Read a column from the bytes of a tensor: in BYTES, each text follows its length.

    Raises:
        DataRefused: the bytes are more or fewer than those of the shape.
        UsageRefused: there are too many rows, or the content type is not known.
    """
    dtype, rows = _dtype(name, datatype), _rows(name, shape)
    if dtype.kind == "O":
        return _objects(_read_cells(name, _read_texts(name, rows, content), content_type))
    if len(content) != rows * dtype.itemsize:
        raise DataRefused(
            f"{name} of {datatype} [{rows}] needs {rows * dtype.itemsize} bytes, got {len(content)}"
        )
    if dtype.kind == "b":
        return np.asarray(np.frombuffer(content, np.uint8) != 0)
    return np.frombuffer(content, dtype).copy()  # aligned


def wire_column(values: Array) -> Array:
    """Return a column (rows,) of any type as one that has a datatype; text is objects, or None.

    Dates become text as of ISO 8601; numbers among other objects become text too.
    """
    dtype = values.dtype.newbyteorder("<")
    if dtype in _DATATYPES and dtype.kind != "O":
        return values.astype(dtype, copy=False)
    if values.dtype.kind == "f":  # halves, and longer ones than FP64
        return values.astype(np.float32 if values.dtype.itemsize < 4 else np.float64)
    gaps = find_gaps(values)
    texts = np.full(len(values), None, object)
    known = values[~gaps]
    if values.dtype.kind == "M":
        texts[~gaps] = [instant_text(value) for value in known]
    elif len(known):
        distinct, places = factorize(known)
        words = [
            *distinct.words,
            *map(number_text, distinct.numbers),
            *map(instant_text, distinct.instants),
        ]
        texts[~gaps] = np.array(words, object)[places]
    return texts


def datatype_of_column(values: Array) -> str:
    """Return the datatype of what `wire_column` returned."""
    return _DATATYPES[values.dtype]


def write_bytes(values: Array) -> bytes:
    """Write what `wire_column` returned in binary."""
    if values.dtype != object:
        return values.tobytes()
    texts = [(value or "").encode() for value in values]
    return b"".join(part for text in texts for part in (_LENGTH.pack(len(text)), text))


def _dtype(name: str, datatype: object) -> np.dtype[Any]:
    if not isinstance(datatype, str) or datatype not in _DTYPES:
        raise DataRefused(
            f"datatype of {name} must be one of {', '.join(DATATYPES)}, got {datatype!r}"
        )
    return _DTYPES[datatype]


def _rows(name: str, shape: object) -> int:
    """Return the number of rows of a column."""
    sizes = wire_shape(name, shape)
    if len(sizes) not in (1, 2) or sizes[1:] not in ((), (1,)):
        raise DataRefused(f"shape of {name} must be [rows] or [rows, 1], got {[*sizes]}")
    if sizes[0] > MAX_ROWS:
        raise UsageRefused(f"a request may hold {MAX_ROWS} rows, got {sizes[0]}: send several")
    return sizes[0]


def _whole(name: str, datatype: object, dtype: np.dtype[Any], row: int, value: Any) -> Any:
    if value is None:
        return None
    range_ = np.iinfo(dtype)
    if value != int(value) or not range_.min <= value <= range_.max:
        raise DataRefused(
            f"data of {name} must be whole numbers of {datatype}, got {value} in row {row}"
        )
    return int(value)


def _read_texts(name: str, rows: int, content: memoryview) -> list[str | None]:
    texts: list[str | None] = []
    start, size = 0, len(content)
    for row in range(rows):
        stop = start + _LENGTH.size
        length = _LENGTH.unpack_from(content, start)[0] if stop <= size else size
        if stop + length > size:
            raise DataRefused(f"{name} of BYTES ends within row {row} of {rows}")
        start = stop + length
        texts.append(str(content[stop:start], "utf-8", "replace") or None)
    if start != size:
        raise DataRefused(f"{name} of BYTES has {size - start} bytes after its {rows} rows")
    return texts


def _read_cells(name: str, texts: Sequence[str | None], content_type: object) -> Sequence[Any]:
    """Return what texts stand for: themselves, or values in JSON."""
    if not content_type or content_type in _AS_THEY_STAND:
        return texts
    if content_type != _JSON_CELLS:
        allowed = ", ".join((*_AS_THEY_STAND, _JSON_CELLS))
        raise UsageRefused(
            f"content_type of {name} must be one of {allowed}, got {str(content_type)[:_SHOWN]!r}"
        )
    cells = []
    for row, text in enumerate(texts):
        try:
            value = orjson.loads(text) if text else None
        except orjson.JSONDecodeError as err:
            raise DataRefused(f"{name} is not JSON in row {row}: {err}") from err
        if type(value) not in _CELL_TYPES:
            raise DataRefused(
                f"{name} must be text, numbers, true, false or null; row {row} is "
                f"{(text or '')[:_SHOWN]}"
            )
        cells.append(value)
    return cells


def _objects(values: Sequence[Any]) -> Array:
    return np.fromiter(values, object, len(values))
