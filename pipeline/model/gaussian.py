"""The likelihood of real numbers: a normal distribution around the decoder's output."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config import ModelConfig
from pipeline.model.inversion import Drawn
from serving.value_range import MAX_BYTE

_CHUNK_ROWS = 4096
"""Rows whose squares are summed at once, which bounds memory."""


class Gaussian(nn.Module):
    """Each feature is normal around the decoder's output; all features share one scale.

    Floats are standardized by column, bytes divided by the largest one. `log_prob` includes the
    Jacobian, so that it is the density of the data in its own units. The scale is in standardized
    units: `learned` with the weights, `fixed`, or `optimal`, the root mean square error, which is
    that of the batch in training (Rybkin et al., 2021, equation 5) and a moving average in
    evaluation.
    """

    x_shift: Tensor
    x_unit: Tensor
    x_log_scale: Tensor
    batches: Tensor
    min_log_scale = -6.0  # as in sigma-VAE (Rybkin et al., 2021)
    averaged_batches = 50.0
    """About how many batches the moving average of the optimal scale covers."""
    batch_mean: Callable[[Tensor], Tensor]
    """Turns a mean over rows into that of the batch, of which several processes may have a part."""

    def __init__(self, features: int, settings: ModelConfig) -> None:
        super().__init__()
        self.x_width = self.params_width = features
        self.register_buffer("x_shift", torch.zeros(features))
        self.register_buffer("x_unit", torch.ones(features))
        self.sigma = settings.sigma
        self.batch_mean = _unchanged
        if self.sigma == "learned":
            self.x_log_scale = nn.Parameter(torch.zeros(()))
        else:
            start = math.log(settings.fixed_sigma) if self.sigma == "fixed" else 0.0
            self.register_buffer("x_log_scale", torch.tensor(start))
            self.register_buffer("batches", torch.zeros(()))

    def fit(self, train: NDArray[Any], max_byte: int = MAX_BYTE) -> None:
        """Set shift and unit to each column's mean and standard deviation (1 if it is constant)."""
        if train.dtype == np.uint8:
            self.x_unit.fill_(max_byte)
            return
        mean, unit = column_moments(train.reshape(len(train), -1))
        self.x_shift.copy_(torch.from_numpy(mean))
        self.x_unit.copy_(torch.from_numpy(np.where(unit > 0, unit, 1.0)))

    def check(self, x: NDArray[Any]) -> None:
        """Accept any finite number."""

    def output_bias(self, train: NDArray[Any]) -> Tensor:
        """Return the mean of the standardized features."""
        mean = torch.from_numpy(train.reshape(len(train), -1).mean(0, dtype=np.float64))
        return ((mean - self.x_shift) / self.x_unit).float()

    def standardize(self, x: Tensor) -> Tensor:
        """Return (x - shift) / unit, (batch, features)."""
        return (x.flatten(1).to(self.x_unit.dtype) - self.x_shift) / self.x_unit

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Return log N(x; params, scale²) minus the log of the units."""
        errors = x - params
        log_scale = self._log_scale(errors)
        squares = (errors * torch.exp(-log_scale)).square().sum(-1)
        constant = x.shape[-1] * (math.log(2 * math.pi) / 2 + log_scale) + self.x_unit.log().sum()
        return -squares / 2 - constant

    def mean(self, params: Tensor) -> Tensor:
        """Return the decoder's output in the data's units."""
        return params * self.x_unit + self.x_shift

    def draw(self, params: Tensor, noise: Tensor) -> Drawn:
        """Return the mean plus the scale times the noise."""
        x = self.mean(params + self._current_log_scale().exp() * noise)
        return Drawn(x, torch.ones_like(x))

    def _log_scale(self, errors: Tensor) -> Tensor:
        if self.sigma != "optimal" or not self.training:
            return self._current_log_scale()
        # detached: at the optimal scale, the derivative of the loss with respect to it is zero
        error = self.batch_mean(errors.detach().square().mean())
        best = (error.log() / 2).clamp(min=self.min_log_scale)
        self.batches += 1
        self.x_log_scale.lerp_(best, 1 / self.batches.clamp(max=self.averaged_batches))
        return best

    def _current_log_scale(self) -> Tensor:
        if self.sigma == "fixed":
            return self.x_log_scale
        return self.x_log_scale.clamp(min=self.min_log_scale)


def _unchanged(value: Tensor) -> Tensor:
    return value


def column_moments(rows: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of the columns, (features,), in bounded memory."""
    mean: NDArray[np.float64] = rows.mean(0, dtype=np.float64)
    squares = np.zeros_like(mean)
    for start in range(0, len(rows), _CHUNK_ROWS):
        squares += np.square(rows[start : start + _CHUNK_ROWS] - mean).sum(0)
    return mean, np.sqrt(squares / len(rows))
