"""The gate's rule: is the candidate sound, good enough, and no worse than the champion?

In: the ELBO of each held-out row under both models, in nats, and the candidate's sealed metrics.
Out: faults, which nothing overrides, and a `Judgement`, which `--force` overrides.

The comparison is a test of non-inferiority. Both models score the same rows with the same noise.
Let d be the mean over rows of the candidate's ELBO minus the champion's, and se the standard error
of d, paired over rows. The candidate passes if `d - z * se >= -margin`, where z is the normal
quantile of `confidence`. The burden is on the candidate: one that is worse by more than the margin
passes with a probability of at most 1 - confidence, and it is refused if the rows are too few to
tell. Pairing removes what makes a row hard for both models. Every row has its own noise, so se
contains the error of the noise too.

The margin is the loss in ELBO that is accepted for a retrained model. Models that differ only in
the seed of their training differ by more than se: on MNIST (preset seed, 15 epochs, 5 seeds) pairs
are 0.2 to 1.4 nats apart, with a paired se of 0.06 (0.45 unpaired). So a margin of 0 refuses half
of all retrained models. The default is about 1 % of MNIST's ELBO; other data needs its own. Each
promotion may lose the margin again; `min_elbo` limits the sum of these losses.

If the gate requires live rows, those decide (`live_comparison`), and the comparison on held-out
rows is reported beside them.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import PromoteConfig
from pipeline.registry.live_comparison import LiveComparison

Array = NDArray[Any]

MIN_ROWS = 30
"""With fewer rows the mean of the differences is not close enough to normal for the quantile."""
_METRICS = ("elbo", "nll", "active_units")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Means over rows in nats, and the reasons to refuse the candidate, if there are any."""

    rows: int
    elbo: float
    champion_elbo: float | None = None
    difference: float | None = None
    """The candidate's ELBO minus the champion's."""
    difference_se: float | None = None
    """Standard error of the difference, paired over rows."""
    lower_bound: float | None = None
    """The true difference is larger than this, with the configured confidence."""
    live: LiveComparison | None = None
    """The comparison on live rows, if the gate requires one: then it decides, and not this one."""
    refusals: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Describe the comparison in one line."""
        if self.champion_elbo is None:
            return (
                f"ELBO {self.elbo:.3f}; without a champion to compare with, only the limits apply"
            )
        live = "" if self.live is None else f"; {self.live}"
        return (
            f"ELBO {self.elbo:.3f}, {self.difference:+.3f} ± {self.difference_se:.3f} nats from "
            f"the champion's {self.champion_elbo:.3f}, at worst {self.lower_bound:+.3f}{live}"
        )


def judge(
    candidate: Array,
    champion: Array | None,
    *,
    active_units: float,
    config: PromoteConfig,
    live: LiveComparison | None = None,
) -> Judgement:
    """Compare ELBOs of shape `(rows,)`; without a champion only the limits apply.

    If there is a comparison on `live` rows, it decides in place of that on these.
    """
    elbo = float(candidate.mean())
    limits = tuple(_limit_refusals(elbo, active_units, config))
    if champion is None:
        return Judgement(rows=len(candidate), elbo=elbo, refusals=limits)
    rows = len(candidate)
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, which is refused below
        differences = candidate - champion
        spread = float(differences.std(ddof=1)) if rows > 1 else math.nan
    difference, error = float(differences.mean()), spread / math.sqrt(rows)
    judgement = Judgement(
        rows=rows,
        elbo=elbo,
        champion_elbo=float(champion.mean()),
        difference=difference,
        difference_se=error,
        lower_bound=difference - NormalDist().inv_cdf(config.confidence) * error,
        live=live,
    )
    compared = _comparison_refusals(judgement, config) if live is None else live.refusals
    return replace(judgement, refusals=(*limits, *compared))


def score_faults(scores: Array) -> Iterator[str]:
    """Yield the reasons why the candidate's ELBOs cannot be averaged."""
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        yield f"the candidate's ELBO is not finite on {bad} of {len(scores)} held-out rows"
    if not len(scores):
        yield "there are no held-out rows to score"


def metric_faults(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Name the sealed metrics that are missing or not finite."""
    for name in _METRICS:
        value = metrics.get(name)
        if not isinstance(value, int | float):
            yield f"metrics.json has no {name}: run vae export again"
        elif not math.isfinite(value):
            yield f"metrics.json says {name} is {value}: run vae evaluate"


def _limit_refusals(elbo: float, active_units: float, config: PromoteConfig) -> Iterator[str]:
    if config.min_elbo is not None and not elbo >= config.min_elbo:
        yield f"ELBO {elbo:.3f} is below --min-elbo {config.min_elbo:g}"
    if not active_units >= config.min_active_units:
        text = f"{active_units} latents are active, --min-active-units is {config.min_active_units}"
        yield text if active_units else f"{text}: the model ignores its latents, see the model card"


def _comparison_refusals(judgement: Judgement, config: PromoteConfig) -> Iterator[str]:
    if judgement.rows < MIN_ROWS:
        yield f"{judgement.rows} held-out rows are too few to compare models: {MIN_ROWS} are needed"
    elif not math.isfinite(judgement.champion_elbo or 0.0):
        yield f"the champion's ELBO is {judgement.champion_elbo}: run vae rollback, or use --force"
    elif not (judgement.lower_bound or 0.0) >= -config.margin:
        yield (
            f"not shown to be as good: {judgement} with confidence {config.confidence:g}, "
            f"allowed is -{config.margin:g}"
        )
