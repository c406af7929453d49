"""The gate's rule: is the candidate, on the same rows and noise, no worse than the champion?

In: the ELBO of each held-out row under both models, in nats. Out: a `Judgement`. Whatever is not
finite is refused.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Means over rows in nats, and why the candidate is refused, if it is."""

    elbo: float
    champion_elbo: float | None = None
    difference: float | None = None
    """Candidate less champion."""
    difference_se: float | None = None
    """Standard error of the difference, paired over rows."""
    refusal: str | None = None

    def __str__(self) -> str:
        """One line for a person."""
        if self.refusal is not None:
            return self.refusal
        if self.champion_elbo is None:
            return f"ELBO {self.elbo:.3f}; there is no champion to compare with"
        return f"ELBO {self.elbo:.3f}, {self._comparison()}"

    def _comparison(self) -> str:
        return (
            f"{self.difference:+.3f} ± {self.difference_se:.3f} nats from the champion's "
            f"{self.champion_elbo:.3f}"
        )


def judge(candidate: Array, champion: Array | None, *, margin: float) -> Judgement:
    """Accept a mean ELBO at most `margin` nats below the champion's; without one, any finite."""
    elbo = float(candidate.mean())
    if not math.isfinite(elbo):
        return Judgement(elbo=elbo, refusal=f"the candidate's ELBO is {elbo}")
    if champion is None:
        return Judgement(elbo=elbo)
    differences = candidate - champion
    difference = float(differences.mean())
    error = float(differences.std() / math.sqrt(len(differences)))
    judgement = Judgement(
        elbo=elbo,
        champion_elbo=float(champion.mean()),
        difference=difference,
        difference_se=error,
    )
    if difference >= -margin:
        return judgement
    refusal = f"ELBO {elbo:.3f} is too low: {judgement._comparison()}, allowed is -{margin:g}"
    return replace(judgement, refusal=refusal)
