"""Run batch jobs on the little bundle, in parts of 400 rows, and look at what they leave."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import dataset, parquet

from serving.batch.job import Summary, describe_job, run_job
from serving.batch.output import open_output
from serving.batch.scorer import Scorer, provenance_of
from serving.engine import Engine
from serving.io.rows import Rows
from serving.source import Source

Array = NDArray[Any]
ROWS = 2500
PART_ROWS = 400


def table(x: Array) -> pa.Table:
    column = pa.array([row.tobytes() for row in x], pa.binary(30))
    return pa.table({"x": column, "id": np.arange(len(x))})


def run(
    engine: Engine,
    location: Path,
    output: Path,
    *,
    overwrite: bool = False,
    ids: tuple[str, ...] = ("id",),
    where: str = "",
    seed: int = 7,
    num_samples: int = 4,
    **settings: Any,
) -> Summary:
    rows = Rows(str(location), ids, where)
    made_by = provenance_of(Source(engine.bundle), seed, num_samples)
    scorer = Scorer(engine, made_by, "score", rows.schema, ids=rows.ids)
    with open_output(str(output), describe_job(scorer, rows), overwrite=overwrite) as folder:
        return run_job(scorer, rows, folder, **{"workers": 2, "batch_rows": 64, **settings})


def read(folder: Path) -> pa.Table:
    """As a reader of Parquet folders sees it."""
    found = dataset.dataset(folder, format="parquet", exclude_invalid_files=False)
    return found.to_table()


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


class StopAt:
    """Raises in place of the `advance` that would tell of row number `row`."""

    def __init__(self, row: int, error: BaseException) -> None:
        self.left, self.error = row, error

    def __call__(self, rows: int) -> None:
        self.left -= rows
        if self.left < 0:
            raise self.error


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def replace(path: Path) -> None:
    """By a part of the same name that another job made."""
    parquet.write_table(pa.table({"id": [1]}), path)
