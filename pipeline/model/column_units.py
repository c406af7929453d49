"""The units in which the columns of a mixed table are computed, and the limits of their values."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from serving.schema import Column

Values = NDArray[np.float64]
"""The values of a column that are not gaps."""
Limits = tuple[Tensor, Tensor]
"""The least and the largest value of each column in training, in its module's units."""

LARGEST = 1e6
"""Largest distance from a column's centre, in its units: its square fits every float."""
SEEN_RANGE = 5.0
"""Largest distance that the encoder sees, so that one odd cell does not decide all latents."""
LOG_TWO_PI = math.log(2 * math.pi)
QUANTILES = tuple(NormalDist().inv_cdf((place + 0.5) / 8) for place in range(8))
"""The middles of eight equally likely parts of a standard normal distribution."""


def mean_and_spread(values: Values) -> tuple[float, float]:
    """Return mean and standard deviation; 1 for one that is 0."""
    if not values.size:
        return 0.0, 1.0
    return float(values.mean()), float(values.std()) or 1.0


class TwoParameters(nn.Module):
    """Columns with a centre and a unit each, and two parameters each from the network."""

    shift: Tensor
    unit: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        count = len(columns)
        self.x_width, self.params_width = count, 2 * count
        self.owners = [*range(count), *range(count)]
        self.register_buffer("shift", torch.zeros(count))
        self.register_buffer("unit", torch.ones(count))
