"""Days beside the held-out rows, and when they began to differ."""

from typing import Any

import numpy as np
import pytest

from serving.batch.monitor import SECONDS, By, Monitor, Monitored, show_time
from serving.batch.monitor_page import SHOWN, describe, list_lines
from serving.batch.monitored_rows import TimedScores
from serving.drift import DriftCounter, summarize
from serving.drift_test import COLUMNS, DriftTest

Array = np.ndarray[Any, Any]
START = 20_000 * 86_400.0
HELD = np.random.default_rng(0).normal(-100, 5, 2000)
DAY_ROWS = 400


def follow(
    elbo: Array, parts: int = 1, by: By = "day", step_s: float = 86_400 / DAY_ROWS
) -> Monitored:
    monitor = Monitor(summarize(HELD), {"elbo": HELD}, by=by)
    times = START + step_s * np.arange(len(elbo))
    for part in np.array_split(np.arange(len(elbo)), parts):
        monitor.add(TimedScores(times[part], {"elbo": elbo[part]}))
    return monitor.result()


@pytest.fixture
def elbo() -> Array:
    """Five calm days, and two on which all rows are 4 nats lower."""
    elbo = np.random.default_rng(1).normal(-100, 5, 7 * DAY_ROWS)
    elbo[5 * DAY_ROWS :] -= 4
    return elbo


def test_each_day_has_its_own_figures_and_the_test_runs_through_all(elbo: Array) -> None:
    found = follow(elbo, parts=11)
    direct = DriftTest({"elbo": HELD})
    assert [period.name for period in found.periods] == [
        f"2024-10-{day:02}" for day in range(4, 11)
    ]
    for index, period in enumerate(found.periods):
        values = elbo[index * DAY_ROWS : (index + 1) * DAY_ROWS]
        counter = DriftCounter(summarize(HELD))
        counter.add(values)
        drift = counter.drift(DAY_ROWS, float(values.mean()), float(values.std()))
        assert period.drift.d == drift.d
        assert period.drift.mean == pytest.approx(values.mean())
        assert period.drift.mean_shift == pytest.approx(drift.mean_shift)
        assert period.drift.mean_shift_se == pytest.approx(drift.mean_shift_se)
        direct.add({"elbo": values}, 0.0)
        assert period.log_e_value == pytest.approx(direct.log_e_values()["elbo"], abs=1e-9)
        assert period.shares.sum() == pytest.approx(1)
    assert found.largest == pytest.approx(direct.largest(), abs=1e-9)
    assert found.held_out.sum() == pytest.approx(1)
    assert found.rows == len(elbo)


def test_the_day_of_the_first_alarm_is_marked_and_told(elbo: Array) -> None:
    found = follow(elbo)
    assert [list(period.alarms) for period in found.periods] == [[]] * 5 + [["elbo"], []]
    assert found.first is not None
    assert found.first.since_rows == pytest.approx(5 * DAY_ROWS, abs=100)
    words = describe(found, "vae 7")
    assert "2,800 rows on 7 days are not all like the held-out rows of vae 7" in words
    assert show_time(found.first.time) in words
    assert words.endswith(": whole rows.")
    assert [kind for kind, _ in list_lines(found.periods)] == [""] * 5 + ["bad", ""]


def test_calm_days_give_no_alarm(elbo: Array) -> None:
    found = follow(elbo[: 5 * DAY_ROWS])
    assert found.first is None
    assert describe(found, "vae 7").startswith("No drift was found in 2,000 rows on 5 days")


def test_hours_are_told_apart_too(elbo: Array) -> None:
    found = follow(elbo[:10], by="hour", step_s=SECONDS["hour"] / 2)
    assert [period.drift.rows for period in found.periods] == [2] * 5
    assert found.periods[0].name == "2024-10-04 00:00"


def test_rows_of_an_earlier_day_are_counted_there_and_said() -> None:
    monitor = Monitor(summarize(HELD), {"elbo": HELD})
    for day in (0, 1, 0):
        monitor.add(TimedScores(np.full(3, START + 86_400 * day), {"elbo": HELD[:3]}))
    found = monitor.result()
    assert found.late == 3
    assert [period.drift.rows for period in found.periods] == [6, 3]


def test_columns_that_drift_are_named() -> None:
    generator = np.random.default_rng(2)
    held = {"elbo": HELD, COLUMNS: generator.normal(-3, 1, (700, 2))}
    monitor = Monitor(summarize(HELD), held, ["age", "city"])
    cells = generator.normal(-3, 1, (800, 2))
    cells[400:, 1] -= 3
    elbo = generator.normal(-100, 5, 800)
    monitor.add(TimedScores(START + np.arange(800.0), {"elbo": elbo, COLUMNS: cells}))
    found = monitor.result()
    assert list(found.alarms) == ["city"]
    assert set(found.largest) == {"elbo", "age", "city"}


def test_no_rows_are_no_days() -> None:
    monitor = Monitor(summarize(HELD), {"elbo": HELD})
    monitor.add(TimedScores(np.empty(0), {"elbo": np.empty(0)}))
    assert monitor.result().rows == 0
    assert SHOWN > 7
