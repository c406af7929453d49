"""Requests and their answers as one Arrow table.

In: requests of one version. Out: a line for each row: the columns from which `vae score` reads `x`
back, byte by byte, and side columns whose names begin with `vae_`.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from serving.bundle import Bundle, Manifest
from serving.errors import UsageRefused
from serving.io.arrow_cells import decode_batch, encode_batch
from serving.io.arrow_types import to_column
from serving.live_rows import Array, LiveRows
from serving.table_cells import TableEncoder

PREFIX = "vae_"
"""Begins the names of all columns that are not from the table of the model."""
ANSWER = f"{PREFIX}answer_"
"""Begins the names of the tensors of the answer."""


@dataclass(slots=True)
class CapturedRows:
    """Requests of one version that wait to be written.

    Args:
        bundle: of the version.
        left_out: columns of the table that are not kept.
        hashed: columns of which a keyed hash is kept, with the key.
    """

    bundle: Bundle
    left_out: frozenset[str] = frozenset()
    hashed: Mapping[str, bytes] = field(default_factory=dict)
    rows: int = field(default=0, init=False)
    bytes: int = field(default=0, init=False)
    _requests: list[LiveRows] = field(default_factory=list, init=False)
    _encoder: TableEncoder | None = field(default=None, init=False)
    _hidden: list[int] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        """Make the encoder that reads the columns back.

        Raises:
            UsageRefused: the version lacks a column that is to be left out or hashed.
        """
        manifest = self.bundle.manifest
        schema, hidden = manifest.schema, self.left_out | {*self.hashed}
        _check_columns(manifest, self.left_out, frozenset(self.hashed))
        names = [each.table_column for each in schema.columns] if schema else manifest.columns
        self._hidden = [place for place, name in enumerate(names) if name in hidden]
        if schema is not None:
            self._encoder = TableEncoder(schema)

    def add(self, rows: LiveRows) -> None:
        """Add a request."""
        self._requests.append(rows)
        self.rows += rows.rows
        self.bytes += rows.held_bytes

    def clear(self) -> None:
        """Forget all requests."""
        self._requests.clear()
        self.rows = self.bytes = 0

    def table(self) -> pa.Table:
        """Return the rows as a table.

        Rows of a mixed table that its columns would not give back to the same bytes are left out:
        a client may send an `x` that no table has, such as 1.5 in a column of whole numbers.
        """
        x = np.concatenate([each.x for each in self._requests])
        columns = {**self._columns(x), **self._side_columns()}
        table = pa.table(columns)
        if self._encoder is not None:
            same = self._reads_back(x)
            if not same.all():
                table = table.filter(pa.array(same))
        return table

    def _columns(self, x: Array) -> dict[str, pa.Array]:
        manifest = self.bundle.manifest
        if manifest.schema is not None:
            batch = decode_batch(manifest.schema, x)
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        elif manifest.columns:
            flat = x.reshape(len(x), -1)
            names = enumerate(manifest.columns)
            columns = {name: pa.array(np.ascontiguousarray(flat[:, n])) for n, name in names}
        else:
            return {"x": to_column(x)}
        for name, key in self.hashed.items():
            columns[name] = _hash(columns[name], key)
        return {name: values for name, values in columns.items() if name not in self.left_out}

    def _reads_back(self, x: Array) -> Array:
        """Return which rows (rows,) of a mixed table have the same bytes when they are read."""
        assert self.bundle.manifest.schema is not None
        assert self._encoder is not None
        again = encode_batch(decode_batch(self.bundle.manifest.schema, x), self._encoder)
        same = (again.x == x) | (np.isnan(again.x) & np.isnan(x))
        return np.asarray(same.all(1) & (again.faults == 0))

    def _side_columns(self) -> dict[str, pa.Array]:
        """Return what is known of the requests, and the tensors of their answers."""
        counts = [each.rows for each in self._requests]

        def repeat(values: list[object], kind: pa.DataType) -> pa.Array:
            places = np.repeat(np.arange(len(counts)), counts)
            return pa.array(values, kind).take(pa.array(places))

        every = self._requests
        times = [round(each.time * 1e6) for each in every]
        columns = {
            "time": repeat([*times], pa.timestamp("us", "UTC")),
            "operation": repeat([each.operation for each in every], pa.string()),
            "version": repeat([each.version for each in every], pa.string()),
            "digest": repeat([each.digest for each in every], pa.string()),
            "request": repeat([each.request for each in every], pa.string()),
            "row": pa.array(np.concatenate([np.arange(count) for count in counts])),
            "seed": repeat([each.seed for each in every], pa.int64()),
            "num_samples": repeat([each.num_samples for each in every], pa.int64()),
        }
        kinds = {
            tensor.name: _list_type(len(tensor.shape) - 1)
            for operation in self.bundle.operations.values()
            if any(tensor.name == "x" for tensor in operation.inputs)
            for tensor in operation.outputs
        }
        answers = {name: self._answer(name, kind) for name, kind in kinds.items()}
        return {
            **{PREFIX + name: values for name, values in columns.items()},
            **{ANSWER + name: values for name, values in answers.items()},
        }

    def _hide(self, values: Array) -> Array:
        """Blank the columns of an answer whose values are not to be kept, (rows, *x_shape)."""
        if not self._hidden or values.shape[1:] != self.bundle.manifest.x_shape:
            return values
        shown = np.array(values)
        shown[:, self._hidden] = np.nan
        return shown

    def _answer(self, name: str, kind: pa.DataType) -> pa.Array:
        """Return one tensor of all answers; null for requests whose answer has none."""
        arrays = [
            _to_lists(self._hide(each.outputs[name]))
            if name in each.outputs
            else pa.nulls(each.rows, kind)
            for each in self._requests
        ]
        return pa.concat_arrays(arrays)


def _check_columns(manifest: Manifest, left_out: frozenset[str], hashed: frozenset[str]) -> None:
    """Refuse columns that the version does not have, and names that would clash.

    Raises:
        UsageRefused: say which.
    """
    schema = manifest.schema
    known = schema.sources if schema is not None else manifest.columns
    for name in sorted(left_out | hashed):
        if name not in known:
            has = ", ".join(known[:8]) if known else "no named columns"
            raise UsageRefused(f"the model has no column {name!r} to leave out or hash: {has}")
    if both := left_out & hashed:
        raise UsageRefused(f"column {sorted(both)[0]!r} is to be left out and to be hashed")
    for name in known:
        if name.startswith(PREFIX):
            raise UsageRefused(f"rows with a column {name!r} cannot be captured: rename it")


def _hash(values: pa.Array, key: bytes) -> pa.Array:
    """Return a keyed hash of each value, as text; a gap stays one."""
    return pa.array(
        [
            None if value is None else hmac.digest(key, str(value).encode(), "sha256").hex()
            for value in values.to_pylist()
        ],
        pa.string(),
    )


def _to_lists(values: Array) -> pa.Array:
    """Make a column of rows (rows, ...): numbers, or lists of any size, one of which may be null.

    pyarrow reads no Parquet file back whose lists of one size are nested and null.
    """
    column = pa.array(np.ascontiguousarray(values).reshape(-1))
    for size in reversed(values.shape[1:]):
        offsets = pa.array(np.arange(0, len(column) + 1, size, dtype=np.int32))
        column = pa.ListArray.from_arrays(offsets, column)
    return column


def _list_type(depth: int) -> pa.DataType:
    """Return the type of `_to_lists` for so many axes behind the first."""
    kind = pa.float32()
    for _ in range(depth):
        kind = pa.list_(kind)
    return kind
