"""How far the ELBO of new rows lies from that of a version's held-out rows.

In: the held-out distribution, which a bundle carries in `metrics.json`, and new rows. Out:
a `Drift`: the statistic D of the two-sample Kolmogorov-Smirnov test, its p-value, and the shift of
the mean in nats.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

KNOTS = 201
"""Quantiles that are kept, so that D is known to 1 / (KNOTS - 1)."""
LOW_SHARE = 0.01
SCORE_SEED = 0
SCORE_SAMPLES = 1
"""How held-out rows are scored: as `vae score` does where nothing else is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The ELBO of held-out rows, one score a row, in nats."""

    rows: int
    seed: int
    num_samples: int
    elbo_mean: float
    elbo_sd: float
    elbo_quantiles: tuple[float, ...]
    """At 0, 1 / (KNOTS - 1), … 1."""

    def levels(self) -> tuple[Array, Array, Array]:
        """Knots without repeats, and the shares of rows below each and up to each."""
        knots = np.asarray(self.elbo_quantiles)
        shares = np.linspace(0, 1, len(knots))
        places, first = np.unique(knots, return_index=True)
        last = np.append(first[1:], len(knots)) - 1
        return places, shares[first], shares[last]

    def cdf(self, values: Array) -> Array:
        """Share of held-out rows up to each value; between knots a straight line."""
        knots, _, shares = self.levels()
        return np.interp(values, knots, shares, left=0, right=1)


@dataclass(frozen=True, slots=True)
class Drift:
    """New rows beside the held-out rows."""

    d: float
    """Largest distance of the two distribution functions, seen at the knots: 0 to 1."""
    d_at: float
    """The ELBO where it is."""
    p_value: float
    """Of D, where both are drawn from one distribution."""
    mean_shift: float
    """New minus held-out, in nats."""
    mean_shift_se: float
    low_share: float
    """Share of new rows below all but `LOW_SHARE` of the held-out rows."""


def summarize(elbo: Array, seed: int = SCORE_SEED, num_samples: int = SCORE_SAMPLES) -> HeldOut:
    """Keep the distribution of held-out rows that were scored like this."""
    return HeldOut(
        rows=len(elbo),
        seed=seed,
        num_samples=num_samples,
        elbo_mean=float(elbo.mean()),
        elbo_sd=float(elbo.std()),
        elbo_quantiles=tuple(np.quantile(elbo, np.linspace(0, 1, KNOTS)).tolist()),
    )


def read_held_out(metrics: Mapping[str, Any]) -> HeldOut | None:
    """Take the distribution from the content of `metrics.json`; bundles of old have none."""
    content = metrics.get("held_out")
    if content is None:
        return None
    return HeldOut(**{**content, "elbo_quantiles": tuple(content["elbo_quantiles"])})


class DriftCounter:
    """Counts new rows around the knots, exactly, in memory that does not grow."""

    def __init__(self, held_out: HeldOut) -> None:
        self.held_out = held_out
        self._knots, self._share_below, self._share_up_to = held_out.levels()
        self._below = np.zeros(len(self._knots), np.int64)
        self._up_to = np.zeros(len(self._knots), np.int64)
        self._low = 0
        self._low_knot = held_out.elbo_quantiles[round(LOW_SHARE * (KNOTS - 1))]

    def add(self, elbo: Array) -> None:
        """Count the rows of a part."""
        values = np.sort(elbo.astype(np.float64))
        self._below += np.searchsorted(values, self._knots, "left")
        self._up_to += np.searchsorted(values, self._knots, "right")
        self._low += int(np.searchsorted(values, self._low_knot, "left"))

    def drift(self, rows: int, mean: float, sd: float) -> Drift:
        """Compare; `mean` and `sd` are those of the rows that were counted."""
        held = self.held_out
        distances = np.maximum(
            np.abs(self._below / rows - self._share_below),
            np.abs(self._up_to / rows - self._share_up_to),
        )
        d = float(distances.max())
        return Drift(
            d=d,
            d_at=float(self._knots[distances.argmax()]),
            p_value=kolmogorov_p(d, rows, held.rows),
            mean_shift=mean - held.elbo_mean,
            mean_shift_se=math.sqrt(sd**2 / rows + held.elbo_sd**2 / held.rows),
            low_share=self._low / rows,
        )


def kolmogorov_p(d: float, rows: int, other_rows: int) -> float:
    """The chance of a larger D between two samples of one distribution, for many rows.

    Kolmogorov (1933): Q(t) = 2 Σ (-1)^(k-1) exp(-2 k² t²) at t = d √(n m / (n + m)).
    """
    t = d * math.sqrt(rows * other_rows / (rows + other_rows))
    if t < 0.1:  # 1 to every digit; the sum converges slowly
        return 1.0
    total = sum((-1) ** (k - 1) * math.exp(-2 * (k * t) ** 2) for k in range(1, 101))
    return float(np.clip(2 * total, 0, 1))
