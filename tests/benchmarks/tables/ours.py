"""Our side, by the command line alone: train and export once for each set of rows, then use it."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd

from serving.bundle import open_bundle
from serving.operations import By
from serving.p_values import choose_score, read_held_out_scores
from tests.benchmarks.tables.metrics import FDR
from tests.benchmarks.tables.plugs import Scores
from tests.benchmarks.tables.workers import PeerFailed

ROW = "benchmark_row"
"""The id that `vae score` passes through, so that its rows can be put in order."""
BY = "combined"
"""The column of scores to rank by; p-values tie, so that they would rank worse."""
OUTPUTS = ("elbo", "iw_elbo", "log_likelihood", "kl", "consistency", "combined", "column_lift")


@dataclass(frozen=True, slots=True)
class Ours:
    """A folder for bundles and files; `settings` are options of `vae train`."""

    folder: Path
    settings: tuple[str, ...] = ()

    def score(
        self, train: pd.DataFrame, tests: Sequence[pd.DataFrame], seed: int
    ) -> Sequence[Scores]:
        """Score rows, with all columns in the order of what they cost."""
        bundle = self.bundle(train, seed)
        return [self._score(bundle, test) for test in tests]

    def fill(self, train: pd.DataFrame, test: pd.DataFrame, seed: int) -> pd.DataFrame:
        """Fill the gaps of rows by `vae impute`."""
        rows, out = self.folder / "rows.parquet", self.folder / "filled"
        test.to_parquet(rows, index=False)
        self._run("impute", rows, out, "--model", self.bundle(train, seed), "--overwrite")
        return pd.read_parquet(out)[list(test)]

    def sample(self, train: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
        """Draw rows by `vae sample`."""
        out = self.folder / "drawn.parquet"
        bundle = self.bundle(train, seed)
        self._run("sample", "--model", bundle, "--count", count, "--seed", seed, "--out", out)
        drawn = pd.read_parquet(out)
        # days are read as objects of Python, which have no unit
        days = {
            name: column.dtype
            for name, column in train.items()
            if pd.api.types.is_datetime64_any_dtype(column)
        }
        return drawn.astype(days)

    def bundle(self, train: pd.DataFrame, seed: int) -> Path:
        """Return the bundle of these rows and this seed, which is made once."""
        rows = self.folder / "train.parquet"
        train.to_parquet(rows, index=False)
        name = hashlib.sha256(rows.read_bytes() + f"{seed} {self.settings}".encode()).hexdigest()
        bundle = self.folder / name[:16]
        if not bundle.exists():
            trained = self._run("train", "--data", rows, "--seed", seed, *self.settings)
            run_id = json.loads(trained.strip().splitlines()[-1])["run_id"]
            self._run("export", "--run-id", run_id, "--out", bundle)
        return bundle

    def _score(self, bundle: Path, test: pd.DataFrame) -> Scores:
        rows, out = self.folder / "rows.parquet", self.folder / "scores"
        test.assign(**{ROW: np.arange(len(test))}).to_parquet(rows, index=False)
        options = ("--explain", test.shape[1], "--fdr", FDR[0], "--per-column")
        words = ("score", rows, out, "--model", bundle, *options)
        self._run(*words, "--id", ROW, "--overwrite")
        found = pd.read_parquet(out).sort_values(ROW)
        columns = np.full(test.shape, -np.inf)
        places = {name: place for place, name in enumerate(test.columns)}
        for order in range(1, test.shape[1] + 1):
            for row, (name, nats) in enumerate(
                zip(found[f"column_{order}"], found[f"nats_{order}"], strict=True)
            ):
                if not isinstance(name, str):  # the row has fewer cells
                    continue
                # the parts of a date are columns of their own; a lift is low for an odd cell
                place = places[name if name in places else name.rpartition(".")[0]]
                columns[row, place] = max(columns[row, place], -nats)
        p_values = found["p_value"].to_numpy()
        outputs = {name: np.stack(list(found[name])) for name in OUTPUTS}
        held_out = read_held_out_scores(open_bundle(bundle))
        assert held_out, "vae train holds rows out"
        return Scores(
            rows=-found[BY].to_numpy(),
            columns=columns,
            p_values=p_values,
            flagged=found["flagged"].to_numpy(bool),
            held_out=len(held_out.scores[BY]),
            others={by: -choose_score(by, outputs) for by in get_args(By)},
        )

    def _run(self, *words: object) -> str:
        """Run `vae` with its store in the folder and one thread; return what it prints."""
        command = [sys.executable, "-m", "pipeline.cli", *map(str, words)]
        env = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder}/mlflow.db"}
        env |= {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise PeerFailed(f"vae {words[0]}: {reason}")
        return done.stdout
