"""Likelihoods p(x given z): what the decoder's output means, and in which units.

A likelihood owns the scaling between the data's units and the network's, as buffers, so that it is
part of every exported graph. `log_prob` is in nats and in the data's units. Parameters come as
(…, features * params_width), all of one feature side by side; rows go to the network as (batch,
features * x_width).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import LikelihoodName, ModelConfig
from pipeline.likelihood_discrete import Categorical, DiscretizedLogistic, count_categories
from pipeline.likelihood_reals import Gaussian
from pipeline.likelihood_unit import Bernoulli, ContinuousBernoulli


class Likelihood(Protocol):
    """What the model asks of a likelihood."""

    x_width: int
    """Numbers that the network reads a feature."""
    params_width: int
    """Parameters a feature."""

    def fit(self, train: NDArray[Any]) -> None:
        """Set the scaling from training data."""

    def check(self, x: NDArray[Any]) -> None:
        """Refuse rows outside the support."""

    def output_bias(self, train: NDArray[Any]) -> Tensor:
        """Parameters that fit each feature by itself, (features * params_width,)."""

    def standardize(self, x: Tensor) -> Tensor:
        """Data (batch, *x_shape) to network units (batch, features * x_width)."""

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Log p(x given params) in nats, summed over features; `x` is standardized."""

    def mean(self, params: Tensor) -> Tensor:
        """E[x given params] in the data's units, (…, features)."""

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """Draw x in the data's units by inversion; `noise` (…, features) is uniform in (0, 1)."""


AnyLikelihood = type[Bernoulli | ContinuousBernoulli | Gaussian | DiscretizedLogistic | Categorical]

LIKELIHOODS: Mapping[str, AnyLikelihood] = {
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "gaussian": Gaussian,
    "discretized_logistic": DiscretizedLogistic,
    "categorical": Categorical,
}


def make_likelihood(
    features: int, settings: ModelConfig
) -> Bernoulli | ContinuousBernoulli | Gaussian | DiscretizedLogistic | Categorical:
    """The likelihood of the settings, which must be settled, for rows of so many features."""
    return LIKELIHOODS[settings.likelihood](features, settings)


def choose_likelihood(*splits: NDArray[Any]) -> tuple[LikelihoodName, str]:
    """Name of the likelihood that fits the data, and which data that is."""
    if all(x.dtype == np.uint8 for x in splits):
        return "bernoulli", "bytes"
    if not all(x.size == 0 or (x.min() >= 0 and x.max() <= 1) for x in splits):
        return "gaussian", "reals"
    if all(((x == 0) | (x == 1)).all() for x in splits):
        return "bernoulli", "zeros and ones"
    return "continuous_bernoulli", "numbers from 0 to 1"


def settle(settings: ModelConfig, *splits: NDArray[Any]) -> ModelConfig:
    """The settings with the likelihood and its number of codes as the data demands.

    Raises:
        DataRefused: some row is outside the likelihood's support.
    """
    name = settings.likelihood
    name = choose_likelihood(*splits)[0] if name == "auto" else name
    categories = settings.num_categories
    if name == "categorical" and not categories:
        categories = count_categories(*splits)
    return replace(settings, likelihood=name, num_categories=categories)
