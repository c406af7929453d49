"""Other distributions from standard normal noise, by functions that every runtime has.

In: noise, and the parameters of a distribution. Out: a value of it that grows with the noise, and
how far the noise is from the next value if values are whole numbers. Parity needs that distance:
where it is within rounding, two right answers differ.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

_ERFC = (
    -1.26551223,
    1.00002368,
    0.37409196,
    0.09678418,
    -0.18628806,
    0.27886807,
    -1.13520398,
    1.48851587,
    -0.82215223,
    0.17087277,
)
"""Chebyshev's fit of log(erfc(x) / t) + x² in t = 1 / (1 + x / 2), from the constant on."""
TABLE = 64
"""Counts whose probabilities are summed one by one; larger ones come from the tail's shape."""
LARGEST_COUNT = 2.0**24
_BLOCKS = 64
_BROAD = 4.0
"""Below this size, a negative binomial is too skewed for the cube of a normal."""


class Drawn(NamedTuple):
    """Values that were drawn, and their distance from the next other value."""

    x: Tensor
    gap: Tensor
    """Distance from the next jump of `x`, of the shape of `x`, in a unit in which all cells have
    about the same rounding errors; 1 where `x` is continuous."""


def log_tail(size: Tensor) -> Tensor:
    """Return the log of the probability that a normal is above `size`, which is not negative.

    The probability has a relative error of 1.2e-7 (Press et al., Numerical Recipes, erfcc). Unlike
    a difference of an error function from 1, it is as good far out.
    """
    z = size / math.sqrt(2)
    t = 1 / (1 + z / 2)
    *rest, before, last = _ERFC
    series = t * last + before
    for coefficient in reversed(rest):
        series = series * t + coefficient
    return t.log() - z.square() + series - math.log(2)


