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

from pipeline.config import Binarize, Config, LikelihoodName, ModelConfig
from pipeline.model.bernoulli import Bernoulli, ContinuousBernoulli
from pipeline.model.discrete import Categorical, DiscretizedLogistic, count_categories
from pipeline.model.gaussian import Gaussian
from serving.errors import UsageRefused


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


def choose_likelihood(binarize: Binarize, *splits: NDArray[Any]) -> tuple[LikelihoodName, str]:
    """Name of the likelihood that fits the data, and which data that is."""
    if binarize != "none":
        return "bernoulli", "coin flips"
    if all(x.dtype == np.uint8 for x in splits):
        return "bernoulli", "bytes"
    if not all(x.size == 0 or (x.min() >= 0 and x.max() <= 1) for x in splits):
        return "gaussian", "reals"
    if all(((x == 0) | (x == 1)).all() for x in splits):
        return "bernoulli", "zeros and ones"
    return "continuous_bernoulli", "numbers from 0 to 1"


def settle(config: Config, *splits: NDArray[Any]) -> ModelConfig:
    """The model's settings with the likelihood and its number of codes as the data demands.

    Raises:
        DataRefused: some value is no code.
        UsageRefused: settings contradict each other, or the codes of the data.
    """
    settings, binarize = config.model, config.data.binarize
    name = settings.likelihood
    name = choose_likelihood(binarize, *splits)[0] if name == "auto" else name
    if binarize != "none" and name != "bernoulli":
        raise UsageRefused(
            f"--binarize {binarize} makes zeros and ones: use --likelihood bernoulli, got {name}"
        )
    if settings.fixed_sigma != ModelConfig().fixed_sigma and settings.sigma != "fixed":
        raise UsageRefused(
            f"--fixed-sigma {settings.fixed_sigma:g} needs --sigma fixed, got {settings.sigma}"
        )
    categories = settings.num_categories
    if name == "categorical":
        least = count_categories(*splits)
        if categories and categories < least:
            raise UsageRefused(
                f"--num-categories must be at least {least}, one more than the codes of the data; "
                f"got {categories}"
            )
        categories = categories or least
    return replace(settings, likelihood=name, num_categories=categories)
