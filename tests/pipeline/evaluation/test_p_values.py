"""The p-values of `serving.p_values` against scipy, and what they promise, on simulated scores."""

import numpy as np
import pytest
from scipy import stats

from serving.p_values import FlagCounter, PValues


@pytest.mark.parametrize("fdr", [0.02, 0.1, 0.25])
def test_flags_are_those_of_scipy(fdr: float) -> None:
    generator = np.random.default_rng(1)
    held = generator.standard_normal(1000)
    scores = np.append(generator.standard_normal(900), generator.standard_normal(100) - 4)
    p = PValues(held)(scores)
    counter = FlagCounter(len(held))
    counter.add(p)
    flags = counter.flag(fdr)
    expected = stats.false_discovery_control(p) <= fdr
    assert expected.any()
    assert flags.threshold is not None
    assert np.array_equal(p <= flags.threshold, expected)
    assert flags.flagged == expected.sum()


def test_p_values_of_rows_like_the_held_out_ones_are_uniform() -> None:
    """One row for each set of held-out rows: those of one set depend on each other."""
    generator = np.random.default_rng(2)
    p = np.array(
        [PValues(generator.gumbel(size=199))(generator.gumbel(size=1)).item() for _ in range(3000)]
    )
    assert stats.kstest(p + generator.random(3000) / 200 - 1 / 200, "uniform").pvalue > 0.01
    for level in (0.01, 0.05, 0.2):
        assert (p <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / 3000)


@pytest.mark.parametrize("unusual", [0, 20, 60])
def test_the_false_discovery_proportion_is_at_most_its_rate_on_average(unusual: int) -> None:
    generator = np.random.default_rng(3)
    rate, draws, rows, shares, found = 0.1, 100, 400, [], []
    for _ in range(draws):
        scores = generator.standard_normal(rows)
        scores[:unusual] -= 5
        p = PValues(generator.standard_normal(1000))(scores)
        counter = FlagCounter(1000)
        counter.add(p)
        flagged = p <= (counter.flag(rate).threshold or 0)
        shares.append(flagged[unusual:].sum() / max(1, flagged.sum()))
        found.append(flagged[:unusual].mean() if unusual else 1)
    error = np.std(shares) / np.sqrt(draws)
    assert np.mean(shares) <= rate + 2 * error
    assert np.mean(found) > 0.9
