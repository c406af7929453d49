"""Likelihoods p(x given z), which interpret the decoder's output, and the choice of one.

A likelihood holds the scaling between the data's units and the network's in buffers, so that it is
part of every exported graph. `log_prob` is in nats and in the data's units. Parameters have the
shape (…, params_width), with those of one feature adjacent; the network reads rows
(batch, x_width).
"""

import math
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
from pipeline.model.inversion import Drawn
from pipeline.model.mixed import Mixed
from serving.errors import UsageRefused
from serving.schema import Schema
from serving.value_range import MAX_BYTE, find_range, max_byte_of


class Likelihood(Protocol):
    """The methods that the model calls on a likelihood."""

    x_width: int
    """Values that the network reads of a row."""
    params_width: int
    """Parameters of the distribution of a row."""

    def fit(self, train: NDArray[Any], max_byte: int = MAX_BYTE) -> None:
        """Set the scaling from the training rows; bytes are shares of `max_byte`."""

    def check(self, x: NDArray[Any]) -> None:
        """Refuse rows outside the support."""

    def output_bias(self, train: NDArray[Any]) -> Tensor:
        """Return parameters that fit each feature on its own, (params_width,)."""

    def standardize(self, x: Tensor) -> Tensor:
        """Convert data (batch, *x_shape) to network units, (batch, x_width) but for `Mixed`."""

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Return log p(x given params) in nats, summed over features; `x` is standardized."""

    def mean(self, params: Tensor) -> Tensor:
        """Return E[x given params] in the data's units, (…, features)."""

    def draw(self, params: Tensor, noise: Tensor) -> Drawn:
        """Draw x in the data's units; it grows with `noise` (…, features), standard normal."""


AnyLikelihood = (
    Bernoulli | ContinuousBernoulli | Gaussian | DiscretizedLogistic | Categorical | Mixed
)

LIKELIHOODS: Mapping[
    str, type[Bernoulli | ContinuousBernoulli | Gaussian | DiscretizedLogistic | Categorical]
] = {
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "gaussian": Gaussian,
    "discretized_logistic": DiscretizedLogistic,
    "categorical": Categorical,
}


def make_likelihood(
    features: int, settings: ModelConfig, schema: Schema | None = None
) -> AnyLikelihood:
    """Build the likelihood of rows with this number of features; `settings` must be resolved.

    Raises:
        UsageRefused: a mixed likelihood has no schema.
    """
    if settings.likelihood != "mixed":
        return LIKELIHOODS[settings.likelihood](features, settings)
    if schema is None:
        raise UsageRefused("--likelihood mixed is for a table with a column for each feature")
    return Mixed(schema)


def choose_likelihood(
    binarize: Binarize, *splits: NDArray[Any], schema: Schema | None = None
) -> tuple[LikelihoodName, str]:
    """Return the name of the likelihood that fits the data, and a description of the data."""
    if schema is not None:
        return "mixed", "the columns of a table"
    if binarize != "none":
        return "bernoulli", "coin flips"
    low, high = find_range(*splits)
    if all(x.dtype == np.uint8 for x in splits):
        return "bernoulli", _describe_bytes(high)
    if not 0 <= low <= high <= 1:
        return "gaussian", "reals"
    if all(((x == 0) | (x == 1)).all() for x in splits):
        return "bernoulli", "zeros and ones"
    if high < 0.5:  # on the scale of 0 to 1, all of them would be nearly 0
        return "gaussian", f"numbers that reach only {high:.3g} of 1"
    return "continuous_bernoulli", "numbers from 0 to 1"


def _fit_sizes(schema: Schema) -> dict[str, Any]:
    """Return the widths and the number of latents for a table: powers of two, of its width.

    On eight tables from 900 to 6,400 rows, twice or half as many changed little.
    """
    inputs = 2 * len(schema.columns) + sum(len(column.words) for column in schema.columns)
    hidden = min(512, max(64, 2 ** math.ceil(math.log2(inputs))))
    latents = min(32, max(2, 2 ** round(math.log2(max(1, len(schema.columns) / 2)))))
    return {"hidden_dims": (hidden,), "latent_dim": latents, "fit_sizes": False}


def _describe_bytes(largest: float) -> str:
    scale = max_byte_of(largest)
    if scale == MAX_BYTE:
        return "bytes"
    if scale == 1:
        return "bytes of zeros and ones"
    return f"bytes that reach only {largest:.0f} of {MAX_BYTE}, which are shares of {scale}"


def resolve_model_config(
    config: Config, *splits: NDArray[Any], schema: Schema | None = None
) -> ModelConfig:
    """Return the model's settings with the likelihood, codes and sizes that the data needs.

    Raises:
        DataRefused: the likelihood is categorical, and a value is not a code.
        UsageRefused: settings contradict each other, or the data has more codes than they allow.
    """
    settings, binarize = config.model, config.data.binarize
    name = settings.likelihood
    if name == "auto":
        name, _ = choose_likelihood(binarize, *splits, schema=schema)
    if binarize != "none" and name != "bernoulli":
        raise UsageRefused(
            f"--binarize {binarize} makes zeros and ones: use --likelihood bernoulli, got {name}"
        )
    if settings.fixed_sigma != ModelConfig().fixed_sigma and settings.sigma != "fixed":
        raise UsageRefused(
            f"--fixed-sigma {settings.fixed_sigma:g} needs --sigma fixed, got {settings.sigma}"
        )
    if name == "mixed" and settings.fit_sizes:
        settings = replace(settings, **_fit_sizes(schema)) if schema else settings
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
