"""Choose the columns that hold the array `x` of a model.

In: the schema of a table and the layout of a model's rows. Out: names of columns. Raises
`UsageRefused` if a column is missing or the choice is not clear, `DataRefused` if the columns
cannot hold `x`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from serving.errors import DataRefused, UsageRefused
from serving.io.arrow_types import (
    is_bytes,
    is_cell,
    is_number,
    list_columns,
    list_sizes,
    unwrap_type,
)
from serving.io.side_columns import DEFAULT_IDS, find_side_columns
from serving.schema import Schema
from serving.table_cells import TableEncoder
from serving.value_range import MAX_BYTE

_DEFAULTS = ("x", "image")
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class RowLayout:
    """The shape, dtype and range of a row of `x`, as a model takes it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    unit_range: bool
    """Whether floats must be from 0 to 1."""
    max_byte: int = MAX_BYTE
    """The largest value that bytes may have."""
    columns: tuple[str, ...] = ()
    """Names of the features, if the model was trained on one column for each."""
    encoder: TableEncoder | None = None
    """Encodes the cells of a table, if the model has a schema."""
    name: str = "x"
    """What messages call the array: `x`, or `z` if rows of latents are read."""

    @property
    def size(self) -> int:
        """Number of values in a row."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.size * self.dtype.itemsize


def choose_columns(
    schema: pa.Schema, asked: Sequence[str], ids: Sequence[str], layout: RowLayout
) -> tuple[str, ...]:
    """Choose the columns named, else the model's own, else `x`, else `image`, else all numbers.

    If the model has a schema, its columns are read by their names, and no others.

    Raises:
        UsageRefused: a column is missing, or it is not clear which columns are meant.
        DataRefused: the columns cannot hold `x`.
    """
    own = pa.schema([item for item in schema if ids != DEFAULT_IDS or item.name not in ids])
    require_columns("the input", schema, (*asked, *ids), listed=own)
    if layout.encoder:
        return _choose_cells(schema, own, asked, layout.encoder.schema)
    there = frozenset(schema.names)
    missing = [name for name in layout.columns if name not in there]
    if asked:
        columns = tuple(asked)
    elif layout.columns and not missing:
        columns = layout.columns
    elif found := _find_default(schema, layout):
        columns = (found,)
    elif missing:
        more = ", …" if len(layout.columns) > _SHOWN else ""
        raise UsageRefused(
            f"the input has no column {missing[0]!r}, which the model learned from: name by --x "
            f"the columns that hold {', '.join(layout.columns[:_SHOWN])}{more}. "
            f"The input has {list_columns(own)}"
        )
    else:
        others = {*ids, *find_side_columns(schema)}
        columns = tuple(item.name for item in schema if is_number(item.type))
        columns = tuple(name for name in columns if name not in others)
        if len(columns) != layout.size:
            named = f"put them into a column {layout.name}"
            way = "name them by --x" if layout.name == "x" else named
            raise UsageRefused(
                f"cannot tell which columns hold {layout.name}: {len(columns)} are numbers, but "
                f"the model takes {layout.size}; {way}. The input has {list_columns(own)}"
            )
    check_types(schema, columns, layout)
    return columns


def _choose_cells(
    schema: pa.Schema, listed: pa.Schema, asked: Sequence[str], known: Schema
) -> tuple[str, ...]:
    """Return the columns that a model's schema names; the message lists those of `listed`."""
    there = frozenset(schema.names)
    if missing := [name for name in known.sources if name not in there]:
        more = f", nor {len(missing) - 1} others" if len(missing) > 1 else ""
        raise UsageRefused(
            f"the input has no column {missing[0]!r}{more}, which the model learned from; it has "
            f"{list_columns(listed)}"
        )
    if asked and sorted(asked) != sorted(known.sources):
        raise UsageRefused(
            "the model takes the columns of its schema by their names, so leave out --x; they are "
            f"{', '.join(known.sources[:_SHOWN])}{', …' if len(known.sources) > _SHOWN else ''}"
        )
    check_cells(schema, known.sources)
    return known.sources


def check_cells(schema: pa.Schema, columns: Iterable[str]) -> None:
    """Refuse columns whose types are none of a table's cells."""
    places = {name: index for index, name in enumerate(schema.names)}
    chosen = [schema.field(places[name]) for name in columns]
    if others := pa.schema([item for item in chosen if not is_cell(item.type)]):
        raise DataRefused(
            f"a column of a table must be numbers, text or dates, got {list_columns(others)}"
        )


def require_columns(
    source: object, schema: pa.Schema, names: Iterable[str], listed: pa.Schema | None = None
) -> None:
    """Refuse names that `schema` lacks; the message lists the columns of `listed` or `schema`."""
    there = frozenset(schema.names)
    for name in names:
        if name not in there:
            has = list_columns(schema if listed is None else listed)
            raise UsageRefused(f"{source} has no column {name!r}; it has {has}")


def check_types(schema: pa.Schema, columns: Sequence[str], layout: RowLayout) -> None:
    """Refuse columns whose types cannot hold any row."""
    kinds = {name: unwrap_type(schema.field(name).type) for name in columns}
    if all(is_number(kind) for kind in kinds.values()):
        if len(columns) != layout.size:
            raise DataRefused(
                f"{layout.name} takes {layout.size} columns of numbers, got {len(columns)}: "
                f"{', '.join(columns[:_SHOWN])}"
            )
        return
    if len(columns) > 1:
        others = pa.schema([schema.field(name) for name in columns if not is_number(kinds[name])])
        raise DataRefused(f"each of several columns must be numbers, got {list_columns(others)}")
    name, kind = next(iter(kinds.items()))
    if pa.types.is_fixed_size_binary(kind) and kind.byte_width != layout.row_bytes:
        raise DataRefused(
            f"column {name!r} has {kind.byte_width} bytes per row, but {layout.name} takes "
            f"{layout.row_bytes}: "
            f"{layout.shape} of {layout.dtype}"
        )
    sizes = list_sizes(kind)
    if sizes and not any(_may_be(sizes, shape) for shape in ((layout.size,), layout.shape)):
        raise DataRefused(
            f"column {name!r} is {kind}, but {layout.name} takes rows of {layout.shape}"
        )
    if not (sizes or is_bytes(kind) or pa.types.is_fixed_size_binary(kind)):
        raise DataRefused(
            f"column {name!r} is {kind}; {layout.name} can be bytes, a list of numbers, an image, "
            "or one number per column"
        )


def _find_default(schema: pa.Schema, layout: RowLayout) -> str | None:
    """Return `x` or `image`; a single number cannot be the row of a model of named columns."""
    for name in _DEFAULTS:
        if name in schema.names and not (layout.columns and is_number(schema.field(name).type)):
            return name
    return None


def _may_be(sizes: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    return len(sizes) == len(shape) and all(
        size in (None, wanted) for size, wanted in zip(sizes, shape, strict=True)
    )
