"""The time that tracking adds to a training."""

import os
import tempfile
from collections.abc import Iterator

import torch

from pipeline.config import configure
from pipeline.data.dataset import load_dataset
from pipeline.tracking import TrackedRun, tracked_run
from pipeline.training.loop import TrainHooks, train
from serving.cpu import available_cores
from tests.benchmarks.measure import Row, best_in_turns

EPOCHS = 2


def measure() -> Iterator[Row]:
    """Train two epochs on MNIST with metrics logged to sqlite, and the same without."""
    torch.set_num_threads(available_cores())
    config = configure(epochs=EPOCHS)
    mnist = load_dataset("mnist", valid_fraction=0.1, test_fraction=0.1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        with tracked_run() as run:
            hooks = TrainHooks(log=lambda epoch, metrics: run.log_metrics(metrics, step=epoch))
            tracked, plain = best_in_turns(
                lambda: train(mnist, config, hooks=hooks),
                lambda: train(mnist, config),
                rounds=5,
            )
            (logging,) = best_in_turns(lambda: log_epochs(run), rounds=20)
    yield Row("training with tracking / without", tracked, plain, "at most 1.03x")
    yield Row("the log calls alone / that training", logging, plain, "at most 0.03x")


def log_epochs(run: TrackedRun) -> None:
    """Log as many metrics as a training does."""
    for _ in range(EPOCHS):
        run.log_metrics({f"metric_{index}": 1.0 for index in range(6)})
