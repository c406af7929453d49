"""Read rows with their times and scores, to tell when they began to differ from the held-out ones.

In: what a server captured, results of `vae score`, or any rows with a time. Out: batches of times
and scores, with the draws and the seed of held-out rows. Results must have been made by the same
version in the same way; other rows are scored here. Raises `UsageRefused` if there is no time, and
`DataRefused` for results of another version.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serving.batch.job import BATCH_BYTES, BATCH_ROWS
from serving.batch.scorer import layout_of
from serving.drift_test import COLUMNS, FIRST
from serving.engine import Engine
from serving.errors import DataRefused, UsageRefused
from serving.io.arrow_types import unwrap_type
from serving.io.column_choice import RowLayout, choose_columns
from serving.io.columns import read_x
from serving.io.rows import Rows
from serving.p_values import HeldOutScores
from serving.table_cells import UnknownCells

Array = NDArray[Any]

TIMES = ("vae_time", "time", "timestamp")
"""Columns that hold the time if none is named; a server names the first so."""
_MADE_BY = ("digest", "seed", "num_samples")
_VERSION = "vae_version"
_UTC = pa.timestamp("us", "UTC")
_MOST_S = 1e11
"""A later time, beyond the year 5000, is one in milliseconds."""


@dataclass(frozen=True, slots=True)
class TimedScores:
    """Rows in the order of their times."""

    times: Array
    """Unix times (rows,)."""
    scores: Mapping[str, Array]
    """`elbo` (rows,), and `column_log_likelihood` (rows, columns) if it is known."""


@dataclass(slots=True)
class MonitoredRows:
    """The scores of an input, read once from its start to its end.

    Args:
        rows: the input.
        engine: the version that its rows are compared with.
        held_out: the scores of the version's held-out rows.
        time: the column of times; if empty, the first of `TIMES` that there is.
        x: columns of `x`, as `vae score` takes them.
    """

    rows: Rows
    engine: Engine
    held_out: HeldOutScores
    time: str = ""
    x: Sequence[str] = ()
    seen: int = field(default=0, init=False)
    """Rows read so far."""
    bad: int = field(default=0, init=False)
    """Rows without a time or a score."""
    versions: Counter[str] = field(default_factory=Counter, init=False)
    """Rows by the version that answered them, if a server captured them."""
    columns: tuple[str, ...] = field(default=(), init=False)
    """The columns of the table whose scores are known."""
    unknown: UnknownCells = field(default_factory=UnknownCells, init=False)
    """Words and gaps that the schema does not know."""
    _layout: RowLayout = field(init=False)
    are_results: bool = field(default=False, init=False)
    """Whether they are results of `vae score`."""

    def __post_init__(self) -> None:
        """Find out what the input is.

        Raises:
            UsageRefused: it has no time, or the columns of `x` are not there.
        """
        self._layout = layout_of(self.engine)
        schema, names = self.rows.schema, self.rows.schema.names
        self.time = self.time or next((name for name in TIMES if name in names), "")
        if self.time not in names:
            wanted = f"no column {self.time!r}" if self.time else "no column 'time'"
            raise UsageRefused(
                f"{self.rows.input_path} has {wanted} to tell days by: name it with --time; it has "
                f"{', '.join(names[:8])}"
            )
        _check_time(self.time, schema.field(self.time).type)
        self.are_results = {FIRST, *_MADE_BY} <= set(names) and not self.x
        table = self.engine.bundle.manifest.schema
        if table and COLUMNS in self.held_out.scores and (not self.are_results or COLUMNS in names):
            self.columns = tuple(column.name for column in table.columns)
        if not self.are_results:
            self.x = choose_columns(schema, self.x, (self.time,), self._layout)

    def read(self) -> Iterator[TimedScores]:
        """Yield the scores of batches of rows.

        Raises:
            DataRefused: a result was made by another version, or in another way.
        """
        most = max(1, min(BATCH_ROWS, BATCH_BYTES // self._layout.row_bytes))
        if self.are_results:
            most, read = 16 * BATCH_ROWS, [FIRST, *_MADE_BY, *([COLUMNS] if self.columns else [])]
        else:
            read = [*self.x, *([_VERSION] if _VERSION in self.rows.schema.names else [])]
        read = list(dict.fromkeys((self.time, *read)))
        for batch in self.rows.read(0, self.rows.total, read, most):
            self.seen += batch.num_rows
            kept = self.rows.keep(batch)
            times = to_unix(kept.column(self.time), self.time)
            scores, good = self._results(kept) if self.are_results else self._score(kept)
            usable = np.isfinite(times) & good
            self.bad += len(times) - int(usable.sum())
            times = times[usable]
            order = np.argsort(times, kind="stable")
            found = {name: values[usable][order] for name, values in scores.items()}
            yield TimedScores(times[order], found)

    def _score(self, batch: pa.RecordBatch) -> tuple[dict[str, Array], Array]:
        """Score rows; return their scores, and which could be scored (rows,)."""
        if _VERSION in batch.schema.names:
            values = batch.column(_VERSION).value_counts()
            self.versions.update({str(each["values"]): each["counts"].as_py() for each in values})
        x, codes = read_x(batch, self.x, self._layout, unknown=self.unknown)
        outputs = self.engine.score(x, self.held_out.num_samples, self.held_out.seed)
        good = codes == 0
        scores = {}
        for name in (FIRST, COLUMNS) if self.columns else (FIRST,):
            scores[name] = np.zeros((len(codes), *outputs[name].shape[1:]), np.float32)
            scores[name][good] = outputs[name]
        return scores, good & np.isfinite(scores[FIRST])

    def _results(self, batch: pa.RecordBatch) -> tuple[dict[str, Array], Array]:
        """Return the scores that rows have already, and which are numbers (rows,)."""
        own = (self.engine.bundle.manifest.digest, self.held_out.seed, self.held_out.num_samples)
        for name, expected in zip(_MADE_BY, own, strict=True):
            for found in batch.column(name).unique().to_pylist():
                if found != expected:
                    raise DataRefused(
                        f"{self.rows.input_path} has scores of {name} {found!r}, the version and "
                        f"its held-out rows have {expected!r}: score the rows again, or name the "
                        "version that made them with --model"
                    )
        scores = {FIRST: batch.column(FIRST).to_numpy(zero_copy_only=False).astype(np.float64)}
        if self.columns:
            lists = batch.column(COLUMNS)
            scores[COLUMNS] = lists.flatten().to_numpy().reshape(len(lists), len(self.columns))
        return scores, np.isfinite(scores[FIRST])


def _check_time(name: str, kind: pa.DataType) -> None:
    plain = unwrap_type(kind)
    is_time = pa.types.is_timestamp(plain) or pa.types.is_date(plain)
    is_number = pa.types.is_integer(plain) or pa.types.is_floating(plain)
    if not (is_time or is_number or pa.types.is_string(plain) or pa.types.is_large_string(plain)):
        raise UsageRefused(f"--time needs a column of times, and {name!r} is {kind}")


def to_unix(column: pa.Array, name: str) -> Array:
    """Return times, text in the form of ISO 8601, or Unix seconds as Unix seconds, (rows,).

    A time without a zone is one of UTC; a gap is NaN.

    Raises:
        DataRefused: a text is no time, or a number is too large to be in seconds.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        seconds = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        if np.any(np.abs(seconds[np.isfinite(seconds)]) > _MOST_S):
            raise DataRefused(
                f"column {name!r} must hold times in Unix seconds, got {np.nanmax(seconds):.15g}"
            )
        return np.asarray(seconds, np.float64)
    try:
        moments = column.cast(_UTC)
    except pa.ArrowException:
        try:  # texts without a zone
            moments = column.cast(pa.timestamp("us")).cast(_UTC)
        except pa.ArrowException as err:
            raise DataRefused(f"column {name!r} must hold times: {err}") from err
    microseconds = moments.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return np.where(moments.is_null().to_numpy(zero_copy_only=False), np.nan, microseconds / 1e6)
