"""Distributions of the columns of a mixed table; each module holds all columns of one kind.

A module reads the values of its columns, (…, columns), in the data's units, and writes them in
units of its own, in which they are close to 1. `log_prob` is in those units, and `log_unit` what
it takes to return to the data's. A gap holds `gap` in the module's units, and is read as zeros.

In: the columns of a `Schema`. Sizes follow from it, and everything else from the training rows.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.model.steady_log import steady_log
from serving.schema import Column

Values = NDArray[np.float64]

SEEN_RANGE = 5.0
"""Largest distance that the encoder sees, so that one odd cell does not decide all latents."""
LOGIT_RANGE = 30.0
"""Largest absolute logit: no exponential or its sum leaves float32."""
LOG_TWO_PI = math.log(2 * math.pi)


class ColumnsOfKind(Protocol):
    """The methods of a module."""

    x_width: int
    """Values that the network reads."""
    params_width: int
    """Parameters that the network gives."""
    gap: float
    """What a gap holds."""

    def fit(self, columns: Sequence[Values]) -> None:
        """Set the units from the values of each column that are not gaps."""

    def output_bias(self, columns: Sequence[Values]) -> Tensor:
        """Return parameters that fit each column on its own, (params_width,)."""

    def standardize(self, x: Tensor) -> Tensor:
        """Convert values to the module's units."""

    def inputs(self, u: Tensor, seen: Tensor) -> Tensor:
        """Return what the network reads, (batch, x_width): zeros for a cell that is not seen."""

    def log_prob(self, params: Tensor, u: Tensor) -> Tensor:
        """Return the log-density or log-probability of each value."""

    def log_unit(self, u: Tensor) -> Tensor:
        """Return the log of the data's units in one unit of the module at each value."""

    def mean(self, params: Tensor) -> Tensor:
        """Return the centre of each distribution in the data's units."""


class Counts(nn.Module):
    """Negative binomial columns: the network gives the logs of the mean m and of the size r.

    The variance is m + m² / r; a large r makes a Poisson distribution.
    """

    gap = 0.0
    shift: Tensor
    unit: Tensor
    log_mean_range = (-12.0, 16.0)
    log_size_range = (-5.0, 7.0)

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        count = len(columns)
        self.x_width, self.params_width = count, 2 * count
        self.register_buffer("shift", torch.zeros(count))
        self.register_buffer("unit", torch.ones(count))

    def fit(self, columns: Sequence[Values]) -> None:
        """Set the units of the inputs."""
        for index, values in enumerate(columns):
            self.shift[index], self.unit[index] = mean_and_spread(np.log1p(values))

    def output_bias(self, columns: Sequence[Values]) -> Tensor:
        """Return the logs of each mean, and of each size by moments."""
        means = [max(float(v.mean()) if v.size else 0.0, 1e-3) for v in columns]
        sizes = [_log_size(values) for values in columns]
        return torch.cat([torch.tensor(means).log(), torch.tensor(sizes)])

    def standardize(self, x: Tensor) -> Tensor:
        """Return the count itself."""
        return x.clamp(0.0, 2.0**24).round()

    def inputs(self, u: Tensor, seen: Tensor) -> Tensor:
        """Return log(1 + count) in units of its standard deviation."""
        logs = (steady_log(u + 1) - self.shift) / self.unit
        return logs.clamp(-SEEN_RANGE, SEEN_RANGE) * seen

    def log_prob(self, params: Tensor, u: Tensor) -> Tensor:
        """Return the log-probability of each count."""
        log_mean, log_size = params.chunk(2, -1)
        log_mean = log_mean.clamp(*self.log_mean_range)
        size = log_size.clamp(*self.log_size_range).exp()
        log_total = (log_mean.exp() + size).log()
        ways = log_gamma(u + size) - log_gamma(size) - log_gamma(u + 1)
        return ways + size * (size.log() - log_total) + u * (log_mean - log_total)

    def log_unit(self, u: Tensor) -> Tensor:
        """Return 0: counts have no unit."""
        return torch.zeros_like(u)

    def mean(self, params: Tensor) -> Tensor:
        """Return the mean."""
        return params.chunk(2, -1)[0].clamp(*self.log_mean_range).exp()


