"""The environment of PyOD and SDV, and a process in it that the benchmark talks to."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tests.benchmarks.cache import CACHE
from tests.benchmarks.environments import make_environment
from tests.benchmarks.tables.plugs import Sampler, Scorer, Scores

REQUIREMENTS = ("pyod==3.6.7", "sdv==2.0.0", "torch==2.13.0", "pyarrow==25.0.1")
"""PyOD is under BSD-2-Clause; SDV and its TVAE under the Business Source License 1.1, which lets
anyone use them but not offer them as a service. Neither is part of this project."""
DETECTORS = ("KNN", "IForest", "ECOD", "COPOD", "VAE", "AutoEncoder")
SYNTHESIZERS = ("GaussianCopula", "TVAE")
ROOT = Path(__file__).parents[3]


class PeerFailed(Exception):
    """A peer could not do what it was asked; the message is its own."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A process in the peers' environment, which answers one request at a time."""

    process: subprocess.Popen[str]

    def ask(self, do: str, **values: Any) -> Mapping[str, Any]:
        """Return the answer to a request."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, "with": values}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise PeerFailed(f"the peers' process ended with {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerFailed(answer["error"])
        found: Mapping[str, Any] = answer["ok"]
        return found


@contextmanager
def start_worker(log: Path) -> Iterator[Worker]:
    """Start the process, with one thread and its messages in `log`, and stop it afterwards."""
    python = make_environment(CACHE / "table-peers", REQUIREMENTS) / "python"
    command = [str(python), "-m", "tests.benchmarks.tables.peers.worker"]
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    env = {**os.environ, **threads, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    pipe = subprocess.PIPE
    with log.open("w") as err:
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=err, text=True, env=env)
        try:
            yield Worker(process)
        finally:
            process.kill()
            process.communicate()


def detect_with(worker: Worker, detector: str) -> Scorer:
    """Return one of PyOD's detectors as a scorer."""

    def score(train: pd.DataFrame, tests: Sequence[pd.DataFrame], seed: int) -> Sequence[Scores]:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            train.to_parquet(folder / "train.parquet", index=False)
            paths = [folder / f"test-{index}.parquet" for index in range(len(tests))]
            for path, test in zip(paths, tests, strict=True):
                test.to_parquet(path, index=False)
            out = folder / "scores.npz"
            worker.ask(
                "score",
                detector=detector,
                train=str(folder / "train.parquet"),
                tests=[str(path) for path in paths],
                seed=seed,
                out=str(out),
            )
            with np.load(out) as arrays:
                return [
                    Scores(arrays[f"rows_{index}"], arrays.get(f"columns_{index}"))
                    for index in range(len(tests))
                ]

    return score


def sample_with(worker: Worker, synthesizer: str) -> Sampler:
    """Return one of SDV's synthesizers as a sampler."""

    def sample(train: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
        with tempfile.TemporaryDirectory() as temporary:
            rows, out = Path(temporary, "train.parquet"), Path(temporary, "drawn.parquet")
            train.to_parquet(rows, index=False)
            worker.ask(
                "sample",
                synthesizer=synthesizer,
                train=str(rows),
                count=count,
                seed=seed,
                out=str(out),
            )
            return pd.read_parquet(out)

    return sample
