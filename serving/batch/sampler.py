"""Draw samples of the prior as record batches; row `i` of a seed is the same in every job.

`RowNumbers` takes the place of the rows of files and `Sampler` that of the scorer, so that
`run_job` makes the parts, resumes them and marks the end as it does for scores.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from serving.batch import job
from serving.batch.result_columns import arrow_type, to_arrow
from serving.batch.scorer import PROVENANCE_FIELDS, Provenance
from serving.engine import Engine
from serving.io.array_files import free_name
from serving.io.arrow_cells import decode_batch
from serving.io.column_choice import RowLayout
from serving.noise import check_seed

ROW = "row"
_ROWS = pa.schema([pa.field(ROW, pa.int64())])


class RowNumbers:
    """The rows 0 to `total`; each holds only its number."""

    def __init__(self, total: int) -> None:
        self.total = total

    def read(
        self, start: int, stop: int, columns: Sequence[str], batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Yield batches of the rows `start` to `stop`."""
        last = min(stop, self.total)
        for first in range(start, last, batch_rows):
            numbers = pa.array(np.arange(first, min(first + batch_rows, last)))
            yield pa.record_batch([numbers], schema=_ROWS)

    def keep(self, numbers: pa.RecordBatch) -> pa.RecordBatch:
        """Return all rows: there is no filter."""
        return numbers


class Sampler:
    """Maps row numbers to the samples that `Engine.sample` gives for them; no row is bad.

    They are columns by the names that the model learned from, or lists. Where the name of a column
    is that of what made the sample, such as `model`, the latter gets a `_` at its end. If rows are
    `drawn`, they are those of `Engine.draw`, and a table of several kinds has its own types.
    """

    def __init__(self, engine: Engine, provenance: Provenance, *, drawn: bool = False) -> None:
        check_seed(provenance.seed)
        self.engine = engine
        self.provenance = provenance
        self.operation = "draw" if drawn else "sample"
        (x,) = engine.require(self.operation).outputs
        self.layout = RowLayout(engine.bundle.manifest.x_shape, np.dtype(x.dtype), False)
        self.x: tuple[str, ...] = ()
        self.copies = 1
        manifest = engine.bundle.manifest
        self._cells = manifest.schema if drawn else None
        self._type = arrow_type(x)
        if self._cells is not None:
            features = [*decode_batch(self._cells, np.empty((0, *manifest.x_shape))).schema]
        elif manifest.columns:
            features = [pa.field(name, pa.float32()) for name in manifest.columns]
        else:
            features = [pa.field(x.name, self._type)]
        self.columns = tuple(item.name for item in features) if manifest.columns else ()
        made_by = [*_ROWS, *PROVENANCE_FIELDS]
        row, *origin = (item.with_name(free_name(item.name, self.columns)) for item in made_by)
        self.schema = pa.schema([row, *features, *origin])

    def __call__(self, numbers: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """Return the samples of consecutive rows, with `schema`, and no bad rows."""
        rows = numbers.num_rows
        start = numbers.column(ROW)[0].as_py()
        sample = self.engine.draw if self.operation == "draw" else self.engine.sample
        x = sample(rows, self.provenance.seed, start=start)
        if self._cells is not None:
            values = decode_batch(self._cells, x).columns
        elif self.columns:
            values = [*map(pa.array, x.reshape(rows, -1).T)]
        else:
            values = [to_arrow(x, self._type)]
        made_by = self.provenance.columns(rows)
        results = pa.record_batch([numbers.column(ROW), *values, *made_by], schema=self.schema)
        return results, numbers.slice(0, 0)


def describe_samples(sampler: Sampler, count: int) -> dict[str, Any]:
    """Describe all that the output depends on, in the types of JSON."""
    return {
        "format": 1,
        "operation": sampler.operation,
        "count": count,
        "columns": list(sampler.columns),
        **asdict(sampler.provenance),
        "device": sampler.engine.device,
        "part_rows": job.PART_ROWS,
    }
