"""What a server keeps of its live rows to tell drift."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.bundle import open_bundle
from serving.drift_test import COLUMNS
from serving.live.drift_watch import SPANS, DriftWatch, watch_drift
from serving.live_status import DriftStatus, LiveStatus
from tests.serving.conftest import MIXED, SCHEMA_1, SEALED

Array = np.ndarray[Any, Any]
NAMES = ["age", "elbo", "city"]


def draw(generator: np.random.Generator, rows: int) -> dict[str, Array]:
    scores = generator.normal(-100, 5, (rows, 4)).astype(np.float32)
    return {"elbo": scores[:, 0], COLUMNS: scores[:, 1:]}


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(2)


@pytest.fixture
def watch(generator: np.random.Generator) -> DriftWatch:
    return DriftWatch(draw(generator, 1000), NAMES, "ab")


def test_rows_like_the_held_out_ones_give_no_alarm_and_fill_the_bins_as_these_do(
    watch: DriftWatch, generator: np.random.Generator
) -> None:
    watch.add(draw(generator, 4000), 50.0)
    status = watch.status(60.0)
    assert status.rows == 4000
    assert status.alarm_time is None
    assert status.drifted == ()
    assert status.log_e_value < np.log(100)
    assert sum(status.held_out) == pytest.approx(1)
    assert len(status.held_out) == len(status.edges) + 1
    shares = np.array(status.windows[0].counts) / 4000
    assert shares == pytest.approx(status.held_out, abs=0.04)
    assert status.windows[0].mean == pytest.approx(-100, abs=0.5)


def test_columns_that_drift_are_named_although_one_has_the_name_of_the_score(
    watch: DriftWatch, generator: np.random.Generator
) -> None:
    watch.add(draw(generator, 640), 7.0)
    rows = draw(generator, 1280)
    rows[COLUMNS][:, 1] -= 8
    watch.add(rows, 9.0)
    status = watch.status(10.0)
    assert status.drifted == ("column elbo",)
    assert (status.alarm_time, status.since_time) == (9.0, 9.0)
    assert status.alarm_rows is not None
    assert 640 < status.alarm_rows < 1280
    assert list(status.columns) == ["age", "column elbo", "city"]
    assert status.columns["column elbo"] == status.log_e_value > np.log(100)


def test_windows_hold_the_rows_of_their_span_and_forget_older_ones(
    watch: DriftWatch, generator: np.random.Generator
) -> None:
    for minute in range(120):
        watch.add(draw(generator, 2), 60.0 * minute)
    found = {window.seconds: window.rows for window in watch.status(60.0 * 119).windows}
    assert found == {300: 10, 3600: 120, 86_400: 240, 604_800: 240}
    late = watch.status(60.0 * 119 + 86_400).windows
    assert [window.rows for window in late] == [0, 0, 0, 240]
    assert late[0].mean is None
    assert tuple(found) == SPANS


def test_scores_that_are_no_numbers_count_as_the_lowest(
    watch: DriftWatch, generator: np.random.Generator
) -> None:
    rows = draw(generator, 3)
    rows["elbo"][:2] = np.nan, -np.inf
    watch.add(rows, 1.0)
    window = watch.status(1.0).windows[0]
    assert window.counts[0] == 2
    assert window.rows == 3
    json.dumps(asdict(watch.status(1.0)), allow_nan=False)


def test_a_saved_watch_goes_on(
    watch: DriftWatch, generator: np.random.Generator, tmp_path: Path
) -> None:
    held = draw(np.random.default_rng(2), 1000)
    rows, more = draw(generator, 700), draw(generator, 300)
    rows["elbo"] -= 9
    watch.add(rows, 5.0)
    watch.save(tmp_path / "drift.npz")
    later = DriftWatch(held, NAMES, "ab")
    assert later.load(tmp_path / "drift.npz")
    assert later.status(6.0) == watch.status(6.0)
    for each in (watch, later):
        each.add(more, 7.0)
    assert later.status(8.0) == watch.status(8.0)
    assert later.status(8.0).alarm_time == 5.0


@pytest.mark.parametrize("other", ["version", "level", "columns", "none", "cut short"])
def test_a_state_that_does_not_fit_is_not_taken_up(
    watch: DriftWatch, generator: np.random.Generator, tmp_path: Path, other: str
) -> None:
    file = tmp_path / "drift.npz"
    watch.add(draw(generator, 100), 5.0)
    if other != "none":
        watch.save(file)
    if other == "cut short":
        file.write_bytes(file.read_bytes()[:3000])
    later = DriftWatch(
        draw(generator, 1000),
        [*NAMES[:2], "town"] if other == "columns" else NAMES,
        "cd" if other == "version" else "ab",
        0.05 if other == "level" else 0.01,
    )
    assert not later.load(file)
    assert later.status(6.0).rows == 0


def test_versions_say_why_they_are_not_watched(tmp_path: Path) -> None:
    assert "held-out rows" in str(watch_drift(open_bundle(SCHEMA_1)))
    assert isinstance(watch_drift(open_bundle(SEALED)), DriftWatch)


def test_a_table_whose_version_holds_no_cells_is_watched_by_whole_rows() -> None:
    watch = watch_drift(open_bundle(MIXED))
    assert isinstance(watch, DriftWatch)
    watch.add(draw(np.random.default_rng(0), 10), 0.0)
    assert watch.status(0.0).columns == {}


def test_the_status_passes_through_the_file_of_the_observer(
    watch: DriftWatch, generator: np.random.Generator, tmp_path: Path
) -> None:
    rows = draw(generator, 700)
    rows["elbo"] -= 9
    watch.add(rows, 5.0)
    drift = watch.status(6.0)
    status = LiveStatus(time=6.0, digest="ab", rows=700, dropped_rows=0, drift=drift)
    status.write(tmp_path / "live.json")
    found = LiveStatus.read(tmp_path / "live.json")
    assert found == status
    assert isinstance(found.drift, DriftStatus)
    assert found.drift.drifted == ("elbo",)
