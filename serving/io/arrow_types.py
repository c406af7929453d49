"""Find out what values an Arrow column holds: numbers, lists of them, or bytes; make columns."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_BINARIES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
_STRINGS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_NUMBERS = (
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_decimal,
    pa.types.is_boolean,
)
EXAMPLE, WHOLE = b"vae.example", b"vae.whole"
"""Metadata of a field: a value that makes a column text; that its floats are whole numbers."""
NUMBER_WORDS = pa.dictionary(pa.int32(), pa.string())
"""The type by which a CSV column of words that are numbers is read: as text, with a decimal point.
Read as numbers, one word that is none would end the job."""
_LISTED = 8
_NAME, _EXAMPLE = 40, 20
"""Characters of a column's name, and of its value, in a message."""


def unwrap_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values in an extension, a dictionary, or the struct of an image."""
    if isinstance(kind, pa.BaseExtensionType):
        return unwrap_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return unwrap_type(kind.value_type)
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return kind.field("bytes").type
    return kind


def widen_view(kind: pa.DataType) -> pa.DataType:
    """Return large text or bytes for views, which pyarrow can neither take nor filter."""
    if pa.types.is_string_view(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(kind) else kind


def is_number(kind: pa.DataType) -> bool:
    """Whether a type is an integer, a float, a decimal or a boolean."""
    return any(is_kind(kind) for is_kind in _NUMBERS)


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is a string of any kind."""
    return any(is_string(kind) for is_string in _STRINGS)


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a type is bytes of variable length."""
    return any(is_binary(kind) for is_binary in _BINARIES)


def is_cell(kind: pa.DataType) -> bool:
    """Whether a type is one of the cells of a table: a number, text, a date or nothing."""
    plain = unwrap_type(kind)
    others = (is_number, is_text, is_bytes, pa.types.is_date, pa.types.is_timestamp)
    return pa.types.is_null(plain) or any(is_kind(plain) for is_kind in others)


def list_sizes(kind: pa.DataType) -> tuple[int | None, ...]:
    """Return the sizes of nested lists of numbers, None for any size; empty for any other type."""
    sizes: tuple[int | None, ...] = ()
    while any(is_list(kind) for is_list in _LISTS):
        sizes += (kind.list_size if pa.types.is_fixed_size_list(kind) else None,)
        kind = unwrap_type(kind.value_type)
    return sizes if is_number(kind) else ()


def number_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the innermost values of lists, or of the values themselves."""
    while any(is_list(kind) for is_list in _LISTS):
        kind = unwrap_type(kind.value_type)
    return kind


def is_whole(item: pa.Field) -> bool:
    """Whether a column holds whole numbers, or lists of them; its type may be one of floats."""
    kind = number_type(unwrap_type(item.type))
    decimal = pa.types.is_decimal(kind) and kind.scale <= 0
    return decimal or pa.types.is_integer(kind) or WHOLE in (item.metadata or {})


def list_columns(schema: pa.Schema) -> str:
    """Name the columns with their types, for a message."""
    shown = [_describe(item) for item in list(schema)[:_LISTED]]
    more = len(schema) - _LISTED
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _describe(item: pa.Field) -> str:
    example = (item.metadata or {}).get(EXAMPLE, b"").decode()
    such = f", such as {_shorten(example, _EXAMPLE)!r}" if example else ""
    return f"{_shorten(item.name, _NAME)} ({str(item.type)[:_NAME]}{such})"


def _shorten(text: str, length: int) -> str:
    return " ".join(text.split())[:length]


def to_column(values: NDArray[Any]) -> pa.Array:
    """Make a column of rows (rows, ...): numbers, or lists of one size for each further axis."""
    column = pa.array(np.ascontiguousarray(values).reshape(-1))
    for size in reversed(values.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column
