"""Likelihoods of features from 0 to 1: Bernoulli and continuous Bernoulli."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import ModelConfig
from pipeline.model.inversion import Drawn, lower_and_upper
from serving.errors import DataRefused
from serving.value_range import MAX_BYTE


class Bernoulli(nn.Module):
    """Each feature is 0 or 1; the decoder's output is the logit of 1. Data: bytes, or [0, 1].

    For values between 0 and 1, log p is the expectation over x ~ Bernoulli(value). The ELBO of gray
    images is therefore a lower bound on that of the same images binarized at random.
    """

    x_unit: Tensor

    def __init__(self, features: int, settings: ModelConfig) -> None:
        super().__init__()
        self.x_width = self.params_width = features
        self.register_buffer("x_unit", torch.ones(()))

    def fit(self, train: NDArray[Any], max_byte: int = MAX_BYTE) -> None:
        """Set the unit: `max_byte` for bytes, 1 for floats."""
        if train.dtype == np.uint8:
            self.x_unit.fill_(max_byte)

    def check(self, x: NDArray[Any]) -> None:
        """Accept bytes up to the unit, and floats from 0 to 1."""
        check_bytes(x, self.x_unit)
        if x.dtype != np.uint8 and x.size and not (x.min() >= 0 and x.max() <= 1):
            raise DataRefused(
                "a bernoulli likelihood needs bytes, or floats from 0 to 1; "
                f"got {x.min():g} to {x.max():g}: use --likelihood gaussian"
            )

    def output_bias(self, train: NDArray[Any]) -> Tensor:
        """Return the logit of each feature's mean, kept off 0 and 1 (as in Burda et al., 2016)."""
        mean = _means(train, self.x_unit)
        return torch.from_numpy(np.log(mean) - np.log1p(-mean)).float()

    def standardize(self, x: Tensor) -> Tensor:
        """Return values in [0, 1], (batch, features)."""
        return x.flatten(1).to(self.x_unit.dtype) / self.x_unit

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Return the sum of x·l - softplus(l) over features; it is finite for any logit l."""
        if params.dtype == torch.float32:  # one kernel forward, one backward
            target = x.expand_as(params)
            return -F.binary_cross_entropy_with_logits(params, target, reduction="none").sum(-1)
        return (x * params - softplus(params)).sum(-1)

    def mean(self, params: Tensor) -> Tensor:
        """Return the probability of 1, times the unit."""
        return params.sigmoid() * self.x_unit

    def draw(self, params: Tensor, noise: Tensor) -> Drawn:
        """Return 0 or the unit."""
        gap = lower_and_upper(noise)[0] - (-params).sigmoid()
        return Drawn((gap > 0).to(params.dtype) * self.x_unit, gap.abs())


class ContinuousBernoulli(Bernoulli):
    """The density on [0, 1] proportional to a Bernoulli's (Loaiza-Ganem & Cunningham, 2019).

    With the logit l, log p(x) = x·l - softplus(l) + log C(l), C(l) = l / tanh(l / 2). It is
    the density of x / x_unit. `torch.distributions.ContinuousBernoulli` is wrong for |l| above 15.
    """

    series_limit = 0.05
    """For smaller |l|, log C is a series, since the quotient of two small numbers is inexact."""

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Add log C, which makes the Bernoulli's mass a density."""
        small = params.abs() < self.series_limit
        # torch.where differentiates both branches: the unused one must be finite, or it gives NaN
        size = torch.where(small, 1.0, params.abs())
        constant = size.log() - (size / 2).tanh().log()
        square = params.square().clamp(max=1)
        near = math.log(2) + square / 12 - 7 * square.square() / 1440
        return super().log_prob(params, x) + torch.where(small, near, constant).sum(-1)

    def mean(self, params: Tensor) -> Tensor:
        """Return 1/2 + coth(l/2)/2 - 1/l (near 0 by its series), times the unit."""
        return _unit_mean(params) * self.x_unit

    def output_bias(self, train: NDArray[Any]) -> Tensor:
        """Find by bisection the logits whose means are those of the features."""
        mean = torch.from_numpy(_means(train, self.x_unit))
        low, high = torch.full_like(mean, -2000.0), torch.full_like(mean, 2000.0)
        for _ in range(60):
            middle = (low + high) / 2
            above = _unit_mean(middle) > mean
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return middle.float()

    def draw(self, params: Tensor, noise: Tensor) -> Drawn:
        """Invert the distribution function, mirrored for l > 0 so that nothing overflows."""
        lower, upper = lower_and_upper(noise)
        slope = -params.abs()
        part, rest = (torch.where(params > 0, *ends) for ends in ((upper, lower), (lower, upper)))
        small = slope > -0.1
        steep = torch.where(small, -1.0, slope)
        value = torch.where(
            small,
            _series_of_quantile(part, rest, slope),
            (rest + part * steep.exp()).log() / steep,
        )
        value = torch.where(params > 0, 1 - value, value) * self.x_unit
        return Drawn(value, torch.ones_like(value))


def _series_of_quantile(part: Tensor, rest: Tensor, slope: Tensor) -> Tensor:
    """Return log(1 + part (exp(slope) - 1)) / slope by its series, the cumulants of a coin."""
    variance = part * rest
    third, fourth = variance * (rest - part), variance * (1 - 6 * variance)
    return part + slope * (variance / 2 + slope * (third / 6 + slope * fourth / 24))


def check_bytes(x: NDArray[Any], unit: Tensor) -> None:
    """Refuse bytes above the unit of the data that a likelihood was fitted to."""
    if x.dtype == np.uint8 and x.size and x.max() > unit.item():
        raise DataRefused(
            f"bytes must be from 0 to {unit.item():g}, as in the data that the model was trained "
            f"with; got {x.max()}"
        )


def softplus(logits: Tensor) -> Tensor:
    """Return log(1 + exp(logits)); in float64 by operations that onnxruntime supports."""
    return F.softplus(logits) if logits.dtype == torch.float32 else plain_softplus(logits)


def plain_softplus(logits: Tensor) -> Tensor:
    """Return log(1 + exp(logits)) by operations that every runtime has."""
    return logits.clamp(min=0) + (1 + (-logits.abs()).exp()).log()


def _unit_mean(logits: Tensor) -> Tensor:
    small = logits.abs() < 1
    size = torch.where(small, 1.0, logits)
    square = torch.where(small, logits, 0.0).square()
    # the series of coth(l/2)/2 - 1/l; the next term is below 1e-9
    odd = torch.zeros_like(square)
    for term in (47_900_160, 1_209_600, 30_240, 720, 12):
        odd = 1 / term - square * odd
    return torch.where(small, 0.5 + logits * odd, 0.5 + 0.5 / (size / 2).tanh() - 1 / size)


def _means(train: NDArray[Any], unit: Tensor) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = train.reshape(len(train), -1).mean(0, dtype=np.float64)
    return np.clip(mean / unit.item(), 0.001, 0.999)
