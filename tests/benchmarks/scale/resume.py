"""Trainings on streamed rows that are killed at random moments, and resumed: do weights agree?

A training in a process of its own saves its state every tenth of a second, instead of every ten
minutes, and is killed with `kill -9` at a random moment within its epochs. `vae train --resume`
continues it. Its weights must be those of a training that nothing killed, byte for byte.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.data.dataset import load_dataset
from tests.benchmarks.scale.throughput import save_parquet

KILLS = 10
VAE = (
    "from pipeline.training import loop; loop.SAVE_EVERY_S = 0.1; "
    "from pipeline.cli import main; main.main()"
)
SETTINGS = (
    *("--epochs", "3", "--patience", "9", "--latent-dim", "5", "--hidden-dims", "64"),
    *("--nll-samples", "4", "--test-fraction", "0.01", "--binarize", "dynamic"),
    *("--memory", "40MB", "--threads", "1"),
)
_TIMEOUT_S, _POLL_S = 600.0, 0.02


@dataclass(frozen=True, slots=True)
class Place:
    """A folder with data, and the trainings on it."""

    folder: Path
    data: Path
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def start(self, *words: object) -> "subprocess.Popen[str]":
        """Start `vae train`."""
        return subprocess.Popen(
            [sys.executable, "-c", VAE, "train", *map(str, words)],
            cwd=self.folder,
            env={
                **os.environ,
                "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder / 'mlflow.db'}",
                "PYTHONPATH": str(Path(__file__).parents[3]),
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, *words: object) -> str:
        """Run `vae train` to its end; return what it said."""
        process = self.start(*words)
        _, said = process.communicate(timeout=_TIMEOUT_S)
        if process.returncode:
            raise RuntimeError(said)
        return said

    def runs(self) -> set[Path]:
        """Return the artifact folders of runs that hold a state or weights."""
        found = (*self.folder.rglob("resume"), *self.folder.rglob("checkpoint"))
        return {path.parent for path in found}

    def weights(self, run: Path) -> bytes:
        """Return the weights of a finished run."""
        return (run / "checkpoint" / "weights.pt").read_bytes()

    def kill(self, within_s: float) -> Path | None:
        """Start a training and kill it up to `within_s` after its first state; return its run.

        It is None if the training had ended before.
        """
        before = self.runs()
        process = self.start("--data", self.data, *SETTINGS)
        deadline = time.monotonic() + _TIMEOUT_S
        while not (new := self.runs() - before):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(process.communicate()[1])
            time.sleep(_POLL_S)
        time.sleep(self.generator.uniform(0, within_s))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        (run,) = new
        return None if (run / "checkpoint").exists() else run


def measure() -> Iterator[object]:
    """Kill trainings on a mapped file, and on Parquet."""
    x = load_dataset("mnist", valid_fraction=0, test_fraction=0.1).sample.reshape(60_000, -1)
    for what, name in (("a mapped .npy", "x.npy"), ("Parquet by blocks", "x.parquet")):
        with tempfile.TemporaryDirectory() as temporary:
            place = Place(Path(temporary), Path(temporary, name))
            if name == "x.npy":
                np.save(place.data, x)
            else:
                save_parquet(place.data, x, 2_000)
            yield kill_often(what, place)


def kill_often(what: str, place: Place) -> str:
    """Kill trainings, resume them, and count those with the weights of one that was not killed."""
    started = time.monotonic()
    said = place.finish("--data", place.data, *SETTINGS)
    (whole,) = place.runs()
    (took,) = re.findall(r"epoch 3/3 .*?(\d+) s$", said, re.MULTILINE)
    equal, points = 0, list[tuple[str, str]]()
    while len(points) < KILLS:
        if (run := place.kill(0.7 * float(took))) is None:
            continue
        told = place.finish("--resume", run.parent.name)
        points.append(re.findall(r"resuming in epoch (\d), after ([\d,]+) steps", told)[0])
        equal += place.weights(run) == place.weights(whole)
    steps = ", ".join(f"{step} (epoch {epoch})" for epoch, step in points)
    return (
        f"kill -9, {what}: bit-equal weights after {equal} of {KILLS}, at least {KILLS}; resumed "
        f"after steps {steps}; {time.monotonic() - started:.0f} s"
    )
