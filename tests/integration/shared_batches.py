"""Train in one process and in those that torchrun started, and write how the two differ.

Argument: a folder with the data, where process 0 writes `differences.json`.
"""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch

from pipeline.cli.processes import join
from pipeline.config import configure
from pipeline.data.dataset import load_dataset
from pipeline.training import loop
from pipeline.training.beginning import begin_training
from pipeline.training.feeds import open_feed
from pipeline.training.processes import ALONE, Processes
from pipeline.training.schedules import total_steps
from pipeline.training.state import TrainState

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bytes": ("images.npy", {}),
    "binarized": ("images.npy", {"binarize": "dynamic"}),
    "free bits": ("images.npy", {"free_bits": 0.025}),  # less than a latent's KL in one share
    "importance weights": ("images.npy", {"objective": "iwae", "train_samples": 3}),
    "convolutions": ("images.npy", {"model": "conv", "hidden_dims": (4, 8)}),
    "numbers": ("numbers.npy", {}),
    "optimal scale": ("numbers.npy", {"sigma": "optimal"}),
    "mixed table": ("mixed.csv", {}),
}


def measure(folder: Path, processes: Processes, file: str, settings: dict[str, Any]) -> Any:
    """Return relative differences of gradients and of an epoch's sums, and how often rows came.

    There are 111 rows to train on in batches of 11, so that the last batch is of one row.
    """
    settings = {"hidden_dims": (8,), "latent_dim": 3, "batch_size": 11, "epochs": 1, **settings}
    config = configure(data=str(folder / file), min_steps=0, **settings)
    dataset = load_dataset(
        str(folder / file), valid_fraction=0.1, test_fraction=0.1, likelihood="auto"
    )
    states = [begin_training(dataset, config, "cpu", each) for each in (ALONE, processes)]
    assert dataset.train_rows % 11 == 1
    gradients = []
    for state in states:
        feed = open_feed(state, dataset)
        first, *rest = batches = list(loop._batches(state, feed, 255, loop.NO_HOOKS.stop))
        loop.train_step(state, first, total_steps(dataset.train_rows, config.train))
        gradients.append(gradient(state))
        for batch in rest:
            loop.train_step(state, batch, total_steps(dataset.train_rows, config.train))
    copy.deepcopy(states[1].model)  # as export does: the model keeps nothing of the processes
    rows = torch.cat([batch.rows for batch in batches]).flatten(1).double().nan_to_num().sum()
    alone, shared = gradients
    sums = [state.gather_sums() for state in states]
    seen = processes.sum(torch.tensor([sum(len(batch.rows) for batch in batches), float(rows)]))
    every = torch.from_numpy(dataset.sample).flatten(1).double().nan_to_num().sum()
    return {
        "gradient": float((alone - shared).norm() / alone.norm()),
        "sums": float(((sums[0] - sums[1]) / sums[0]).abs().max()),
        "rows": [int(seen[0]), dataset.train_rows],
        "values": [float(seen[1]), float(every)],
    }


def gradient(state: TrainState) -> torch.Tensor:
    """Return the gradient of all weights, (weights,)."""
    gradients = [weight.grad for weight in state.model.parameters() if weight.grad is not None]
    return torch.cat([each.flatten().double() for each in gradients])


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with join() as processes:
        results = {name: measure(folder, processes, *case) for name, case in CASES.items()}
        if processes.rank == 0:
            (folder / "differences.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
