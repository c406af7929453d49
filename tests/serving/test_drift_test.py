"""The sequential test of drift: its value, its level, and what it finds."""

import math
from typing import Any

import numpy as np
import pytest

from serving import drift_test
from serving.conformal import ConformalStream
from serving.drift_test import BLOCK, BOUNDS, CONCENTRATIONS, LIVES, WIDTHS, DriftTest

Array = np.ndarray[Any, Any]


def draw(generator: np.random.Generator, rows: int, low: float = 0.0) -> Array:
    """Draw scores, of which the share `low` is 15 nats too low."""
    return generator.normal(-100, 5, rows) - 15 * (generator.random(rows) < low)


def run(held: Array, scores: Array, level: float = 0.01, parts: int = 1) -> DriftTest:
    test = DriftTest({"elbo": held}, level)
    for part, times in zip(
        np.array_split(scores, parts), np.array_split(np.arange(len(scores)), parts), strict=True
    ):
        test.add({"elbo": part}, times)
    return test


def share_of(block: int) -> float:
    if block == 0:
        return 0.5
    return 0.5 * (1 / math.log(block + math.e - 1) - 1 / math.log(block + math.e))


def is_left(block: int, now: int) -> bool:
    return block == 0 or now - block < LIVES * (block & -block)


def capital_of(bins: Array, concentration: float) -> float:
    """Return the log of the Dirichlet-multinomial chance of the bins over the uniform one."""
    total = math.lgamma(concentration) - math.lgamma(concentration + len(bins))
    for count, width in zip(np.bincount(bins, minlength=len(WIDTHS)), WIDTHS, strict=True):
        prior = concentration * float(width)
        total += math.lgamma(prior + count) - math.lgamma(prior) - count * math.log(width)
    return total


@pytest.mark.parametrize("rows", [1, BLOCK - 1, BLOCK, 5 * BLOCK + 3, 40 * BLOCK])
def test_the_value_is_the_closed_form_of_every_gambler_who_is_left(rows: int) -> None:
    generator = np.random.default_rng(rows)
    held, scores = draw(generator, 300), draw(generator, rows, low=0.05)
    ranked = ConformalStream({"elbo": held})
    p = np.concatenate([ranked.rank(part[None])[0] for part in np.array_split(scores, 3)])
    bins = np.searchsorted(BOUNDS, p, "right")
    now = (rows - 1) // BLOCK
    expected = math.log(
        sum(
            share_of(block) * math.exp(capital_of(bins[block * BLOCK :], c)) / len(CONCENTRATIONS)
            for block in range(now + 1)
            if is_left(block, now)
            for c in CONCENTRATIONS
        )
    )
    assert run(held, scores).log_e_values()["elbo"] == pytest.approx(expected, abs=1e-9)


def test_the_shares_of_all_gamblers_sum_to_one() -> None:
    blocks = np.arange(10**6)
    rest = 0.5 / math.log(10**6 - 1 + math.e)
    assert drift_test._shares(blocks).sum() + rest == pytest.approx(1, abs=1e-9)
    assert drift_test._shares(blocks[:100]) == pytest.approx([share_of(b) for b in range(100)])
    assert drift_test._shares(np.array([-1])).tolist() == [0]


def test_the_bins_of_a_uniform_p_value_are_as_likely_as_the_widths_say() -> None:
    p = (np.arange(10**6) + 0.5) / 10**6
    counts = np.bincount(np.searchsorted(BOUNDS, p, "right"))
    assert counts / 10**6 == pytest.approx(WIDTHS, abs=1e-6)


def test_gamblers_are_dropped_and_their_number_grows_with_each_doubling_alone() -> None:
    test = run(np.arange(20.0), np.zeros(3000 * BLOCK))
    kept = set(test._starts[test._starts >= 0].tolist())
    assert kept == {block for block in range(3000) if is_left(block, 2999)}
    assert len(kept) <= LIVES / 2 * math.log2(3000) + 2
    assert len(test._starts) <= 2 * len(kept) + 8
    for needed in (2**k for k in range(2, 11)):  # blocks that a change needs to be seen
        ends = range(needed, 3000 - needed)
        spare = 2 * needed // LIVES
        lives = [LIVES * (b & -b) for b in range(3000)]
        assert all(
            any(lives[b] >= needed for b in range(max(1, end), max(1, end) + spare + 1))
            for end in ends
        )


def false_alarms(streams: int, level: float, rows: int = 2000, held: int = 40) -> float:
    """Return the share of streams without a change that have an alarm."""
    generator = np.random.default_rng(7)
    tests = [run(draw(generator, held), draw(generator, rows), level) for _ in range(streams)]
    return sum(bool(test.alarms) for test in tests) / streams


def test_there_are_no_more_false_alarms_than_the_level() -> None:
    found = false_alarms(150, 0.2)
    assert found <= 0.2 + 3 * math.sqrt(0.2 * 0.8 / 150)


