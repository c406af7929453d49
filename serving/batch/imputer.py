"""Fill the gaps of a record batch by a model of its table: Arrow in, Arrow out.

The output has the columns of the input, with their names, and with their types except that
dictionaries become their values, and views of text or bytes large text or bytes. Cells that are not
gaps pass through as they are. What fills the gaps of a row depends on the seed and on the row
alone. `Imputer` takes the place of the scorer in a job.
"""

import math
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute

from serving.batch.scorer import MAX_SAMPLES, Provenance, layout_of
from serving.cell_values import number_text
from serving.cells import decode_cells
from serving.engine import MAX_DECODED, Engine
from serving.errors import DataRefused, UsageRefused
from serving.io.array_files import free_name
from serving.io.arrow_cells import CELL_TYPES
from serving.io.arrow_types import is_text, unwrap_type, widen_view
from serving.io.column_choice import choose_columns
from serving.io.columns import explain_code, read_x, unwrap_array
from serving.noise import check_seed, draw_eps, draw_fillings
from serving.schema import Column, Schema
from serving.table_cells import UnknownCells

Array = NDArray[Any]

MAX_DRAWS = 1000
DRAW = "draw"
_TEXT = pa.dictionary(pa.int32(), pa.string())


class Imputer:
    """Maps a record batch to rows without gaps, and to bad rows.

    Args:
        engine: runs the graphs; threads may share it, and the imputer.
        provenance: what fills the gaps; it holds the seed and the number of draws of z.
        schema: schema of the input.
        draws: number of completed copies of each row, drawn from p(missing given seen) and numbered
            by a column `draw` from 1 on; 0 for one row with means and modes.

    Raises:
        UsageRefused: the model fills no gaps, a column is missing, or a bad number of draws.
    """

    operation = "impute"

    def __init__(
        self, engine: Engine, provenance: Provenance, schema: pa.Schema, *, draws: int = 0
    ) -> None:
        engine.require("impute")
        if not 1 <= provenance.num_samples <= MAX_SAMPLES:
            raise UsageRefused(
                f"num_samples must be from 1 to {MAX_SAMPLES}, got {provenance.num_samples}"
            )
        if not 0 <= draws <= MAX_DRAWS:
            raise UsageRefused(f"draws must be from 0 to {MAX_DRAWS}, got {draws}")
        check_seed(provenance.seed)
        known = engine.bundle.manifest.schema
        if known is None:
            raise UsageRefused("impute needs a model of a table with --likelihood mixed")
        self.engine = engine
        self.provenance = provenance
        self.draws = draws
        self.copies = max(1, draws)
        self.layout = layout_of(engine)
        choose_columns(schema, (), (), self.layout)
        schema = pa.schema([item.with_type(widen_view(item.type)) for item in schema])
        self.x = tuple(schema.names)
        self.ids: tuple[str, ...] = ()
        self._places = _places_of(known)
        self._columns = known.columns
        fields = [self._field(schema.field(name)) for name in schema.names]
        number = [pa.field(free_name(DRAW, schema.names), pa.int32())] if draws else []
        self.schema = pa.schema([*fields, *number])
        reason = pa.field(free_name("reason", schema.names), _TEXT)
        self.bad_schema = pa.schema([*map(schema.field, schema.names), reason])
        self.unknown = UnknownCells()
        self._run_rows = max(1, MAX_DECODED // max(provenance.num_samples, self.copies))

    def describe(self) -> dict[str, Any]:
        """Return the number of copies of each row."""
        return {"draws": self.draws}

    def __call__(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """Return the good rows as `schema`, without gaps, and the bad rows as `bad_schema`."""
        batch = _widen_views(batch)
        x, codes = read_x(batch, self.x, self.layout, unknown=self.unknown)
        bad = self._bad_rows(batch, codes)
        if codes.any():
            batch = batch.filter(pa.array(codes == 0))
        with_gaps = np.flatnonzero(np.isnan(x).any(1))
        filled = np.repeat(x, self.copies, axis=0)
        for start in range(0, len(with_gaps), self._run_rows):
            rows = with_gaps[start : start + self._run_rows]
            places = (rows[:, None] * self.copies + np.arange(self.copies)).reshape(-1)
            filled[places] = self._fill(x[rows])
        return self._results(batch, np.isnan(x), filled), bad

    def _fill(self, x: Array) -> Array:
        """Return rows (rows * copies, columns) without gaps, the copies of each row together."""
        made_by, latent_dim = self.provenance, self.engine.bundle.manifest.latent_dim
        eps = draw_eps(x, made_by.seed, made_by.num_samples, latent_dim)
        found = self.engine.compute("impute", {"x": x, "eps": eps})
        if not self.draws:
            return found["x_filled"]
        noise, choice = draw_fillings(x, made_by.seed, self.draws, x.shape[1])
        chosen = choose_draws(found["log_weights"], choice)
        z = np.take_along_axis(found["z"], chosen[:, :, None], axis=1)
        cells = {
            "z": z.reshape(-1, latent_dim),
            "noise": noise.reshape(len(x) * self.draws, x.shape[1]),
        }
        drawn = self.engine.compute("draw", cells)["x"]
        copies = np.repeat(x, self.draws, axis=0)
        return np.where(np.isnan(copies), drawn, copies)

    def _results(self, batch: pa.RecordBatch, gaps: Array, filled: Array) -> pa.RecordBatch:
        places = {name: index for index, name in enumerate(batch.schema.names)}
        columns = []
        for item in self.schema:
            if item.name not in places:
                continue
            array = batch.column(places[item.name])
            if item.name in self._places:
                array = unwrap_array(array)
                if array.type != item.type:
                    array = _cast(array, item, "here")
            elif array.type != item.type:
                array = _cast(array, item, "here")
            if self.copies > 1:
                array = array.take(pa.array(np.repeat(np.arange(len(array)), self.copies)))
            if item.name in self._places:
                place = self._places[item.name]
                missing = np.repeat(gaps[:, place], self.copies)
                if missing.any():
                    array = _put(array, missing, self._columns[place], filled[:, place], item)
            columns.append(array)
        if self.draws:
            numbers = np.tile(np.arange(1, self.draws + 1, dtype=np.int32), batch.num_rows)
            columns.append(pa.array(numbers))
        return pa.record_batch(columns, schema=self.schema)

    def _bad_rows(self, batch: pa.RecordBatch, codes: Array) -> pa.RecordBatch:
        bad = pa.array(codes != 0)
        distinct, indices = np.unique(codes[codes != 0], return_inverse=True)
        texts = [explain_code(code, self.layout) for code in distinct.tolist()]
        reasons = pa.DictionaryArray.from_arrays(
            indices.astype(np.int32), pa.array(texts, pa.string())
        )
        own = [batch.column(name).filter(bad) for name in self.bad_schema.names[:-1]]
        return pa.record_batch([*own, reasons], schema=self.bad_schema)

    def _field(self, item: pa.Field) -> pa.Field:
        """Return the field of a column of the output."""
        if item.name not in self._places:
            return item
        column, kind = self._columns[self._places[item.name]], unwrap_type(item.type)
        if pa.types.is_null(kind):
            kind = CELL_TYPES[column.type]
        return pa.field(item.name, widen_view(kind))


def choose_draws(log_weights: Array, choice: Array) -> NDArray[np.intp]:
    """Pick a draw (rows, times) by numbers from 0 to 1, each with the probability of its weight.

    This is sampling-importance-resampling; `log_weights` are (rows, num_samples).
    """
    ends = np.exp(log_weights.astype(np.float64)).cumsum(1)
    wanted = choice * ends[:, -1:]
    chosen = (wanted[:, :, None] > ends[:, None, :-1]).sum(2)
    return np.asarray(chosen, np.intp)


def _places_of(schema: Schema) -> dict[str, int]:
    """Return the column of `x` from which each of the table's columns is filled."""
    return {
        column.table_column: place
        for place, column in enumerate(schema.columns)
        if column.part in ("", "day")
    }


def _widen_views(batch: pa.RecordBatch) -> pa.RecordBatch:
    kinds = [widen_view(kind) for kind in batch.schema.types]
    if kinds == batch.schema.types:
        return batch
    columns = [array.cast(kind) for array, kind in zip(batch.columns, kinds, strict=True)]
    return pa.RecordBatch.from_arrays(columns, batch.schema.names)


def _put(array: pa.Array, missing: Array, column: Column, x: Array, item: pa.Field) -> pa.Array:
    """Put values of `x` (rows,) where cells are `missing`, in the type of the field."""
    values = decode_cells(column, x[missing])
    if column.words and values.dtype.kind in "fi" and is_text(item.type):
        values = np.array([None if v != v else number_text(v) for v in values], object)
    elif column.kind == "count" or pa.types.is_integer(item.type):
        values = _to_whole(values, item.type)
    found = _cast(pa.array(values, from_pandas=True), item, "in the model")
    places = np.full(len(missing), -1, np.int64)
    places[missing] = np.arange(len(found))
    return compute.if_else(pa.array(missing), found.take(pa.array(places, mask=~missing)), array)


def _to_whole(values: Array, kind: pa.DataType) -> Array:
    """Round numbers, to those that an integer type holds."""
    if values.dtype.kind not in "fi":
        return values
    whole = np.rint(values.astype(np.float64))
    if not pa.types.is_integer(kind):
        return whole
    own = np.dtype(str(kind))  # both have the same names; Arrow's own answer needs pandas
    limits = np.iinfo(own)
    largest = math.nextafter(float(limits.max), 0) if limits.bits == 64 else limits.max
    return np.clip(whole, limits.min, largest).astype(own)


def _cast(array: pa.Array, item: pa.Field, where: str) -> pa.Array:
    """Cast to the type of a field; numbers lose digits that it does not hold."""
    try:
        kind = item.type
        if pa.types.is_decimal(kind) and pa.types.is_floating(array.type):
            array = compute.round(array, kind.scale)
        if pa.types.is_timestamp(kind) and kind.tz and pa.types.is_timestamp(array.type):
            array = array.cast(pa.timestamp(array.type.unit, "UTC"))
        return array.cast(kind)
    except pa.ArrowException as err:
        raise DataRefused(
            f"column {item.name!r} is {item.type}, but {array.type} {where}: {err}"
        ) from err
