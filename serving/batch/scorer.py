"""Score a record batch: Arrow in, Arrow out, without a Python step for each row.

The local job, Spark and streams all use it. The results of a row depend on the row alone: its noise
is that of the seed and of its own bytes, and the graphs give a row the same bytes in every batch.
Rows that cannot be used are returned beside the results, each with a reason.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serving.batch.result_columns import TEXT, ResultColumns, ScoreChoice, name_codes
from serving.engine import Engine
from serving.errors import DataRefused, UsageRefused
from serving.io.column_choice import RowLayout, choose_columns
from serving.io.columns import RESULT, explain_code, read_x
from serving.io.rows import Rows
from serving.noise import check_seed, draw_eps
from serving.source import Source
from serving.table_cells import TableEncoder, UnknownCells

Array = NDArray[Any]
ScorerOperation = Literal["encode", "reconstruct", "score"]

RUN_ROWS = 256
"""Rows times noise draws in one run of a graph, so that it stays in the cache of one core."""
NARROW, NARROW_RUN_ROWS = 256, 1024
"""The same for rows of at most so many columns: a mixed table's graph has hundreds of small nodes,
and an eighth of its time was their start."""
MAX_SAMPLES = 4096
_BATCH_ROWS = 4096
_PLAIN = ScoreChoice()

PROVENANCE_FIELDS = (
    *(pa.field(name, TEXT) for name in ("model", "version", "digest")),
    *(pa.field(name, pa.int64()) for name in ("seed", "num_samples")),
)


@dataclass(frozen=True, slots=True)
class Provenance:
    """What made a result: columns of every output row."""

    model: str
    version: str
    digest: str
    seed: int
    num_samples: int

    def columns(self, rows: int) -> list[pa.Array]:
        """Return columns of `PROVENANCE_FIELDS`, with the same value in every row."""
        texts = [_constant(text, rows) for text in (self.model, self.version, self.digest)]
        numbers = [np.full(rows, number, np.int64) for number in (self.seed, self.num_samples)]
        return [*texts, *(pa.array(number) for number in numbers)]


def provenance_of(source: Source, seed: int, num_samples: int) -> Provenance:
    """Describe a source; the version of a bundle folder is the first 12 digits of its digest."""
    digest = source.bundle.manifest.digest
    name = source.name or source.bundle.path.resolve().name
    return Provenance(name, source.version or digest[:12], digest, seed, num_samples)


def layout_of(engine: Engine) -> RowLayout:
    """Return what the model of an engine takes as a row."""
    manifest = engine.bundle.manifest
    dtype = np.dtype(manifest.x_dtype)
    return RowLayout(
        manifest.x_shape,
        dtype,
        unit_range=manifest.unit_range,
        max_byte=manifest.max_byte,
        columns=manifest.columns,
        encoder=TableEncoder(manifest.schema) if manifest.schema else None,
    )


def read_all(
    rows: Rows,
    x: Sequence[str],
    layout: RowLayout,
    start: int = 0,
    stop: int | None = None,
    advice: str = "",
) -> Array:
    """Read the rows from `start` to `stop`, or to the end, as the input of a model.

    Returns them as (rows, *x_shape). `advice` ends the message about rows that cannot be used.

    Raises:
        UsageRefused: a column of `x` is missing, or it is unclear which columns are meant.
        DataRefused: a row cannot be used.
    """
    columns = choose_columns(rows.schema, x, (), layout)
    batches = rows.read(start, rows.total if stop is None else stop, columns, _BATCH_ROWS)
    arrays, codes = zip(*(read_x(batch, columns, layout) for batch in batches), strict=True)
    every = np.concatenate(codes)
    bad = np.flatnonzero(every)
    if len(bad):
        reason = re.sub("^x ", f"{layout.name} ", explain_code(int(every[bad[0]]), layout))
        raise DataRefused(
            f"{rows.input_path}: {reason} in row {start + bad[0]}; {len(bad)} of "
            f"{len(every)} rows cannot be used{advice}"
        )
    return np.concatenate(arrays)


class Scorer:
    """Maps a record batch to results and bad rows.

    Args:
        engine: runs the graphs; threads may share it, and the scorer.
        provenance: what makes the results; it holds the seed and the number of draws.
        operation: `score`, `encode` or `reconstruct`.
        schema: schema of the input.
        x: columns that hold `x`; if empty, those of the model, `x`, `image` or all numbers.
        ids: columns that are passed through.
        choice: what is wanted of scores.

    Raises:
        UsageRefused: an unknown operation or column, a bad number of draws, or a choice that the
            model does not have.
        DataRefused: the columns cannot hold `x`.
    """

    def __init__(
        self,
        engine: Engine,
        provenance: Provenance,
        operation: str,
        schema: pa.Schema,
        *,
        x: Sequence[str] = (),
        ids: Sequence[str] = (),
        choice: ScoreChoice = _PLAIN,
    ) -> None:
        if operation not in get_args(ScorerOperation):
            allowed = ", ".join(get_args(ScorerOperation))
            raise UsageRefused(f"operation must be one of {allowed}, got {operation!r}")
        if not 1 <= provenance.num_samples <= MAX_SAMPLES:
            raise UsageRefused(
                f"num_samples must be from 1 to {MAX_SAMPLES}, got {provenance.num_samples}"
            )
        check_seed(provenance.seed)
        self.engine = engine
        self.operation = operation
        self.provenance = provenance
        self.layout = layout_of(engine)
        self.copies = 1
        self.x = choose_columns(schema, x, ids, self.layout)
        self.ids = tuple(ids)
        self.results = ResultColumns(engine.bundle, operation, provenance.num_samples, choice)
        fields = [schema.field(name) for name in self.ids]
        self.bad_schema = pa.schema([*fields, pa.field("reason", TEXT)])
        self.schema = pa.schema([*fields, *self.results.fields, *PROVENANCE_FIELDS])
        if len(set(self.schema.names)) != len(self.schema.names):
            raise UsageRefused(
                f"id columns and results must have names of their own: {self.schema.names}"
            )
        if choice.explain:
            engine.require("explain")
        self.unknown = UnknownCells()
        self._run_rows = NARROW_RUN_ROWS if self.layout.size <= NARROW else RUN_ROWS
        if operation == "score":
            self._run_rows = max(1, self._run_rows // provenance.num_samples)

    def describe(self) -> dict[str, Any]:
        """Return which results are written."""
        return self.results.describe()

    def __call__(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """Return the results of the good rows as `schema`, and the bad rows as `bad_schema`.

        Raises:
            DataRefused: a column is of another kind than in the schema.
        """
        x, codes = read_x(batch, self.x, self.layout, unknown=self.unknown)
        outputs = self._compute(x)
        finite = np.logical_and.reduce(
            [np.isfinite(_as_matrix(value)).all(1) for value in outputs.values()]
        )
        if not finite.all():
            codes[np.flatnonzero(codes == 0)[~finite]] = RESULT
            outputs = {name: value[finite] for name, value in outputs.items()}
            x = x[finite]
        ids = self._read_ids(batch)
        values = self.results.make(
            x, outputs, self.find_lift(x) if self.results.choice.explain else None
        )
        return self._results(ids, codes, values), self._bad_rows(ids, codes)

    def _compute(self, x: Array) -> dict[str, Array]:
        operation = self.engine.operations[self.operation]
        if len(x) == 0:
            return self.engine.compute(self.operation, self._feeds(x))
        runs = [
            self.engine.compute(self.operation, self._feeds(x[start : start + self._run_rows]))
            for start in range(0, len(x), self._run_rows)
        ]
        return {
            tensor.name: np.concatenate([run[tensor.name] for run in runs])
            for tensor in operation.outputs
        }

    def find_lift(self, x: Array) -> Array:
        """Judge each cell by a row in which it is hidden, (rows, columns)."""
        if not len(x):
            return np.empty(x.shape, np.float32)
        rows = max(1, self._run_rows // self.engine.operations["explain"].copies)
        lifts = [
            self.engine.compute("explain", self._feeds(x[start : start + rows]))["column_lift"]
            for start in range(0, len(x), rows)
        ]
        return np.concatenate(lifts)

    def _feeds(self, x: Array) -> dict[str, Array]:
        if self.operation != "score":
            return {"x": x}
        made_by, latent_dim = self.provenance, self.engine.bundle.manifest.latent_dim
        return {"x": x, "eps": draw_eps(x, made_by.seed, made_by.num_samples, latent_dim)}

    def _read_ids(self, batch: pa.RecordBatch) -> list[pa.Array]:
        arrays = []
        for name in self.ids:
            kind, array = self.schema.field(name).type, batch.column(name)
            try:
                arrays.append(array if array.type == kind else array.cast(kind))
            except pa.ArrowException as err:
                raise DataRefused(
                    f"column {name!r} is {array.type} here, but was {kind} before: {err}"
                ) from err
        return arrays

    def _results(self, ids: list[pa.Array], codes: Array, values: list[pa.Array]) -> pa.RecordBatch:
        if codes.any():
            good = pa.array(codes == 0)
            ids = [array.filter(good) for array in ids]
        rows = int(np.count_nonzero(codes == 0))
        made_by = self.provenance.columns(rows)
        return pa.record_batch([*ids, *values, *made_by], schema=self.schema)

    def _bad_rows(self, ids: list[pa.Array], codes: Array) -> pa.RecordBatch:
        bad = pa.array(codes != 0)
        distinct, indices = np.unique(codes[codes != 0], return_inverse=True)
        texts = pa.array(
            [explain_code(code, self.layout) for code in distinct.tolist()], pa.string()
        )
        reasons = pa.DictionaryArray.from_arrays(indices.astype(np.int32), texts)
        return pa.record_batch(
            [*(array.filter(bad) for array in ids), reasons], schema=self.bad_schema
        )


def _constant(text: str, rows: int) -> pa.DictionaryArray:
    """Return a column with the same text in every row, which takes four bytes per row."""
    return name_codes(pa.array(np.zeros(rows, np.int32)), [text])


def _as_matrix(values: Array) -> Array:
    return values.reshape(len(values), math.prod(values.shape[1:]))
