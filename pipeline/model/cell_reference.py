"""How likely a value is in its column, whatever the rest of its row says.

Half of it is the share of the training rows: of a word, of a count, or of an interval between
quantiles. The other half is spread evenly over all words, or over the range of the numbers. It is
what a cell is expected to hold if it does not belong to its row, whether it came from another row
or from anywhere.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.model.column_units import LARGEST, Limits
from serving.schema import Column

Array = NDArray[Any]

BINS = 32
"""Intervals of a column of numbers; beyond them, on each side, there is one more."""


class CellReference(nn.Module):
    """A step function for each column, in the units of `Mixed.standardize`.

    Columns of words must stand after all columns of numbers.
    """

    edges: Tensor
    """Where the steps of numbers are, (numbers, BINS + 1), infinite beyond a column's last one."""
    starts: Tensor
    """Where each column begins in `log_density`, (columns,)."""
    log_density: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        kinds = [column.kind for column in columns]
        self.words = [len(column.words) + 1 for column in columns]
        self.coded = [kind in ("binary", "category") for kind in kinds]
        self.counted = [kind == "count" for kind in kinds]
        sizes = [
            words if coded else BINS + 2
            for words, coded in zip(self.words, self.coded, strict=True)
        ]
        starts = np.cumsum([0, *sizes])
        self.numbers = self.coded.index(True) if any(self.coded) else len(kinds)
        self.register_buffer("edges", torch.full((self.numbers, BINS + 1), torch.inf))
        self.register_buffer("starts", torch.from_numpy(starts[:-1].astype(np.float32)))
        self.register_buffer("log_density", torch.zeros(int(starts[-1])))

    def fit(self, values: Array, seen: Array) -> None:
        """Find the steps of each column from the training rows, both (rows, columns)."""
        for index, start in enumerate(self.starts.long().tolist()):
            column = values[seen[:, index], index].astype(np.float64)
            if self.coded[index]:
                found = _shares(column, self.words[index])
            else:
                find = _count_steps if self.counted[index] else _number_steps
                edges, found = find(column)
                self.edges[index, : len(edges)] = torch.from_numpy(edges).float()
            self.log_density[start : start + len(found)] = torch.from_numpy(np.log(found)).float()

    def limits(self) -> Limits:
        """Return the least and the largest value of each column of numbers, both (numbers,).

        A column that is constant in training has none.
        """
        known = self.edges < LARGEST
        low = torch.where(known, self.edges, LARGEST).amin(-1)
        high = torch.where(known, self.edges, -LARGEST).amax(-1)
        none, between = low > high, torch.tensor(self.counted[: self.numbers]) * 0.5
        return torch.where(none, -LARGEST, low + between), torch.where(
            none, LARGEST, high - between
        )

    def forward(self, values: Tensor) -> Tensor:
        """Return the log-density of values (…, columns), both float32."""
        numbers, codes = torch.tensor_split(values, (self.numbers,), -1)
        step = (numbers.unsqueeze(-1) >= self.edges).float().sum(-1)
        place = torch.cat([step, codes.clamp(min=0)], -1) + self.starts
        # of one column of a table: faster in onnxruntime than to index a list
        return F.embedding(place.long(), self.log_density.unsqueeze(-1)).squeeze(-1)


def _shares(codes: Array, words: int) -> Array:
    counts = np.bincount(codes.astype(np.int64), minlength=words) + 0.5
    shares: Array = counts / counts.sum() / 2 + 0.5 / words
    return shares


def _number_steps(values: Array) -> tuple[Array, Array]:
    """Return edges at quantiles, and the density below, between and above them."""
    if values.size == 0:
        return np.zeros(0), np.ones(BINS + 2) / 2
    edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)).astype(np.float32))
    if len(edges) < 2:
        return np.zeros(0), np.ones(BINS + 2) / 2
    edges = edges.astype(np.float64)
    counts, _ = np.histogram(values, edges)
    shares = (counts + 1) / (counts.sum() + len(counts))
    even = 1 / (edges[-1] - edges[0])
    inside = (shares / np.diff(edges) + even) / 2
    density = np.full(BINS + 2, even / 2)
    density[1 : len(edges)] = inside
    edges[-1] = np.nextafter(np.float32(edges[-1]), np.float32(np.inf))  # the largest is inside
    return edges, density


def _count_steps(values: Array) -> tuple[Array, Array]:
    """Return edges between counts, and the probability of a count below, between and above."""
    largest = float(values.max()) if values.size else 0.0
    distinct = np.unique(values)
    if len(distinct) > BINS:
        distinct = np.unique(np.quantile(values, np.linspace(0, 1, BINS), method="lower"))
    edges = np.append(distinct, largest + 1) - 0.5
    counts, _ = np.histogram(values, edges)
    shares = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
    even = 1 / (largest + 1)
    density = np.full(BINS + 2, even / 2)
    density[1 : len(edges)] = (shares / np.diff(edges) + even) / 2
    return edges, density
