"""Compare the ELBO of new rows with the distribution of a version's held-out rows.

In: the held-out distribution, which a bundle holds in `metrics.json`, and the ELBO of new rows,
scored with as many draws, since another number gives another distribution. Out: a `Drift` with the
statistic D of the two-sample Kolmogorov-Smirnov test, its p-value, and the shift of the mean in
nats.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

KNOTS = 201
"""Number of quantiles in the distribution, so that D is known to 1 / (KNOTS - 1)."""
LOW_SHARE = 0.01
SCORE_SEED = 0
SCORE_SAMPLES = 1
MIXED_SCORE_SAMPLES = 4
"""How held-out rows are scored. With one draw, the cells of a mixed table are judged by a single z;
with several they are judged by the rest of their row, and find a changed cell better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The distribution of the ELBO of single held-out rows, in nats."""

    rows: int
    seed: int
    num_samples: int
    elbo_mean: float
    elbo_sd: float
    elbo_quantiles: tuple[float, ...]
    """Quantiles at the shares 0, 1 / (KNOTS - 1), … 1."""
    shared_noise: bool = True
    """Whether all rows had the same noise, as in bundles that do not hold this field: it moves all
    scores together, by two nats for MNIST, so that new ones cannot be compared with them."""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "HeldOut":
        """Read the fields from JSON."""
        return cls(**{**content, "elbo_quantiles": tuple(content["elbo_quantiles"])})

    def distinct_quantiles(self) -> tuple[Array, Array, Array]:
        """Return the distinct quantiles, and the shares of rows below and up to each."""
        shares = np.linspace(0, 1, len(self.elbo_quantiles))
        values, first = np.unique(self.elbo_quantiles, return_index=True)
        last = np.append(first[1:], len(shares)) - 1
        return values, shares[first], shares[last]

    def cdf(self, values: Array) -> Array:
        """Return the share of held-out rows up to each value, linear between quantiles."""
        knots, _, shares = self.distinct_quantiles()
        return np.interp(values, knots, shares, left=0, right=1)


@dataclass(frozen=True, slots=True)
class Drift:
    """The comparison of new rows with the held-out rows."""

    rows: int
    """Number of new rows."""
    mean: float
    """Their mean ELBO in nats."""
    d: float
    """Largest distance of the two distribution functions at the quantiles, from 0 to 1."""
    d_at: float
    """The ELBO at which the distance is largest."""
    p_value: float
    """Chance of a larger D if all rows come from one distribution."""
    mean_shift: float
    """Mean of the new rows minus mean of the held-out rows, in nats."""
    mean_shift_se: float
    low_share: float
    """Share of new rows below the `LOW_SHARE` quantile of the held-out rows."""


def held_out_samples(*, mixed: bool) -> int:
    """Return the draws with which each held-out row is scored, which new rows get by default."""
    return MIXED_SCORE_SAMPLES if mixed else SCORE_SAMPLES


def summarize(elbo: Array, *, mixed: bool = False) -> HeldOut:
    """Return the distribution of the ELBO of rows, each with its own `held_out_samples`."""
    return HeldOut(
        rows=len(elbo),
        seed=SCORE_SEED,
        num_samples=held_out_samples(mixed=mixed),
        shared_noise=False,
        elbo_mean=float(elbo.mean()),
        elbo_sd=float(elbo.std()),
        elbo_quantiles=tuple(np.quantile(elbo, np.linspace(0, 1, KNOTS)).tolist()),
    )


def read_held_out(metrics: Mapping[str, Any]) -> HeldOut | None:
    """Read the distribution from `metrics.json`; early bundles have none that can be used."""
    content = metrics.get("held_out")
    held_out = content and HeldOut.from_json(content)
    return held_out if held_out and not held_out.shared_noise else None


class DriftCounter:
    """Counts new rows below and up to each held-out quantile, exactly and in constant memory."""

    def __init__(self, held_out: HeldOut) -> None:
        self.held_out = held_out
        self._knots, self._share_below, self._share_up_to = held_out.distinct_quantiles()
        self._below = np.zeros(len(self._knots), np.int64)
        self._up_to = np.zeros(len(self._knots), np.int64)
        self._low = 0
        self._low_knot = held_out.elbo_quantiles[round(LOW_SHARE * (KNOTS - 1))]

    def add(self, elbo: Array) -> None:
        """Count some rows."""
        values = np.sort(elbo.astype(np.float64))
        self._below += np.searchsorted(values, self._knots, "left")
        self._up_to += np.searchsorted(values, self._knots, "right")
        self._low += int(np.searchsorted(values, self._low_knot, "left"))

    def drift(self, rows: int, mean: float, sd: float) -> Drift:
        """Compare; `rows`, `mean` and `sd` are those of all rows that were counted."""
        held = self.held_out
        distances = np.maximum(
            np.abs(self._below / rows - self._share_below),
            np.abs(self._up_to / rows - self._share_up_to),
        )
        d = float(distances.max())
        return Drift(
            rows=rows,
            mean=mean,
            d=d,
            d_at=float(self._knots[distances.argmax()]),
            p_value=kolmogorov_p(d, rows, held.rows),
            mean_shift=mean - held.elbo_mean,
            mean_shift_se=math.sqrt(sd**2 / rows + held.elbo_sd**2 / held.rows),
            low_share=self._low / rows,
        )


def kolmogorov_p(d: float, rows: int, other_rows: int) -> float:
    """Return the chance of a larger D between two large samples of one distribution.

    Kolmogorov (1933): Q(t) = 2 Σ (-1)^(k-1) exp(-2 k² t²) at t = d √(n m / (n + m)).
    """
    t = d * math.sqrt(rows * other_rows / (rows + other_rows))
    if t < 0.1:  # the chance is 1 to every digit, and the sum converges slowly
        return 1.0
    total = sum((-1) ** (k - 1) * math.exp(-2 * (k * t) ** 2) for k in range(1, 101))
    return float(np.clip(2 * total, 0, 1))
