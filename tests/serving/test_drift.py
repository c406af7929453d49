import math

import numpy as np
import pytest

from serving.drift import (
    KNOTS,
    Drift,
    DriftCounter,
    HeldOut,
    kolmogorov_p,
    read_held_out,
    summarize,
)

STEP = 1 / (KNOTS - 1)


def compare(held: np.ndarray, values: np.ndarray, parts: int = 3) -> Drift:
    counter = DriftCounter(summarize(held))
    for part in np.array_split(values, parts):
        counter.add(part)
    return counter.drift(len(values), float(values.mean()), float(values.std()))


def largest_distance(left: np.ndarray, right: np.ndarray) -> float:
    """Compute D by its definition, from both distribution functions at every value."""
    points = np.concatenate([left, right])
    return max(float(abs((left <= p).mean() - (right <= p).mean())) for p in points)


@pytest.mark.parametrize(
    ("t", "p"),
    [(1.2238, 0.10), (1.3581, 0.05), (1.6276, 0.01), (1.9495, 0.001), (0.8276, 0.5)],
    ids=lambda value: f"{value}",
)
def test_p_values_equal_those_of_kolmogorov_s_table(t: float, p: float) -> None:
    assert kolmogorov_p(t / math.sqrt(500), 1000, 1000) == pytest.approx(p, rel=2e-3)


def test_p_is_one_for_no_distance_and_zero_for_a_large_one() -> None:
    assert kolmogorov_p(0, 10, 10) == 1
    assert kolmogorov_p(0.5, 10**6, 10**4) == 0
    assert math.isnan(kolmogorov_p(math.nan, 10, 10))


@pytest.mark.parametrize(
    ("loc", "scale"),
    [(0, 1), (0.3, 1), (-2, 1), (0, 3), (0, 0.2), (40, 1), (-40, 1)],
    ids=["same", "near", "below", "wider", "narrower", "all above", "all below"],
)
def test_d_is_exact_to_one_step_of_the_quantiles(loc: float, scale: float) -> None:
    generator = np.random.default_rng(1)
    held = generator.gumbel(-100, 10, 900)
    values = generator.gumbel(-100 + 10 * loc, 10 * scale, 700)
    found = compare(held, values)
    exact = largest_distance(held, values)
    assert exact - STEP - 1 / 900 <= found.d <= exact + 1 / 900
    assert found.mean_shift == pytest.approx(values.mean() - held.mean())
    assert found.mean_shift_se == pytest.approx(
        math.sqrt(values.var() / 700 + held.var() / 900), rel=1e-9
    )
    assert found.low_share == (values < np.quantile(held, 0.01)).mean()


def test_the_held_out_rows_do_not_drift_from_themselves() -> None:
    held = np.random.default_rng(0).normal(-90, 5, 1000)
    found = compare(held, held)
    assert found.d == pytest.approx(0, abs=1.01 / 1000)
    assert found.p_value == 1
    assert found.mean_shift == pytest.approx(0, abs=1e-9)


def test_repeated_values_are_counted_on_both_sides() -> None:
    held = np.repeat([1.0, 2.0], 500)
    assert compare(held, np.repeat([1.0, 2.0], 50)).d == pytest.approx(0, abs=1.01 * STEP)
    assert compare(held, np.full(100, 1.0)).d == pytest.approx(0.5, abs=1.01 * STEP)
    assert compare(held, np.full(100, 3.0)).d == 1


def test_d_does_not_depend_on_the_order_of_rows_or_on_their_parts() -> None:
    generator = np.random.default_rng(2)
    held, values = generator.normal(size=300), generator.normal(size=5000)
    assert compare(held, values, 1).d == compare(held, values[::-1], 7).d


def test_the_distribution_is_the_same_after_json_and_may_be_missing() -> None:
    held = summarize(np.random.default_rng(0).normal(size=40))
    assert len(held.elbo_quantiles) == KNOTS
    names = HeldOut.__slots__
    content = {name: getattr(held, name) for name in names}
    content["elbo_quantiles"] = list(held.elbo_quantiles)
    assert read_held_out({"rows": 40, "held_out": content}) == held
    assert read_held_out({"rows": 40}) is None
    assert read_held_out({"rows": 40, "held_out": None}) is None


def test_the_distribution_function_equals_that_of_the_rows() -> None:
    held = np.random.default_rng(0).normal(size=4000)
    points = np.array([-9, -1, 0, 0.5, 9])
    expected = [(held <= point).mean() for point in points]
    assert summarize(held).cdf(points) == pytest.approx(expected, abs=STEP)
