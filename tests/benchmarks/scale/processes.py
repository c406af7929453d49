"""Two processes beside one, of the same global batch: what they learn, and how fast.

As a program it trains on MNIST in the processes that torchrun started, and process 0 writes what it
found: `torchrun --nproc-per-node 2 -m tests.benchmarks.scale.processes OUT THREADS`.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

EPOCHS = 5
MOST_NATS, MOST_GRADIENT = 0.3, 1e-6


def measure() -> Iterator[str]:
    """Yield a line for each thing that must hold, and the speed, which depends on the machine."""
    with tempfile.TemporaryDirectory() as temporary:
        alone, shared = (_train(number, 1, Path(temporary)) for number in (1, 2))
        threads = _train(1, 2, Path(temporary))
    nats = abs(alone["valid_elbo"] - shared["valid_elbo"])
    pairs = zip(alone["gradient"], shared["gradient"], strict=True)
    size = sum(value**2 for value in alone["gradient"]) ** 0.5
    gradient = sum((one - other) ** 2 for one, other in pairs) ** 0.5 / size
    yield (
        f"two processes beside one, validation ELBO after {EPOCHS} epochs: "
        f"{shared['valid_elbo']:.3f} and {alone['valid_elbo']:.3f}, {nats:.3f} nats apart, "
        f"goal at most {MOST_NATS}: {_verdict(nats <= MOST_NATS)}"
    )
    yield (
        f"two processes beside one, gradient of the first step: {gradient:.1e} apart, "
        f"goal at most {MOST_GRADIENT:g}: {_verdict(gradient <= MOST_GRADIENT)}"
    )
    once = shared["least_seen"] == shared["most_seen"] == 1
    yield (
        f"two processes, how often a row comes in an epoch: {shared['least_seen']} to "
        f"{shared['most_seen']} times, goal once: {_verdict(once)}"
    )
    for other, what in ((alone, "one of 1 thread"), (threads, "one of 2 threads")):
        speed, beside = shared["steps_per_s"], other["steps_per_s"]
        yield (
            f"two processes of 1 thread beside {what}: {speed:.0f} and {beside:.0f} steps a "
            f"second, {speed / beside:.2f} times the speed, no goal: it depends on the free cores"
        )


def _verdict(held: bool) -> str:
    return "held" if held else "MISSED"


def _train(number: int, threads: int, folder: Path) -> Any:
    """Train in a number of processes, and return what the first one wrote."""
    out = folder / f"{number}.json"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
    program = ["-m", __name__, str(out), str(threads)]
    ended = subprocess.run([sys.executable, *launch, *program], capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(ended.stderr)
    return json.loads(out.read_text())


def main(out: Path, threads: int) -> None:
    """Train as one of the processes."""
    import numpy as np
    import torch

    from pipeline.cli.processes import join
    from pipeline.config import configure
    from pipeline.data.dataset import load_dataset
    from pipeline.data.splits import Split
    from pipeline.training import loop
    from pipeline.training.beginning import begin_training
    from pipeline.training.feeds import open_feed
    from pipeline.training.schedules import total_steps

    torch.set_num_threads(threads)
    config = configure(data="mnist", epochs=EPOCHS)
    dataset = load_dataset("mnist", valid_fraction=0.1, test_fraction=0.1)
    rows = dataset.train_rows
    numbered = replace(dataset, train=Split(np.arange(rows, dtype=np.int64), ""))
    with join() as processes:
        state = begin_training(dataset, config, "cpu", processes)
        seen = torch.zeros(rows)
        for batch in loop._batches(state, open_feed(state, numbered), 255, loop.NO_HOOKS.stop):
            seen.index_add_(0, batch.rows, torch.ones(len(batch.rows)))
        seen = processes.sum(seen)
        state = begin_training(dataset, config, "cpu", processes)
        first = next(loop._batches(state, open_feed(state, dataset), 255, loop.NO_HOOKS.stop))
        loop.train_step(state, first, total_steps(rows, config.train))
        weights = state.model.parameters()
        gradient = np.concatenate(
            [weight.grad.numpy().ravel() for weight in weights if weight.grad is not None]
        )
        state = begin_training(dataset, config, "cpu", processes)
        result = loop.continue_training(state, dataset)
        if processes.rank == 0:
            content = {
                "valid_elbo": result.history[-1]["valid_elbo"],
                "gradient": gradient.tolist(),
                "least_seen": int(seen.min()),
                "most_seen": int(seen.max()),
                "steps_per_s": state.step / state.seconds,
            }
            out.write_text(json.dumps(content))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
