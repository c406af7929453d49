"""A training step beside the usual loop, and beside its matrix products alone."""

from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pipeline.config import configure
from pipeline.data import Dataset, load_dataset
from pipeline.train import train
from serving.threads import available_cores
from tests.benchmarks.measure import Row, best_in_turns

STEPS = 100
BATCH = 128


class ExampleVAE(nn.Module):
    """The model of pytorch/examples, written the usual way."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(784, 400), nn.Linear(400, 20), nn.Linear(400, 20)
        self.fc3, self.fc4 = nn.Linear(20, 400), nn.Linear(400, 784)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Reconstruct."""
        h = F.relu(self.fc1(x.view(-1, 784)))
        mu, logvar = self.fc21(h), self.fc22(h)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z)))), mu, logvar


def usual_loop(rows: torch.Tensor) -> Callable[[], None]:
    """A DataLoader over floats in memory, default Adam, the loss read at every step."""
    model = ExampleVAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(rows.float() / 255), batch_size=BATCH, shuffle=True)

    def run() -> None:
        total = 0.0
        for (x,) in islice(loader, STEPS):
            optimizer.zero_grad()
            recon, mu, logvar = model(x)
            bce = F.binary_cross_entropy(recon, x.view(-1, 784), reduction="sum")
            loss = bce - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
            loss.backward()
            total += loss.item()
            optimizer.step()

    return run


def matrix_products() -> Callable[[], None]:
    """The products of the same steps, forward and backward, and nothing else: the floor."""
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


def measure() -> Iterator[Row]:
    """One hundred steps of the `example` preset."""
    torch.set_num_threads(available_cores())
    config = configure("example", epochs=1)
    mnist = load_dataset("mnist", valid_fraction=0, test_fraction=0.1)
    part = type(mnist.train)(mnist.train.x[: STEPS * BATCH], "")
    dataset = Dataset("part", part, type(part)(part.x[:0], ""), mnist.test)
    ours, usual, floor = best_in_turns(
        lambda: train(dataset, config),
        usual_loop(torch.from_numpy(mnist.train.x)),
        matrix_products(),
        rounds=8,
    )
    yield Row("training, 100 steps / the usual PyTorch loop", ours, usual, "below 1x")
    yield Row("training, 100 steps / its matrix products alone", ours, floor, "close to 1x")
