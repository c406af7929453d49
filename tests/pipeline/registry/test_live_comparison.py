"""The gate on live rows: its bound, its reasons, and what decides a promotion."""

import math
from dataclasses import replace

import numpy as np
import pytest

from pipeline.config import PromoteConfig
from pipeline.registry.audit_log import Decision, list_decisions
from pipeline.registry.listing import list_versions, render_table
from pipeline.registry.live_comparison import compare_live, sequence_width
from serving.bundle import Bundle
from serving.live_sums import LiveSums
from serving.mlflow_store import connect
from tests.pipeline.registry.versions import STRICT, champion, promote_with, register
from tests.trained_models import Trained

GATE = PromoteConfig(require_live=1000, margin=1.0)
EMPTY = LiveSums(champion="a" * 64, challenger="b" * 64)


def sums_of(differences: np.ndarray, sums: LiveSums = EMPTY) -> LiveSums:
    return sums.add_rows(np.zeros(len(differences)), differences, 1.0)


def test_the_bound_is_the_published_one() -> None:
    """Theorem 2.2 for both sides: sqrt(2 (t rho^2 + 1) log(sqrt(t rho^2 + 1) / alpha) / (t rho)^2).

    The bound for one side at alpha is as wide as that for both at 2 alpha, but for the 1 in the
    logarithm, which hardly counts when the level is small.
    """
    alpha, tightest = 0.0005, 1000
    rho2 = (-2 * math.log(2 * alpha) + math.log(1 - 2 * math.log(2 * alpha))) / tightest
    for rows in (100, 1000, 100_000):
        mixed = rows * rho2 + 1
        both = math.sqrt(2 * mixed * math.log(math.sqrt(mixed) / (2 * alpha)) / (rows**2 * rho2))
        assert sequence_width(rows, tightest, alpha) == pytest.approx(both, rel=1e-3)
        assert sequence_width(rows, tightest, alpha) > both


def test_the_bound_is_tightest_near_the_rows_that_are_required() -> None:
    """Relative to that of a fixed number of rows, and never much wider within a factor of ten."""

    def ratio(rows: int, alpha: float = 0.05) -> float:
        return sequence_width(rows, 1000, alpha) * math.sqrt(rows)

    best = min(ratio(rows) for rows in range(100, 10_000, 50))
    assert ratio(1000) < 1.05 * best
    assert ratio(10_000) < 1.3 * best
    for alpha in (0.0001, 0.05, 0.3, 0.5):
        assert math.isfinite(ratio(1000, alpha))


