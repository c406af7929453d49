"""What streamed rows teach, beside the same rows in memory: the validation ELBO on MNIST.

Mapped rows come in the order that they have in memory. Parquet comes in windows of two sizes: one
that holds all rows, so that each epoch has a permutation of all, and several that do not. Another
order is another draw of the training, which after few epochs is some tenths of a nat better or
worse.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from pipeline.config import configure
from pipeline.data.dataset import Dataset, load_dataset
from pipeline.data.plan import Resources
from pipeline.data.streaming.loading import load_streamed
from pipeline.training.loop import train
from serving.cpu import available_cores
from tests.benchmarks.scale.throughput import save_parquet

EPOCHS, SEEDS = 5, (0, 1, 2)
MOST_NATS = 0.3
VALID, TEST = 0.1, 0.1


def measure() -> Iterator[str]:
    """Yield a line for each kind of streamed rows."""
    torch.set_num_threads(available_cores())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        x = load_dataset("mnist", valid_fraction=0, test_fraction=0.1).sample.reshape(-1, 784)
        np.save(folder / "x.npy", x)
        save_parquet(folder / "x.parquet", x, group=2_000)
        memory = load_dataset(str(folder / "x.npy"), valid_fraction=VALID, test_fraction=TEST)
        expected = [_elbo(memory, seed) for seed in SEEDS]
        for what, file, size in (
            (".npy, mapped", "x.npy", 1 << 30),
            ("Parquet, one window of all rows", "x.parquet", 1 << 30),
            ("Parquet, several windows", "x.parquet", 80 << 20),
        ):
            data = load_streamed(
                str(folder / file), Resources(memory=size), valid_fraction=VALID, test_fraction=TEST
            )
            apart = [_elbo(data, seed) - other for seed, other in zip(SEEDS, expected, strict=True)]
            listed = ", ".join(f"{each:+.3f}" for each in apart)
            held = "held" if min(apart) >= -MOST_NATS else "NOT held"
            yield (
                f"scale, answers: {what}: validation ELBO after {EPOCHS} epochs, less that in "
                f"memory, seeds {SEEDS}: {listed} nats, goal at least -{MOST_NATS}: {held}"
            )


def _elbo(data: Dataset, seed: int) -> float:
    """Train the preset `default`, and return the ELBO of the last epoch on the validation rows."""
    config = configure("default", epochs=EPOCHS, patience=EPOCHS, seed=seed)
    return train(data, config).history[-1]["valid_elbo"]
