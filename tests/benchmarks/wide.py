"""Load tables of 20,000 columns: Parquet beside pandas, CSV beside pyarrow, in one process."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from pyarrow import csv

from pipeline.data.selection import Selection
from pipeline.data.tables import read_table
from tests.benchmarks.measure import Row, best_in_turns

COLUMNS = 20_000
ROUNDS = 3


def measure() -> Iterator[Row]:
    """Beside what only reads the values."""
    values = np.random.default_rng(0).normal(size=(300, COLUMNS))
    frame = pd.DataFrame(values, columns=[f"c{number}" for number in range(COLUMNS)])
    with tempfile.TemporaryDirectory() as folder:
        parquet_file, csv_file = Path(folder) / "x.parquet", Path(folder) / "x.csv"
        frame.to_parquet(parquet_file)
        frame[:100].to_csv(csv_file, index=False)
        for what, path, other in (
            ("Parquet of 20,000 columns / pandas", parquet_file, partial(_by_pandas, parquet_file)),
            ("CSV of 20,000 columns / pyarrow", csv_file, partial(csv.read_csv, csv_file)),
        ):
            ours = partial(read_table, path, Selection())
            measured, beside = best_in_turns(ours, other, rounds=ROUNDS)
            yield Row(what, measured, beside, "at most 3x")


def _by_pandas(path: Path) -> object:
    return pd.read_parquet(path).to_numpy(np.float32)
