"""Likelihoods p(x given z): what the decoder's output means, and in which units.

A likelihood owns the scaling between the data's units and the network's, as buffers, so that it is
part of every exported graph. `log_prob` is in nats and in the data's units.
"""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from serving.errors import DataRefused


class Likelihood(Protocol):
    """What the model asks of a likelihood."""

    def fit(self, train: NDArray[Any]) -> None:
        """Set the scaling from training data."""

    def check(self, x: NDArray[Any]) -> None:
        """Refuse rows outside the support."""

    def standardize(self, x: Tensor) -> Tensor:
        """Data (batch, *x_shape) to network units (batch, features)."""

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Log p(x given params) in nats, summed over features; `x` is standardized."""

    def mean(self, params: Tensor) -> Tensor:
        """E[x given params] in the data's units, (…, features)."""


class Bernoulli(nn.Module):
    """Each feature is a coin; the decoder's output is its logit. Data: bytes, or floats in [0, 1].

    For values between the ends, log p is the expectation over x ~ Bernoulli(value). An ELBO of gray
    images is therefore a lower bound on that of the same images binarized at random.
    """

    x_unit: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("x_unit", torch.ones(()))

    def fit(self, train: NDArray[Any]) -> None:
        """Bytes are divided by 255, floats are taken as they are."""
        if train.dtype == np.uint8:
            self.x_unit.fill_(255.0)

    def check(self, x: NDArray[Any]) -> None:
        """Bytes, or floats from 0 to 1."""
        if x.dtype != np.uint8 and x.size and not (x.min() >= 0 and x.max() <= 1):
            raise DataRefused(
                "a bernoulli likelihood needs bytes, or floats from 0 to 1; "
                f"got {x.min():g} to {x.max():g}: use --likelihood gaussian"
            )

    def standardize(self, x: Tensor) -> Tensor:
        """Values in [0, 1], (batch, features)."""
        return x.flatten(1).to(self.x_unit.dtype) / self.x_unit

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Sum of x·l - softplus(l) over features: finite for any logit l."""
        return (x * params - _softplus(params)).sum(-1)

    def mean(self, params: Tensor) -> Tensor:
        """Probability of one, times the unit."""
        return params.sigmoid() * self.x_unit


class Gaussian(nn.Module):
    """Each feature is normal around the decoder's output, with one learned scale for all.

    Floats are standardized by column, bytes divided by 255; `log_prob` counts the Jacobian, so that
    it is the density of the data as it came.
    """

    x_shift: Tensor
    x_unit: Tensor
    min_log_scale = -6.0  # as in sigma-VAE (Rybkin et al., 2021)

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("x_shift", torch.zeros(features))
        self.register_buffer("x_unit", torch.ones(features))
        self.x_log_scale = nn.Parameter(torch.zeros(()))

    def fit(self, train: NDArray[Any]) -> None:
        """Mean and standard deviation of each column; a constant column keeps unit 1."""
        if train.dtype == np.uint8:
            self.x_unit.fill_(255.0)
            return
        rows = train.reshape(len(train), -1).astype(np.float64)
        unit = rows.std(0)
        self.x_shift.copy_(torch.from_numpy(rows.mean(0)))
        self.x_unit.copy_(torch.from_numpy(np.where(unit > 0, unit, 1.0)))

    def check(self, x: NDArray[Any]) -> None:
        """Any finite number will do."""

    def standardize(self, x: Tensor) -> Tensor:
        """(x - shift) / unit, (batch, features)."""
        return (x.flatten(1).to(self.x_unit.dtype) - self.x_shift) / self.x_unit

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Log N(x; params, scale²) less the log of the units."""
        log_scale = self.x_log_scale.clamp(min=self.min_log_scale)
        squares = ((x - params) * torch.exp(-log_scale)).square().sum(-1)
        constant = x.shape[-1] * (math.log(2 * math.pi) / 2 + log_scale) + self.x_unit.log().sum()
        return -squares / 2 - constant

    def mean(self, params: Tensor) -> Tensor:
        """The decoder's output in the data's units."""
        return params * self.x_unit + self.x_shift


LIKELIHOODS: Mapping[str, type[Bernoulli] | type[Gaussian]] = {
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
}


def _softplus(logits: Tensor) -> Tensor:
    """Log(1 + exp(logits)); in float64 by operations that onnxruntime has for it."""
    if logits.dtype == torch.float32:
        return F.softplus(logits)
    return logits.clamp(min=0) + (1 + (-logits.abs()).exp()).log()


def choose_likelihood(*splits: NDArray[Any]) -> str:
    """Bytes and values in [0, 1] are Bernoulli; other reals are Gaussian."""
    bits = all(x.dtype == np.uint8 or not x.size or (x.min() >= 0 and x.max() <= 1) for x in splits)
    return "bernoulli" if bits else "gaussian"