def lower_and_upper(noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probabilities that a normal is below and above the noise: Phi and 1 - Phi."""
    tail = log_tail(noise.abs()).exp()
    rest = 1 - tail
    return torch.where(noise < 0, tail, rest), torch.where(noise < 0, rest, tail)


def logit_of(noise: Tensor) -> Tensor:
    """Return log(Phi / (1 - Phi)), finite for any noise."""
    tail = log_tail(noise.abs())
    return noise.sign() * ((1 - tail.exp()).log() - tail)


def draw_code(masses: Tensor, noise: Tensor) -> Drawn:
    """Draw a place of the last axis in proportion to `masses` (…, codes), by inversion."""
    ends = masses.cumsum(-1)  # a product with a matrix would round each row in its own way
    total = ends[..., -1:]
    u = lower_and_upper(noise)[0].unsqueeze(-1)
    ends = ends[..., :-1]
    code = (u * total > ends).to(masses.dtype).sum(-1)
    return Drawn(code, (u - ends / total).abs().amin(-1))


def round_drawn(values: Tensor) -> Drawn:
    """Round to whole numbers; the gap is a share of the value, as rounding errors are."""
    whole = (values + 0.5).floor()  # not every device rounds
    return Drawn(whole, (0.5 - (values - whole).abs()) / (values.abs() + 1))


def draw_count(mean: Tensor, size: Tensor, noise: Tensor) -> Drawn:
    """Draw a negative binomial of variance mean + mean² / size.

    The counts below `TABLE` have their exact probabilities. Larger ones are drawn from the tail's
    shape: if the size is small, a power times an exponential, with the mass of the exact tail; else
    a gamma distribution with the same three moments, by the cube of a normal (Wilson & Hilferty,
    1931).
    """
    lower, upper = lower_and_upper(noise)
    counts = torch.arange(TABLE, dtype=mean.dtype)
    m, r = mean.unsqueeze(-1), size.unsqueeze(-1)
    log_rate = -(r / m + 1).log()  # of one count more
    log_zero = -r * (m / r + 1).log()
    steps = ((counts + r) / (counts + 1)).log() + log_rate
    logs = torch.cat([log_zero, log_zero + steps[..., :-1].cumsum(-1)], -1)
    ends = logs.clamp(min=-100).exp().cumsum(-1)
    u = lower.unsqueeze(-1)
    below = (u > ends).to(mean.dtype).sum(-1)
    left = (1 - ends[..., -1]).clamp(min=1e-30)
    share = (upper / left).clamp(1e-30, 1.0)
    tail = torch.where(size < _BROAD, _power_tail(mean, size, share), _cubed(mean, size, noise))
    tail = tail.clamp(float(TABLE), LARGEST_COUNT)
    large = round_drawn(tail)
    edge = (u - ends).abs().amin(-1)
    beyond = below >= TABLE
    return Drawn(
        torch.where(beyond, large.x, below),
        torch.minimum(edge, torch.where(beyond, large.gap, torch.ones_like(edge))),
    )


def _power_tail(mean: Tensor, size: Tensor, share: Tensor) -> Tensor:
    """Return the value which `share` of the tail from `TABLE` on exceeds.

    There Γ(x + r) / Γ(x + 1) is (x + r / 2)^(r - 1), but for 1 / x² (Tricomi & Erdélyi, 1951). As a
    density of log x it is almost log-linear, within each of `_BLOCKS` blocks of equal width.
    """
    m, r = mean.unsqueeze(-1), size.unsqueeze(-1)
    ratio = r / m
    near = ratio * (1 - ratio * (1 / 2 - ratio / 3))  # in float32, 1 + ratio loses the ratio
    rate = torch.where(ratio < 1e-2, near, (ratio + 1).log())
    first = math.log(TABLE - 0.5)
    last = (m + 8 * (m * (m / r + 1)).sqrt() + 20 * (m / r + 1)).clamp(min=2 * TABLE).log()
    width = (last - first) / _BLOCKS
    places = torch.arange(_BLOCKS + 1, dtype=mean.dtype) * width + first
    x = places.exp()
    logs = (r - 1) * (x + r / 2).log() - rate * x + places
    logs = logs - logs.amax(-1, keepdim=True)
    start, rise = logs[..., :-1], logs[..., 1:] - logs[..., :-1]
    # the logarithmic mean of the densities at both ends, from the larger one
    fall = rise.abs().clamp(min=1e-3)
    masses = torch.maximum(start, logs[..., 1:]).clamp(min=-80).exp() * (1 - (-fall).exp()) / fall
    ends = masses.cumsum(-1)
    wanted = (1 - share.unsqueeze(-1)) * ends[..., -1:]
    block = (wanted > ends[..., :-1]).to(mean.dtype).sum(-1, keepdim=True)
    # 1 at the block, else 0
    here = (1 - (torch.arange(_BLOCKS, dtype=mean.dtype) - block).abs()).clamp(min=0.0)
    mass, end, slope = ((here * part).sum(-1) for part in (masses, ends, rise))
    part = (1 - (end - wanted.squeeze(-1)) / mass).clamp(0.0, 1.0)
    bend = torch.where(slope.abs() < 1e-3, 1e-3, slope).clamp(-80.0, 80.0)
    # log(1 + part (exp(bend) - 1)) / bend, from the end at which the density is larger
    away = torch.where(bend > 0, 1 - part, part)
    inside = -(1 - away * (1 - (-bend.abs()).exp())).clamp(min=1e-30).log() / bend.abs()
    inside = torch.where(bend > 0, 1 - inside, inside).clamp(0.0, 1.0)
    return ((block.squeeze(-1) + inside) * width.squeeze(-1) + first).clamp(max=40).exp()


def _cubed(mean: Tensor, size: Tensor, noise: Tensor) -> Tensor:
    """Return a gamma variable with the mean, variance and skewness of a negative binomial."""
    p = size / (size + mean)
    q = 1 - p
    shape = 4 * size * q / (1 + q).square()
    unit = (1 + q) / (2 * p)
    cube = 1 - 1 / (9 * shape) + noise / (3 * shape.sqrt())
    return mean + shape * unit * (cube.clamp(min=0).pow(3) - 1)