class Words(nn.Module):
    """Categorical columns. The last code of each, after its words, is that of any other value.

    The columns share one axis of logits. Each column's sum of exponentials is a product with a
    matrix of ones and zeros, since ONNX has no sum over unequal parts.
    """

    gap = -1.0
    code: Tensor
    members: Tensor
    places: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        sizes = [len(column.words) + 1 for column in columns]
        self.sizes = sizes
        self.x_width = self.params_width = sum(sizes)
        column = np.repeat(np.arange(len(sizes)), sizes)
        code = np.concatenate([np.arange(size) for size in sizes]) if sizes else np.arange(0)
        members = column[:, None] == np.arange(len(sizes))
        # the places of each column's logits, its last one repeated up to the widest column
        widest, starts = max(sizes, default=1), np.cumsum([0, *sizes])[:-1]
        places = [
            start + np.minimum(np.arange(widest), size - 1)
            for start, size in zip(starts, sizes, strict=True)
        ]
        self.register_buffer("code", torch.from_numpy(code).float())
        self.register_buffer("members", torch.from_numpy(members).float())
        self.register_buffer("places", torch.from_numpy(np.array(places, np.int64)))

    def fit(self, columns: Sequence[Values]) -> None:
        """Do nothing: codes have no scale."""

    def output_bias(self, columns: Sequence[Values]) -> Tensor:
        """Return the logs of the codes' shares, with one added to each count."""
        logs = []
        for values, size in zip(columns, self.sizes, strict=True):
            counts = np.bincount(np.minimum(values.astype(np.int64), size - 1), minlength=size) + 1
            logs.append(np.log(counts / counts.sum()))
        return torch.from_numpy(np.concatenate(logs)).float()

    def standardize(self, x: Tensor) -> Tensor:
        """Return the code; what is no code becomes the last one."""
        last = self.members.sum(0) - 1
        codes = x.round()
        return torch.where((codes < 0) | (codes > last), last, codes)

    def inputs(self, u: Tensor, seen: Tensor) -> Tensor:
        """Return one-hot codes; that of a gap is none."""
        # a product with ones and zeros repeats each column's code exactly, and is faster than to
        # gather them
        repeated = u @ self.members.to(u.dtype).T
        return (repeated == self.code).to(u.dtype)

    def log_prob(self, params: Tensor, u: Tensor) -> Tensor:
        """Return the log-probability of each code."""
        logits = params.clamp(-LOGIT_RANGE, LOGIT_RANGE)
        members = self.members.to(params.dtype)
        chosen = (self.inputs(u, u) * logits) @ members
        return chosen - (logits.exp() @ members).log()

    def log_unit(self, u: Tensor) -> Tensor:
        """Return 0: codes have no unit."""
        return torch.zeros_like(u)

    def mean(self, params: Tensor) -> Tensor:
        """Return the most probable code."""
        return params[..., self.places].argmax(-1).to(params.dtype)


def log_gamma(x: Tensor) -> Tensor:
    """Return log Γ(x) for x > 0 by Stirling's series at x + 8, which ONNX can express."""
    first, second = x * (x + 1) * (x + 2) * (x + 3), (x + 4) * (x + 5) * (x + 6) * (x + 7)
    y = x + 8
    inverse = 1 / y
    square = inverse.square()
    series = inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680)))
    return (y - 0.5) * y.log() - y + LOG_TWO_PI / 2 + series - first.log() - second.log()


def _log_size(values: Values) -> float:
    if not values.size:
        return 0.0
    mean, variance = max(float(values.mean()), 1e-3), float(values.var())
    return float(np.clip(math.log(mean**2 / max(variance - mean, mean / 100)), -4, 6))


def mean_and_spread(values: Values) -> tuple[float, float]:
    """Return mean and standard deviation; 1 for one that is 0."""
    if not values.size:
        return 0.0, 1.0
    return float(values.mean()), float(values.std()) or 1.0
