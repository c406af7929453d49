import numpy as np
import pytest

from pipeline.gate import judge

CHAMPION = np.array([-101.0, -99.0, -103.0, -97.0])


def test_without_a_champion_any_finite_elbo_passes() -> None:
    judgement = judge(CHAMPION, None, margin=0)
    assert judgement.refusal is None
    assert judgement.elbo == -100.0
    assert "no champion to compare with" in str(judgement)


@pytest.mark.parametrize(
    ("shift", "margin", "passes"),
    [
        pytest.param(0.0, 0.0, True, id="equal"),
        pytest.param(0.5, 0.0, True, id="better"),
        pytest.param(-0.01, 0.0, False, id="worse"),
        pytest.param(-0.5, 0.5, True, id="worse by the margin"),
        pytest.param(-0.51, 0.5, False, id="worse by more"),
    ],
)
def test_rule(shift: float, margin: float, passes: bool) -> None:
    judgement = judge(CHAMPION + shift, CHAMPION, margin=margin)
    assert (judgement.refusal is None) == passes
    assert judgement.difference == pytest.approx(shift)
    if not passes:
        assert "is too low" in str(judgement)
        assert f"allowed is -{margin:g}" in str(judgement)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_an_elbo_that_is_not_finite_is_refused(value: float) -> None:
    bad = CHAMPION.copy()
    bad[1] = value
    assert "the candidate's ELBO is" in str(judge(bad, None, margin=1e9))
    assert "the candidate's ELBO is" in str(judge(bad, CHAMPION, margin=1e9))


def test_a_champion_that_is_not_finite_does_not_let_a_candidate_pass() -> None:
    assert judge(CHAMPION, CHAMPION * np.nan, margin=1e9).refusal is not None


def test_standard_error_is_paired_over_rows() -> None:
    judgement = judge(CHAMPION + [1.0, 1.0, 1.0, 5.0], CHAMPION, margin=0)
    assert judgement.difference == 2.0
    assert judgement.difference_se == pytest.approx(np.std([1, 1, 1, 5]) / 2)
