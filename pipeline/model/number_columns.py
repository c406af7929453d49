"""Normal columns of a mixed table: real numbers, and the logs of positive ones."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.model.column_units import (
    LARGEST,
    LOG_TWO_PI,
    QUANTILES,
    SEEN_RANGE,
    Limits,
    TwoParameters,
    Values,
    mean_and_spread,
)
from pipeline.model.inversion import Drawn
from pipeline.model.steady_log import steady_log
from serving.schema import Column

HEAVY = 20.0
"""Distance from the median, in units of the quartiles', from which on tails are heavy."""
LOG_SCALE_RANGE = (-4.0, 4.0)
"""The lower end keeps columns of few distinct numbers from a density without bounds."""


class _Numbers(TwoParameters):
    """Normal columns: the network gives the mean and the log of the standard deviation of each."""

    gap = 0.0

    def output_bias(self, columns: Sequence[Values]) -> Tensor:
        """Return the standard normal, which the units of each column fit."""
        return torch.zeros(self.params_width)

    def inputs(self, u: Tensor, seen: Tensor) -> Tensor:
        """Return the values, those of cells that stand far out made less; a gap is 0 already."""
        return u.clamp(-SEEN_RANGE, SEEN_RANGE)

    def expected_inputs(self, x: Tensor) -> Tensor:
        """Return what the network would read of means in the data's units."""
        return self.inputs(self.standardize(x), torch.ones_like(x))

    def log_prob(self, params: Tensor, u: Tensor) -> Tensor:
        """Return the log-density of each value in the module's units."""
        loc, log_scale = params.to(u.dtype).chunk(2, -1)
        log_scale = log_scale.clamp(*LOG_SCALE_RANGE)
        error = (u - loc) * torch.exp(-log_scale)
        return -(error * error + LOG_TWO_PI) / 2 - log_scale

    def draw(self, params: Tensor, noise: Tensor) -> Drawn:
        """Return the mean plus the standard deviation times the noise, in the data's units."""
        loc, log_scale = params.chunk(2, -1)
        x = self._to_data(loc + log_scale.clamp(*LOG_SCALE_RANGE).exp() * noise)
        return Drawn(x, torch.ones_like(x))

    def impute(self, params: Tensor, weights: Tensor, limits: Limits) -> Drawn:
        """Return the mean of the mixture.

        That of each draw is the mean of its `QUANTILES`, each held within the limits: the mean of a
        log-normal follows from a tail that no row may have.
        """
        loc, log_scale = params.chunk(2, -1)
        scale = log_scale.clamp(*LOG_SCALE_RANGE).exp()
        points = (
            (loc + scale * noise).maximum(limits[0]).minimum(limits[1]) for noise in QUANTILES
        )
        means = torch.stack([self._to_data(point) for point in points]).mean(0)
        x = (weights.unsqueeze(-1) * means).sum(1)
        return Drawn(x, torch.ones_like(x))

    def standardize(self, x: Tensor) -> Tensor:
        """Convert values to the module's units."""
        raise NotImplementedError

    def _to_data(self, u: Tensor) -> Tensor:
        raise NotImplementedError

    def _set_unit(self, columns: Sequence[Values]) -> None:
        for index, values in enumerate(columns):
            self.shift[index], self.unit[index] = mean_and_spread(values)

    def _to_units(self, values: Tensor) -> Tensor:
        return ((values - self.shift) / self.unit).clamp(-LARGEST, LARGEST)


