"""The test of drift in the observer: it goes on after a restart, and tells its alarm once."""

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.bundle import open_bundle
from serving.live import live_drift
from serving.live.live_drift import DriftOpener, LiveDrift
from serving.live_status import DriftStatus
from serving.p_values import read_held_out_scores
from tests.serving.conftest import SCHEMA_1, SEALED

Array = np.ndarray[Any, Any]


class Sender:
    """Stands in for what sends alarms, and keeps them."""

    told: list[tuple[DriftStatus, dict[str, Any]]]

    def __init__(self, url: str, secret: str = "") -> None:
        self.url, self.secret = url, secret
        self.told = []

    def watch(self, drift: DriftStatus, served: dict[str, Any]) -> None:
        self.told.append((drift, served))


@pytest.fixture
def opener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DriftOpener:
    monkeypatch.setattr(live_drift, "AlarmSender", Sender)
    version = {"name": "vae", "version": "7", "digest": open_bundle(SEALED).manifest.digest}
    (tmp_path / "version.json").write_text(json.dumps(version))
    return DriftOpener(
        state_file=tmp_path / "drift.npz",
        version_file=tmp_path / "version.json",
        alarm_url="http://127.0.0.1:9/",
        alarm_secret="hush",
    )


def begin(opener: DriftOpener) -> LiveDrift:
    drift = opener(open_bundle(SEALED))
    assert drift is not None
    return drift


def low(rows: int) -> dict[str, Array]:
    return {"elbo": np.full(rows, -99, np.float32)}


def test_an_alarm_is_told_once_with_what_is_served(
    opener: DriftOpener, caplog: pytest.LogCaptureFixture
) -> None:
    drift = begin(opener)
    for second in range(40):
        drift.add(low(8), float(second))
    sender = drift.sender
    assert isinstance(sender, Sender)
    assert sender.secret == "hush"
    [(status, served)] = sender.told
    assert status.alarm_time is not None
    assert status.drifted == ("elbo",)
    assert (served["name"], served["version"]) == ("vae", "7")
    assert caplog.text.count("live rows differ from the held-out rows: elbo, after") == 1


def test_a_calm_stream_tells_nothing(opener: DriftOpener) -> None:
    held_out = read_held_out_scores(open_bundle(SEALED))
    assert held_out is not None
    drift = begin(opener)
    elbo = np.random.default_rng(0).permutation(held_out.scores["elbo"])
    drift.add({"elbo": elbo}, 1.0)
    assert isinstance(drift.sender, Sender)
    assert drift.sender.told == []


def test_an_observer_that_is_started_again_goes_on(
    opener: DriftOpener, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begin(opener)
    first.add(low(10), 100.0)  # saved
    first.add(low(10), 130.0)  # too soon after it
    second = begin(pickle.loads(pickle.dumps(opener)))
    assert second.status(131.0).rows == 10
    second.add(low(10), 161.0)
    assert begin(opener).status(161.0).rows == 20


def test_an_alarm_is_kept_at_once_and_told_again_by_the_next_process(opener: DriftOpener) -> None:
    first = begin(opener)
    first.add(low(1), 100.0)
    first.add(low(200), 101.0)
    assert first.watch.has_alarm
    second = begin(opener)
    assert second.watch.has_alarm
    second.add(low(1), 102.0)
    assert isinstance(second.sender, Sender)
    assert len(second.sender.told) == 1  # with the same id, by which receivers tell repeats


def test_a_version_that_cannot_be_watched_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert DriftOpener()(open_bundle(SCHEMA_1)) is None
    assert "not watched for drift: this version carries no scores of held-out" in caplog.text


def test_a_full_disk_stops_nothing(opener: DriftOpener, caplog: pytest.LogCaptureFixture) -> None:
    assert opener.state_file is not None
    opener.state_file.mkdir()
    drift = begin(opener)
    with caplog.at_level(logging.WARNING):
        drift.add(low(3), 100.0)
    assert drift.status(100.0).rows == 3
    assert "the state of the test of drift is not kept" in caplog.text


def test_the_secret_is_not_shown(opener: DriftOpener) -> None:
    assert "hush" not in repr(opener)
