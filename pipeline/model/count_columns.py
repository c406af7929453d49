"""Counts in the columns of a mixed table: negative binomial distributions."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.model.column_units import (
    LOG_TWO_PI,
    QUANTILES,
    SEEN_RANGE,
    Limits,
    TwoParameters,
    Values,
    mean_and_spread,
)
from pipeline.model.inversion import Drawn, draw_count
from pipeline.model.steady_log import steady_log

LEAST_SIZE = 0.03
"""Of a smaller size, all `QUANTILES` of a rate would be 0."""


class Counts(TwoParameters):
    """Negative binomial columns: the network gives the logs of the mean m and of the size r.

    The variance is m + m² / r; a large r makes a Poisson distribution.
    """

    gap = 0.0
    log_mean_range = (-12.0, 16.0)
    log_size_range = (-5.0, 7.0)

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

    def expected_inputs(self, x: Tensor) -> Tensor:
        """Return what the network would read of means, which need not be whole numbers."""
        return self.inputs(x.clamp(min=0), torch.ones_like(x))

    def log_prob(self, params: Tensor, u: Tensor) -> Tensor:
        """Return the log-probability of each count."""
        log_mean, log_size = params.to(u.dtype).chunk(2, -1)
        log_mean = log_mean.clamp(*self.log_mean_range)
        log_size = log_size.clamp(*self.log_size_range)
        size = log_size.exp()
        log_total = (log_mean.exp() + size).log()
        ways = log_rising(size, u) - log_gamma(u + 1)
        return ways + size * (log_size - log_total) + u * (log_mean - log_total)

    def log_unit(self, u: Tensor) -> Tensor:
        """Return 0: counts have no unit."""
        return torch.zeros_like(u)

    def mean(self, params: Tensor) -> Tensor:
        """Return the mean."""
        return params.chunk(2, -1)[0].clamp(*self.log_mean_range).exp()

    def draw(self, params: Tensor, noise: Tensor) -> Drawn:
        """Draw a count by inversion."""
        size = params.chunk(2, -1)[1].clamp(*self.log_size_range).exp()
        return draw_count(self.mean(params), size, noise)

    def impute(self, params: Tensor, weights: Tensor, limits: Limits) -> Drawn:
        """Return the mean of the mixture.

        A count is a Poisson variable whose rate has a gamma distribution. The mean of each draw is
        that of the rate's `QUANTILES` (Wilson & Hilferty, 1931), scaled to the mean of the count
        and each held within the limits. Where the size is small and nearly all counts are 0, the
        mean alone would follow from a tail that no row has.
        """
        size = params.chunk(2, -1)[1].clamp(*self.log_size_range).exp().clamp(min=LEAST_SIZE)
        roots = (1 - 1 / (9 * size) + noise / (3 * size.sqrt()) for noise in QUANTILES)
        rates = torch.stack([root.clamp(min=0).pow(3) for root in roots])
        rates = self.mean(params) * rates / rates.mean(0)
        means = rates.maximum(limits[0]).minimum(limits[1]).mean(0)
        x = (weights.unsqueeze(-1) * means).sum(1)
        return Drawn(x, torch.ones_like(x))


def log_gamma(x: Tensor) -> Tensor:
    """Return log Γ(x) for x > 0 by Stirling's series at x + 8, which ONNX can express."""
    first, second = _first_factors(x)
    return _stirling(x + 8) + LOG_TWO_PI / 2 - first.log() - second.log()


def log_rising(x: Tensor, n: Tensor) -> Tensor:
    """Return log Γ(x + n) - log Γ(x) for x > 0 and n >= 0, with fewer logarithms than of both."""
    (low_first, low_second), (first, second) = _first_factors(x), _first_factors(x + n)
    series = _stirling(x + n + 8) - _stirling(x + 8)
    return series + (low_first / first).log() + (low_second / second).log()


def _first_factors(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return Γ(x + 8) / Γ(x) as two factors, neither of which leaves float32."""
    outer, further = x * (x + 3), (x + 4) * (x + 7)
    return outer * (outer + 2), further * (further + 2)  # the inner two are 2 more than the outer


def _stirling(y: Tensor) -> Tensor:
    """Return log Γ(y) for y >= 8, less half of log 2π."""
    inverse = 1 / y
    square = inverse.square()
    series = inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680)))
    return (y - 0.5) * y.log() - y + series


def _log_size(values: Values) -> float:
    if not values.size:
        return 0.0
    mean, variance = max(float(values.mean()), 1e-3), float(values.var())
    return float(np.clip(math.log(mean**2 / max(variance - mean, mean / 100)), -4, 6))
