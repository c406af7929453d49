"""The gate's rule on live rows: is the candidate no worse than the champion on real traffic?

In: the sums that `vae serve --shadow` has written into the candidate's tags. Out: a comparison with
the reasons to refuse the candidate, which `--force` overrides.

People ask again while rows still come in, and would stop at the first yes. So the bound is that of
a confidence sequence, which holds for all numbers of rows at once (Waudby-Smith, Arbour, Sinha,
Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences",
arXiv 2103.06476, theorem 2.2 and its one-sided form). It is asymptotic, as the quantile of the
held-out comparison is: the mean of the first rows must be close to normal, so ask for thousands.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.config import PromoteConfig
from serving.live_sums import LiveSums

MIN_ROWS = 30
"""With fewer rows the mean of the differences is not close enough to normal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveComparison:
    """The candidate against the champion on the rows that a server has answered, in nats."""

    rows: int
    required: int
    difference: float | None = None
    """Mean of the candidate's ELBO minus the champion's."""
    difference_se: float | None = None
    """Standard error of the difference, paired over rows."""
    lower_bound: float | None = None
    """The true difference is larger than this, with the configured confidence, however often the
    gate is asked."""
    refusals: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Describe the comparison in one line."""
        if self.difference is None:
            return f"{self.rows:,} live rows"
        return (
            f"{self.difference:+.3f} ± {self.difference_se:.3f} nats from the champion on "
            f"{self.rows:,} live rows, at worst {self.lower_bound:+.3f}"
        )


def compare_live(sums: LiveSums, reference: str, config: PromoteConfig) -> LiveComparison:
    """Judge the sums of all servers; `reference` names the candidate, as `--shadow` takes it."""
    compared = LiveComparison(rows=sums.rows, required=config.require_live)
    if sums.rows >= 2:
        error = math.sqrt(sums.variance / sums.rows)
        width = sequence_width(sums.rows, config.require_live, 1 - config.confidence)
        compared = replace(
            compared,
            difference=sums.mean,
            difference_se=error,
            lower_bound=sums.mean - width * math.sqrt(sums.variance),
        )
    return replace(compared, refusals=tuple(_refusals(compared, sums, reference, config)))


def sequence_width(rows: int, tightest: int, alpha: float) -> float:
    """Return the distance of the one-sided bound from the mean, for a variance of 1.

    Over all numbers of rows, the bound is on the wrong side with a probability of at most `alpha`.
    It is tightest at about `tightest` rows.
    """
    level = min(2 * alpha, 0.5)  # the choice of rho changes how tight the bound is, never its truth
    rho2 = (-2 * math.log(level) + math.log(1 - 2 * math.log(level))) / tightest
    mixed = rows * rho2 + 1
    return math.sqrt(2 * mixed / (rows**2 * rho2) * math.log1p(math.sqrt(mixed) / (2 * alpha)))


def _refusals(
    compared: LiveComparison, sums: LiveSums, reference: str, config: PromoteConfig
) -> Iterator[str]:
    needed = max(config.require_live, MIN_ROWS)
    if sums.rows < needed:
        yield (
            f"{sums.rows:,} of {needed:,} live rows so far: run vae serve --shadow {reference}, "
            "and ask again"
        )
    elif sums.not_finite:
        yield (
            f"the candidate's ELBO is not finite on {sums.not_finite:,} of {sums.rows:,} live rows "
            "that the champion can score"
        )
    elif sums.unread:
        yield f"the candidate cannot read {sums.unread:,} live rows that the champion can"
    elif not (compared.lower_bound or 0.0) >= -config.margin:
        yield (
            f"not shown to be as good on live rows: {compared} with confidence "
            f"{config.confidence:g}, allowed is -{config.margin:g}"
        )