class Reals(_Numbers):
    """Normal columns. Those with heavy tails are normal after asinh: Johnson's S_U (1949).

    With v = (x - centre) / width, u is v less its mean in units of its standard deviation, or the
    same of asinh(v). A tail then costs the square of a logarithm, and cannot upset the training.
    """

    centre: Tensor
    width: Tensor
    heavy: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__(columns)
        self.register_buffer("centre", torch.zeros(len(columns)))
        self.register_buffer("width", torch.ones(len(columns)))
        self.register_buffer("heavy", torch.zeros(len(columns)))

    def fit(self, columns: Sequence[Values]) -> None:
        """Set the units from the values of each column."""
        found = []
        for index, values in enumerate(columns):
            centre, width = _quartiles(values)
            distances = (values - centre) / width
            heavy = distances.size > 0 and bool(np.abs(distances).max() > HEAVY)
            self.centre[index], self.width[index] = centre, width
            self.heavy[index] = float(heavy)
            found.append(np.arcsinh(distances) if heavy else distances)
        self._set_unit(found)

    def standardize(self, x: Tensor) -> Tensor:
        """Return u."""
        v = (x - self.centre) / self.width
        # asinh, which onnxruntime has for float32 alone; without cancellation where v is small
        size = v.abs().clamp(max=1e15)
        bent = v.sign() * steady_log(size + (size * size + 1).sqrt())
        return self._to_units(torch.where(self.heavy > 0, bent, v))

    def log_unit(self, u: Tensor) -> Tensor:
        """Return log |dx / du|."""
        bent = self._bent(u)
        # log cosh, which is the size of its argument less log 2 where that is large
        size = bent.abs()
        slope = size + (1 + torch.exp(-2 * size)).log() - math.log(2)
        return self.unit.log() + self.width.log() + torch.where(self.heavy > 0, slope, 0.0)

    def mean(self, params: Tensor) -> Tensor:
        """Return the median."""
        return self._to_data(params.chunk(2, -1)[0])

    def _to_data(self, u: Tensor) -> Tensor:
        v = self._bent(u)
        size = v.abs().clamp(max=30)
        sinh = v.sign() * (torch.exp(size) - torch.exp(-size)) / 2
        return torch.where(self.heavy > 0, sinh, v) * self.width + self.centre

    def _bent(self, u: Tensor) -> Tensor:
        return u * self.unit + self.shift


class Positives(_Numbers):
    """Log-normal columns; `offset`, half of the smallest value, makes a zero possible."""

    offset: Tensor
    least: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__(columns)
        self.register_buffer("offset", torch.zeros(len(columns)))
        self.register_buffer("least", torch.ones(len(columns)))

    def fit(self, columns: Sequence[Values]) -> None:
        """Set the units from the values of each column."""
        found = []
        for index, values in enumerate(columns):
            positive = values[values > 0]
            smallest = float(positive.min()) if positive.size else 1.0
            offset = smallest / 2 if values.size and values.min() <= 0 else 0.0
            self.offset[index] = offset
            self.least[index] = smallest / 1000  # what a value that cannot be counts as
            found.append(np.log(np.maximum(values + offset, smallest / 1000)))
        self._set_unit(found)

    def standardize(self, x: Tensor) -> Tensor:
        """Return u, the log of x in units of its standard deviation."""
        return self._to_units(steady_log(torch.maximum(x + self.offset, self.least)))

    def log_unit(self, u: Tensor) -> Tensor:
        """Return log |dx / du|."""
        return self.unit.log() + u * self.unit + self.shift

    def mean(self, params: Tensor) -> Tensor:
        """Return the median."""
        return self._to_data(params.chunk(2, -1)[0])

    def draw(self, params: Tensor, noise: Tensor) -> Drawn:
        """Return a log-normal variable less the offset; what is below 0 is a zero."""
        x, gap = super().draw(params, noise)
        return Drawn(x.clamp(min=0), gap)

    def impute(self, params: Tensor, weights: Tensor, limits: Limits) -> Drawn:
        """Return the mean of the mixture, at least 0."""
        x, gap = super().impute(params, weights, limits)
        return Drawn(x.clamp(min=0), gap)

    def _to_data(self, u: Tensor) -> Tensor:
        logs = u * self.unit + self.shift
        return logs.clamp(max=80).exp() - self.offset


def _quartiles(values: Values) -> tuple[float, float]:
    """Return the median, and the standard deviation of a normal with the same quartiles.

    If half of the values are equal, the standard deviation of all takes its place.
    """
    if not values.size:
        return 0.0, 1.0
    low, centre, high = np.quantile(values, (0.25, 0.5, 0.75))
    width = (high - low) / 1.349 or values.std() or 1.0
    return float(centre), float(width)