def test_ranks_among_the_held_out_rows_alone_would_break_the_level(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = ConformalStream.rank

    def rank_alone(self: ConformalStream, scores: Array) -> Array:
        before = self.counts.copy()
        found = real(self, scores)
        self.counts, self._seen = before, before.sum(1)
        return found

    monkeypatch.setattr(ConformalStream, "rank", rank_alone)
    assert false_alarms(30, 0.2) > 0.8


def test_the_mean_of_the_e_value_is_at_most_one() -> None:
    generator = np.random.default_rng(3)
    values = []
    for _ in range(400):
        test = DriftTest({"elbo": draw(generator, 30)}, 0.01)
        test.break_ties_by(generator.spawn(1)[0])
        test.add({"elbo": draw(generator, 3 * BLOCK)}, 0)
        values.append(math.exp(test.log_e_values()["elbo"]))
    assert np.mean(values) <= 1 + 3 * np.std(values) / math.sqrt(400)
    assert np.max(values) > 1, "some streams look odd: the mean is not that of a constant"


@pytest.mark.parametrize("calm", [0, 500, 20_000], ids="{} rows".format)
def test_a_change_is_found_as_soon_after_a_long_calm(calm: int) -> None:
    for seed in range(5):
        generator = np.random.default_rng(seed)
        held, before, after = (
            draw(generator, 2000),
            draw(generator, calm),
            draw(generator, 800, low=0.1),
        )
        alarm = run(held, np.concatenate([before, after])).alarms["elbo"]
        assert calm < alarm.rows <= calm + 800
        assert alarm.time == alarm.rows - 1
        assert abs(alarm.since_rows - calm) <= 300
        assert alarm.since_time == alarm.since_rows


def test_without_restarts_the_change_would_be_found_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift_test, "_shares", lambda blocks: (blocks == 0) * 1.0)
    generator = np.random.default_rng(0)
    held, before, after = draw(generator, 2000), draw(generator, 20_000), draw(generator, 800, 0.1)
    assert not run(held, np.concatenate([before, after])).alarms


def test_the_way_that_rows_are_cut_does_not_matter() -> None:
    generator = np.random.default_rng(8)
    held, scores = draw(generator, 200), draw(generator, 700, low=0.2)
    whole, rows = run(held, scores), run(held, scores, parts=700)
    assert whole.alarms == rows.alarms
    assert whole.alarms
    assert rows.largest()["elbo"] == pytest.approx(whole.largest()["elbo"], abs=1e-9)
    assert rows.log_e_values()["elbo"] == pytest.approx(whole.log_e_values()["elbo"], abs=1e-9)
    assert run(held, scores).largest() == whole.largest()


def test_a_restored_test_goes_on_as_if_nothing_had_been() -> None:
    generator = np.random.default_rng(9)
    held = {name: draw(generator, 900) for name in ("elbo", "age", "city")}
    scores = {name: draw(generator, 900, low=0.2) for name in held}
    whole, first, second = (DriftTest(held) for _ in range(3))
    whole.add(scores, np.arange(900.0))
    first.add({name: values[:650] for name, values in scores.items()}, np.arange(650.0))
    second.restore(first.state())
    second.add({name: values[650:] for name, values in scores.items()}, np.arange(650.0, 900))
    assert second.alarms == whole.alarms
    assert len(whole.alarms) == 3
    assert second.largest() == pytest.approx(whole.largest(), abs=1e-9)
    assert second.rows == 900


@pytest.mark.parametrize("drifting", ["elbo", "a", "b", "c", "d"])
def test_every_column_is_tested_and_the_one_that_drifts_is_named(drifting: str) -> None:
    generator = np.random.default_rng(10)
    names = ["elbo", "a", "b", "c", "d"]
    test = DriftTest({name: draw(generator, 500) for name in names})
    assert np.exp(test._log_shares) == pytest.approx([0.5, *[0.125] * 4])
    low = {name: 0.2 if name == drifting else 0.0 for name in names}
    test.add({name: draw(generator, 1000, low[name]) for name in names}, 5.0)
    assert list(test.alarms) == [drifting]
    assert all(
        (value >= math.log(100)) == (name == drifting) for name, value in test.largest().items()
    )


def test_an_alarm_stays_and_the_test_goes_on() -> None:
    generator = np.random.default_rng(11)
    held = {name: draw(generator, 500) for name in ("elbo", "a")}
    test = DriftTest(held)
    test.add({"elbo": draw(generator, 640, 0.3), "a": draw(generator, 640)}, 1.0)
    first = dict(test.alarms)
    assert list(first) == ["elbo"]
    test.add({"elbo": draw(generator, 9600), "a": draw(generator, 9600)}, 2.0)
    assert test.alarms == first
    test.add({"elbo": draw(generator, 960), "a": draw(generator, 960, 0.3)}, 3.0)
    assert list(test.alarms) == ["elbo", "a"]
    assert test.alarms["a"].time == 3.0


def test_the_largest_value_is_that_of_all_ends_of_blocks() -> None:
    generator = np.random.default_rng(12)
    test, values = DriftTest({"elbo": draw(generator, 500)}), [0.0]
    scores = np.concatenate([draw(generator, 5 * BLOCK, 0.2), draw(generator, 45 * BLOCK)])
    for part in np.array_split(scores, 50):
        test.add({"elbo": part}, 0.0)
        values.append(test.log_e_values()["elbo"])
        assert test.largest()["elbo"] == max(values)
    assert values[-1] < max(values)
