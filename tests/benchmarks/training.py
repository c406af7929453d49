"""Training steps compared with the usual loop, and with their matrix products alone."""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from pipeline.config import configure
from pipeline.data import dataset
from pipeline.training.loop import train
from serving.cpu import available_cores
from tests.benchmarks.measure import Row, best_in_turns

STEPS = 100
BATCH = 128

MEMORY = """
import re, sys
from pathlib import Path
import numpy as np
from pipeline.config import configure
from pipeline.data.dataset import Dataset, Split, load_dataset
from pipeline.training.loop import train

def kib(name):
    return re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]

config = configure("default", epochs=1)
few = Split(np.zeros((512, 28, 28), np.uint8), "")
train(Dataset("few", few, few, few), config)
before = kib("VmRSS")
train(load_dataset(sys.argv[1], valid_fraction=0.1, test_fraction=0.1), config)
print(kib("VmHWM"), before)
"""


class ExampleVAE(nn.Module):
    """The model of pytorch/examples, as it is usually written."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(784, 400), nn.Linear(400, 20), nn.Linear(400, 20)
        self.fc3, self.fc4 = nn.Linear(20, 400), nn.Linear(400, 784)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the reconstruction, mu and logvar."""
        h = F.relu(self.fc1(x.view(-1, 784)))
        mu, logvar = self.fc21(h), self.fc22(h)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z)))), mu, logvar


class Images(Dataset[tuple[torch.Tensor, int]]):
    """What torchvision's MNIST does with `ToTensor`: one picture per row, then floats."""

    def __init__(self, x: NDArray[Any]) -> None:
        self.data = torch.from_numpy(x)
        self.targets = torch.zeros(len(x), dtype=torch.int64)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return one row, (1, 28, 28), and its label."""
        row, target = self.data[index], int(self.targets[index])
        picture = torch.from_numpy(np.array(Image.fromarray(row.numpy()), np.uint8, copy=True))
        channels = picture.view(28, 28, 1).permute(2, 0, 1).contiguous()
        return channels.to(torch.get_default_dtype()).div(255), target


def usual_loop(x: NDArray[Any]) -> Callable[[], None]:
    """Return the loop of pytorch/examples: DataLoader, default Adam, the loss read every step."""
    model = ExampleVAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(Images(x), batch_size=BATCH, shuffle=True)

    def run() -> None:
        total = 0.0
        for x, _ in islice(loader, STEPS):
            optimizer.zero_grad()
            recon, mu, logvar = model(x)
            bce = F.binary_cross_entropy(recon, x.view(-1, 784), reduction="sum")
            loss = bce - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
            loss.backward()
            total += loss.item()
            optimizer.step()

    return run


def plain_loop(x: NDArray[Any]) -> Callable[[], None]:
    """Return the least that torch needs for these steps: index, logits, fused Adam, no metrics."""
    model, order = ExampleVAE(), torch.randperm(len(x))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def run() -> None:
        for indices in order.split(BATCH)[:STEPS]:
            rows = torch.from_numpy(x).index_select(0, indices).flatten(1) / 255.0
            h = F.relu(model.fc1(rows))
            loc, log_scale = model.fc21(h), model.fc22(h)
            z = loc + torch.randn_like(loc) * log_scale.exp()
            logits = model.fc4(F.relu(model.fc3(z)))
            bce = F.binary_cross_entropy_with_logits(logits, rows, reduction="sum")
            kl = (loc.square() + (2 * log_scale).exp() - 2 * log_scale - 1).sum() / 2
            optimizer.zero_grad()
            ((bce + kl) / len(rows)).backward()
            optimizer.step()

    return run


def matrix_products() -> Callable[[], None]:
    """Return only the matrix products of these steps, forward and backward, as the lower bound."""
    sizes = [(784, 400), (400, 40), (20, 400), (400, 784)]
    layers = [(torch.randn(BATCH, i), torch.randn(i, o), torch.randn(BATCH, o)) for i, o in sizes]

    def run() -> None:
        for _ in range(STEPS):
            for index, (x, w, y) in enumerate(layers):
                torch.mm(x, w)
                torch.mm(x.T, y)
                if index:
                    torch.mm(y, w.T)

    return run


def take(mnist: dataset.Dataset, rows: int) -> dataset.Dataset:
    """Return the first training rows, without validation rows."""
    x = mnist.sample
    return dataset.Dataset(
        "part", dataset.Split(x[:rows], ""), dataset.Split(x[:0], ""), mnist.test
    )


def measure() -> Iterator[object]:
    """Measure one hundred steps of the `example` preset, epochs over more rows, and memory."""
    torch.set_num_threads(available_cores())
    config = configure("example", epochs=1)
    mnist = dataset.load_dataset("mnist", valid_fraction=0, test_fraction=0.1)
    parts = [take(mnist, scale * STEPS * BATCH) for scale in (1, 2, 4)]
    ours, usual, plain, floor = best_in_turns(
        lambda: train(parts[0], config),
        usual_loop(mnist.sample),
        plain_loop(mnist.sample),
        matrix_products(),
        rounds=8,
    )
    yield Row("training, 100 steps / the loop of pytorch/examples", ours, usual, "at most 0.25x")
    yield Row("training, 100 steps / torch's least for them", ours, plain, "close to 1x")
    yield Row("training, 100 steps / its matrix products alone", ours, floor, "at most 2x")
    one, two, four = best_in_turns(*(partial(train, part, config) for part in parts), rounds=3)
    yield Row("an epoch over 2x the rows / 2 over 1x", two, 2 * one, "close to 1x")
    yield Row("an epoch over 4x the rows / 4 over 1x", four, 4 * one, "close to 1x")
    yield from measure_memory(mnist)


def measure_memory(mnist: dataset.Dataset) -> Iterator[str]:
    """Measure the peak memory of a training, beyond that of a process that has trained before."""
    with tempfile.TemporaryDirectory() as folder:
        for copies in (1, 10):
            x = np.concatenate([mnist.sample] * copies)
            np.save(Path(folder, "x.npy"), x)
            command = [sys.executable, "-c", MEMORY, str(Path(folder, "x.npy"))]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            peak, before = (int(part) // 1024 for part in result.stdout.split())
            yield (
                f"memory, {len(x):,} rows of {x.nbytes >> 20} MiB: peak {peak} MiB, "
                f"{peak - before} MiB more than before; at most {(x.nbytes >> 20) + 300}"
            )