@pytest.mark.parametrize("kind", ["normal", "skewed"])
def test_asking_until_it_says_yes_is_wrong_at_most_as_often_as_stated(kind: str) -> None:
    """2,000 candidates that are worse by just the margin; the gate is asked after every 100 rows.

    A bound for a fixed number of rows would let through several times as many.
    """
    generator = np.random.default_rng(0)
    first, last, step, streams = 1000, 20_000, 100, 2000
    fooled = fixed = 0
    width = {rows: sequence_width(rows, first, 0.05) for rows in range(first, last + 1, step)}
    for _ in range(streams):
        shape = (last // step, step)
        drawn = (
            generator.standard_normal(shape)
            if kind == "normal"
            else generator.exponential(size=shape) - 1
        )
        rows = step * np.arange(1, last // step + 1)
        mean = drawn.sum(1).cumsum() / rows
        spread = np.sqrt(np.square(drawn).sum(1).cumsum() / rows - mean**2)
        asked = rows >= first
        bound = mean[asked] - spread[asked] * np.array([*width.values()])
        fooled += bool((bound > 0).any())
        fixed += bool((mean[asked] - 1.645 * spread[asked] / np.sqrt(rows[asked]) > 0).any())
    assert fooled / streams <= 0.05
    assert fixed / streams > 0.1


def test_too_few_rows_say_what_to_do() -> None:
    compared = compare_live(sums_of(np.ones(400)), "models:/vae/7", GATE)
    assert compared.refusals == (
        "400 of 1,000 live rows so far: run vae serve --shadow models:/vae/7, and ask again",
    )
    assert "of 1,000 live rows" in compare_live(EMPTY, "models:/vae/7", GATE).refusals[0]
    few = compare_live(sums_of(np.ones(5)), "models:/vae/7", replace(GATE, require_live=2))
    assert few.refusals[0].startswith("5 of 30 live rows")


@pytest.mark.parametrize(
    ("mean", "margin", "passes"),
    [
        pytest.param(0.0, 1.0, True, id="as good"),
        pytest.param(-0.5, 1.0, True, id="worse within the margin"),
        pytest.param(-0.95, 1.0, False, id="worse, and it may be by more than the margin"),
        pytest.param(0.01, 0.0, False, id="better, but it may be chance"),
        pytest.param(0.5, 0.0, True, id="better beyond doubt"),
    ],
)
def test_rule(mean: float, margin: float, passes: bool) -> None:
    half = np.ones(1000)
    compared = compare_live(
        sums_of(mean + np.concatenate([half, -half])), "models:/vae/7", replace(GATE, margin=margin)
    )
    assert compared.difference == pytest.approx(mean)
    assert compared.difference_se == pytest.approx(1 / math.sqrt(1999))
    assert (compared.refusals == ()) == passes
    if not passes:
        assert compared.refusals[0].startswith("not shown to be as good on live rows: ")


def test_rows_on_which_the_candidate_fails_refuse_it() -> None:
    bad = np.ones(2000)
    bad[7] = np.nan
    assert "not finite on 1 of 2,000" in compare_live(sums_of(bad), "x", GATE).refusals[0]
    unread = replace(sums_of(np.ones(2000)), unread=3)
    assert "cannot read 3 live rows" in compare_live(unread, "x", GATE).refusals[0]


def report(version: str, sums: LiveSums, server: str = "server") -> None:
    """Write the sums of a server into the tags of a version, as it does itself."""
    connect().set_model_version_tag("vae", version, sums.tag(server), sums.to_json())


def ask(trained: Trained, version: str, **gate: float) -> Decision:
    return promote_with(trained, version, replace(STRICT, require_live=1000, **gate))  # type: ignore[arg-type]


@pytest.mark.usefixtures("store")
def test_live_rows_decide_in_place_of_held_out_rows(
    sealed: Bundle, worse: Bundle, trained: Trained
) -> None:
    first = ask(trained, register(sealed))
    assert first.decision == "promoted"  # there is nothing to compare with
    version = register(worse)
    missing = ask(trained, version)
    assert missing.reasons == (
        "0 of 1,000 live rows so far: run vae serve --shadow models:/vae/2, and ask again",
    )
    pair = LiveSums(champion=sealed.manifest.digest, challenger=worse.manifest.digest)
    report(version, sums_of(np.full(600, 0.5), pair), "one")
    report(version, sums_of(np.full(300, 0.5), pair), "two")
    report(version, sums_of(np.full(5000, 0.5), replace(pair, champion="c" * 64)), "three")
    assert ask(trained, version).reasons[0].startswith("900 of 1,000 live rows")
    table = render_table(list_versions("vae"))
    assert "5,900" in table.splitlines()[1]
    report(version, sums_of(np.full(500, -0.55), pair), "two")
    refused = ask(trained, version)
    assert refused.reasons[0].startswith("not shown to be as good on live rows: +0.023 ± ")
    assert champion() == "1"
    report(version, sums_of(np.full(500, 0.6), pair), "two")
    decision = ask(trained, version)
    assert decision.decision == "promoted"
    assert decision.judgement is not None
    assert decision.judgement.live is not None
    assert decision.judgement.live.rows == 1100
    assert decision.judgement.difference is not None
    assert decision.judgement.difference < 0  # on held-out rows, which is said all the same
    assert "nats from the champion on 1,100 live rows" in list_decisions("vae")[0]["reasons"]


@pytest.mark.usefixtures("store")
def test_limits_hold_beside_live_rows_and_force_overrides_both(
    sealed: Bundle, worse: Bundle, trained: Trained
) -> None:
    ask(trained, register(sealed))
    version = register(worse)
    pair = LiveSums(champion=sealed.manifest.digest, challenger=worse.manifest.digest)
    report(version, sums_of(np.full(2000, 0.5), pair))
    assert ask(trained, version, min_elbo=0.0).reasons[0].endswith("is below --min-elbo 0")
    gate = replace(STRICT, require_live=5000)
    forced = promote_with(trained, version, gate, force="an emergency")
    assert forced.decision == "promoted"
    assert forced.reasons[1].startswith("2,000 of 5,000 live rows")
