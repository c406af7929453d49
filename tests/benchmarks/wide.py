"""Tables of 20,000 columns: loading beside pandas and pyarrow, every stage beside 2,000 columns."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from pyarrow import csv

from pipeline.data.readers import read_table
from pipeline.data.selection import Selection
from tests.benchmarks.measure import Row, best_in_turns

COLUMNS, FEWER = 20_000, 2_000
ROUNDS = 3
TINY = "--hidden-dims 16 --latent-dim 2 --epochs 1 --nll-samples 2 --threads 1".split()
MODEL = ("--model", "bundle")
STAGES: dict[str, tuple[str, ...]] = {
    "evaluate": ("--run-id", "RUN", "--nll-samples", "2", "--threads", "1"),
    "export": ("--run-id", "RUN", "--out", "bundle"),
    "check": ("bundle", "--threads", "1"),
    "register": ("bundle",),
    "promote": ("1", "--min-active-units", "0", "--threads", "1"),
    "score": ("x.parquet", "scores", *MODEL, "--report", "report.html", "--workers", "1"),
    "reconstruct": ("x.csv", *MODEL, "--out", "rows.parquet", "--threads", "1"),
    "sample": (*MODEL, "--count", "400", "--out", "samples.csv", "--threads", "1"),
}
"""The commands after `vae train`, in their order; RUN is the id of the run."""


def measure() -> Iterator[Row]:
    """Load beside what only reads the values; then run each command on both tables."""
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary, str(columns)) for columns in (COLUMNS, FEWER)]
        for folder, columns in zip(folders, (COLUMNS, FEWER), strict=True):
            _write_tables(folder, columns)
        yield from _load(folders[0])
        times = (_run_stages(folder) for folder in folders)
        for (stage, many), (_, few) in zip(*times, strict=True):
            yield Row(f"vae {stage}, {COLUMNS:,} columns / {FEWER:,}", many, few, "at most 10x")


def _write_tables(folder: Path, columns: int) -> None:
    folder.mkdir()
    values = np.random.default_rng(0).normal(size=(400, columns))
    frame = pd.DataFrame(values, columns=[f"c{number}" for number in range(columns)])
    frame.to_parquet(folder / "x.parquet")
    frame[:100].to_csv(folder / "x.csv", index=False)


def _load(folder: Path) -> Iterator[Row]:
    for name, what, other in (
        ("x.parquet", "Parquet of 20,000 columns / pandas", _by_pandas),
        ("x.csv", "CSV of 20,000 columns / pyarrow", csv.read_csv),
    ):
        for more, chosen, bound in (
            ("", Selection(), "at most 3x"),
            (", and what they are", Selection(likelihood="auto"), "at most 6x"),
        ):
            ours = partial(read_table, folder / name, chosen)
            measured, beside = best_in_turns(ours, partial(other, folder / name), rounds=ROUNDS)
            yield Row(f"{what}{more}", measured, beside, bound)


def _by_pandas(path: Path) -> object:
    return pd.read_parquet(path).to_numpy(np.float32)


def _run_stages(folder: Path) -> Iterator[tuple[str, float]]:
    """Run the commands one after the other; yield the seconds that each takes, with its start."""
    seconds, said = _run(folder, "train", "--data", "x.parquet", *TINY)
    run_id = json.loads(said.splitlines()[-1])["run_id"]
    yield "train", seconds
    for stage, words in STAGES.items():
        yield stage, _run(folder, stage, *(word.replace("RUN", run_id) for word in words))[0]


def _run(folder: Path, *words: str) -> tuple[float, str]:
    started = time.perf_counter()
    command = (sys.executable, "-m", "pipeline.cli", *words)
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return time.perf_counter() - started, done.stdout
