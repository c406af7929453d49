"""The inputs of every server: one graph, real MNIST rows, and onnxruntime's answers to them."""

import os
import shutil
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pipeline.config import configure
from pipeline.data.dataset import load_dataset
from tests.benchmarks.cache import CACHE

Array = NDArray[Any]

ROOT = Path(__file__).parents[3]
GRAPH = "reconstruct.onnx"


@dataclass(frozen=True, slots=True)
class Inputs:
    """A bundle folder and held-out rows (rows, 28, 28), as bytes."""

    bundle: Path
    x: Array

    @property
    def graph(self) -> Path:
        """Return the graph that all servers run."""
        return self.bundle / GRAPH

    def session(self) -> onnxruntime.InferenceSession:
        """Open a session with one thread, as every server has."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        return onnxruntime.InferenceSession(self.graph, options, providers=providers)


def prepare_inputs(preset: str) -> Inputs:
    """Train one epoch and export, unless the same code has done so before."""
    config = configure(preset, epochs=1)
    dataset = load_dataset(config.data.data, valid_fraction=0.1, test_fraction=0.1)
    folder = CACHE / f"bundle-{preset}-{_digest_of_sources()}"
    if not folder.exists():
        # imported here, because it imports torch
        from tests.trained_models import make_bundle, train_checkpoint

        for old in CACHE.glob(f"bundle-{preset}-*"):
            shutil.rmtree(old)
        new = CACHE / f"new-{os.getpid()}"
        make_bundle(new, (train_checkpoint(dataset, config), dataset))
        new.rename(folder)
    return Inputs(folder, dataset.test.x[:64])


def floor(inputs: Inputs, rows: int, seconds: float, core: int) -> float:
    """Measure onnxruntime's runs a second in a loop, on this thread and the given core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    session, feeds = inputs.session(), {"x": inputs.x[:rows]}
    session.run(None, feeds)
    runs, started = 0, perf_counter()
    while (elapsed := perf_counter() - started) < seconds:
        session.run(None, feeds)
        runs += 1
    os.sched_setaffinity(0, cores)
    return runs / elapsed


def check_answer(inputs: Inputs, rows: int, answer: Array) -> None:
    """Refuse an answer that is not the graph's."""
    (right,) = inputs.session().run(None, {"x": inputs.x[:rows]})
    if answer.shape != right.shape:
        raise ValueError(f"wrong answer: shape {answer.shape}, should be {right.shape}")
    diff = float(np.abs(answer.astype(np.float64) - right).max())
    if not diff <= 1e-5:
        raise ValueError(f"wrong answer: differs by {diff:.3g} from onnxruntime's")


def _digest_of_sources() -> str:
    digest = sha256()
    rooms = ("data", "export", "model", "parity", "training")
    files = sorted(file for room in rooms for file in (ROOT / "pipeline" / room).glob("*.py"))
    files.append(ROOT / "pipeline" / "config.py")
    for path in (*files, ROOT / "serving" / "bundle.py", ROOT / "serving" / "operations.py"):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
