from statistics import NormalDist

import numpy as np
import pytest

from pipeline.config import PromoteConfig
from pipeline.registry.gate import Judgement, judge, metric_faults, score_faults

CHAMPION = np.random.default_rng(0).normal(-100, 20, 400)
"""Rows differ by far more than the models do: only a paired error tells the models apart."""


def decide(
    candidate: np.ndarray, champion: np.ndarray | None = CHAMPION, units: float = 3, **gate: float
) -> Judgement:
    return judge(candidate, champion, active_units=units, config=PromoteConfig(**gate))  # type: ignore[arg-type]


def differing(mean: float, error: float) -> np.ndarray:
    """ELBOs whose paired difference from the champion's has exactly this mean and this error."""
    half = np.full(len(CHAMPION) // 2, error * np.sqrt(len(CHAMPION) - 1))
    return np.asarray(CHAMPION + mean + np.concatenate([half, -half]))


def test_without_a_champion_only_limits_are_held() -> None:
    judgement = decide(CHAMPION, None)
    assert judgement.refusals == ()
    assert judgement.elbo == CHAMPION.mean()
    assert "without a champion to compare with" in str(judgement)


Z95 = 1.6448536269514722
"""Of the one-sided 95 %, from a table."""


@pytest.mark.parametrize(
    ("mean", "error", "margin", "passes"),
    [
        pytest.param(0.0, 0.0, 0.0, True, id="the same model"),
        pytest.param(-0.01, 0.0, 0.0, False, id="worse beyond doubt"),
        pytest.param(0.5, 0.1, 0.0, True, id="better beyond doubt"),
        pytest.param(0.1, 0.1, 0.0, False, id="better, but it may be chance"),
        pytest.param(0.1, 0.1, 0.1, True, id="better within the margin"),
        pytest.param(-0.3, 0.1, 0.5, True, id="worse within the margin"),
        pytest.param(-0.4, 0.1, 0.5, False, id="worse, and it may be by more than the margin"),
        pytest.param(0.0, 1.0, 0.5, False, id="as good, but too few rows to tell"),
        pytest.param(Z95 * 0.1 - 0.5 + 1e-6, 0.1, 0.5, True, id="just within"),
        pytest.param(Z95 * 0.1 - 0.5 - 1e-6, 0.1, 0.5, False, id="just beyond"),
    ],
)
def test_rule(mean: float, error: float, margin: float, passes: bool) -> None:
    judgement = decide(differing(mean, error), margin=margin)
    assert judgement.difference == pytest.approx(mean, abs=1e-9)
    assert judgement.difference_se == pytest.approx(error, abs=1e-9)
    assert judgement.lower_bound == pytest.approx(mean - Z95 * error, abs=1e-9)
    assert (judgement.refusals == ()) == passes
    if not passes:
        (refusal,) = judgement.refusals
        assert refusal.startswith("not shown to be as good: ELBO ")
        assert refusal.endswith(f"with confidence 0.95, allowed is -{margin:g}")


def test_the_confidence_is_what_it_says() -> None:
    """Of candidates that are worse by exactly the margin, 1 - confidence pass."""
    generator = np.random.default_rng(1)
    trials = 4000
    for confidence in (0.5, 0.8, 0.95):
        passed = 0
        for _ in range(trials):
            differences = generator.normal(-0.5, 3.0, 200)
            passed += not decide(
                CHAMPION[:200] + differences, CHAMPION[:200], margin=0.5, confidence=confidence
            ).refusals
        error = np.sqrt(confidence * (1 - confidence) / trials)
        assert passed / trials == pytest.approx(1 - confidence, abs=4 * error)


def test_a_higher_confidence_asks_for_more() -> None:
    bounds = [decide(differing(0, 1), confidence=c).lower_bound for c in (0.5, 0.95, 0.9999)]
    assert bounds == [pytest.approx(-NormalDist().inv_cdf(c)) for c in (0.5, 0.95, 0.9999)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_scores_that_are_not_finite_are_a_fault_and_never_pass(value: float) -> None:
    bad = CHAMPION.copy()
    bad[1] = value
    assert [*score_faults(bad)] == ["the candidate's ELBO is not finite on 1 of 400 held-out rows"]
    assert decide(bad, margin=1e9).refusals != ()
    assert decide(CHAMPION, bad, margin=1e9).refusals == (
        f"the champion's ELBO is {value}: run vae rollback, or use --force",
    )
    assert [*score_faults(CHAMPION)] == []
    assert [*score_faults(CHAMPION[:0])] == ["there are no held-out rows to score"]


@pytest.mark.parametrize(("rows", "passes"), [(1, False), (29, False), (30, True)])
def test_too_few_rows_do_not_compare_models(rows: int, passes: bool) -> None:
    judgement = decide(CHAMPION[:rows], CHAMPION[:rows])
    assert (judgement.refusals == ()) == passes
    if not passes:
        assert judgement.refusals == (
            f"{rows} held-out rows are too few to compare models: 30 are needed",
        )
    assert decide(CHAMPION[:rows], None).refusals == ()


@pytest.mark.parametrize("champion", [None, CHAMPION], ids=["first", "later"])
def test_limits(champion: np.ndarray | None) -> None:
    elbo = float(CHAMPION.mean())
    assert decide(CHAMPION, champion, min_elbo=elbo, min_active_units=3).refusals == ()
    limits = {"min_elbo": elbo + 0.01, "min_active_units": 4}
    assert decide(CHAMPION, champion, **limits).refusals == (
        f"ELBO {elbo:.3f} is below --min-elbo {elbo + 0.01:g}",
        "3 latents are active, --min-active-units is 4",
    )
    assert decide(CHAMPION * np.nan, None, min_elbo=-1e9).refusals
    assert decide(CHAMPION, None, np.nan).refusals


@pytest.mark.parametrize("champion", [None, CHAMPION], ids=["first", "later"])
def test_a_collapsed_model_is_refused_unless_that_is_wanted(champion: np.ndarray | None) -> None:
    (refusal,) = decide(CHAMPION, champion, 0).refusals
    assert refusal == (
        "0 latents are active, --min-active-units is 1: "
        "the model ignores its latents, see the model card"
    )
    assert decide(CHAMPION, champion, 1).refusals == ()
    assert decide(CHAMPION, champion, 0, min_active_units=0).refusals == ()


def test_standard_error_is_paired_over_rows() -> None:
    differences = np.tile([1.0, 1.0, 1.0, 5.0], 100)
    judgement = decide(CHAMPION + differences, margin=0)
    assert judgement.difference == pytest.approx(2.0)
    assert judgement.difference_se == pytest.approx(np.sqrt(3 * 400 / 399) / 20)


@pytest.mark.parametrize(
    ("metrics", "fault"),
    [
        ({"elbo": -1.0, "nll": 1.0, "active_units": 3}, None),
        ({"elbo": -1.0, "active_units": 3}, "metrics.json has no nll: run vae export again"),
        ({"elbo": None, "nll": 1.0, "active_units": 3}, "metrics.json has no elbo"),
        ({"elbo": float("nan"), "nll": 1.0, "active_units": 3}, "metrics.json says elbo is nan"),
        ({"elbo": -1.0, "nll": float("inf"), "active_units": 3}, "metrics.json says nll is inf"),
    ],
    ids=["whole", "missing", "null", "nan", "inf"],
)
def test_sealed_metrics(metrics: dict[str, float], fault: str | None) -> None:
    found = [*metric_faults(metrics)]
    assert len(found) == (fault is not None)
    assert all(line.startswith(str(fault)) for line in found)
