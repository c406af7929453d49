"""What the server knows of its live rows is in /status, /metrics and readiness."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.bundle import open_bundle
from serving.live_status import LiveStatus
from serving.server.live_file import LiveFile, e_value_text, warnings_of
from serving.server.metrics import render
from serving.server.shared_counters import SharedCounters
from tests.live_facts import live_file_of, make_live_status
from tests.serving.conftest import MIXED, SEALED
from tests.serving.running import Running, serve

NAMES = {"model": "vae", "version": "3", "digest": "ab"}


def sample_values(live: LiveStatus | None, counters: SharedCounters) -> dict[str, float]:
    """Return what is new in /metrics with this status, by name and column."""
    text = render(counters, NAMES, live).decode()
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith(("vae_live_", "vae_drift_", "vae_shadow_", "vae_capture_"))
    }


def test_metrics_have_what_the_observer_knows(counters: SharedCounters) -> None:
    live = make_live_status("ab", alarm=True, columns=["size"], shadow_fault="gone")
    assert live.drift is not None
    assert sample_values(live, counters) == {
        "vae_live_rows": 131_310,
        "vae_live_dropped_rows": 238,
        "vae_drift_rows": 131_072,
        "vae_drift_log_e_value": 41.5,
        "vae_drift_alarm": 1,
        "vae_drift_column_log_e_value size": live.drift.columns["size"],
        "vae_shadow_rows": 51_200,
        "vae_shadow_difference_nats": 0.418,
        "vae_shadow_difference_nats_se": 0.037,
        "vae_shadow_fault": 1,
        "vae_capture_parts": 41,
        "vae_capture_rows": 131_072,
        "vae_capture_bytes": 58_400_000,
        "vae_capture_fault": 0,
    }


def test_parts_that_are_off_have_no_metrics(counters: SharedCounters) -> None:
    assert sample_values(None, counters) == {}
    live = replace(make_live_status("ab"), drift=None, shadow=None, capture=None)
    assert sample_values(live, counters).keys() == {"vae_live_rows", "vae_live_dropped_rows"}


def test_warnings_are_whole_sentences_of_what_needs_a_person() -> None:
    assert warnings_of(None) == []
    assert warnings_of(make_live_status("ab")) == []
    live = make_live_status("ab", alarm=True, shadow_fault="no graph", capture_fault="disk full")
    assert live.drift is not None
    drift = replace(live.drift, alarm_time=1_764_324_000.0)
    assert warnings_of(replace(live, drift=drift)) == [
        "drift: live rows are no longer like the held-out rows, noticed at 2025-11-28T10:00:00Z, "
        "after 4,210 rows; the e-value is 1.1e+18, the alarm is at 100",
        "shadow: vae does not score: no graph",
        "capture: no rows are kept: disk full",
    ]
    drifted = replace(live, drift=replace(drift, drifted=("elbo", "age")))
    assert "held-out rows (elbo, age), noticed at" in warnings_of(drifted)[0]


def test_a_challenger_that_was_promoted_needs_no_person(counters: SharedCounters) -> None:
    """It is the version served then, until there is another candidate."""
    live = make_live_status("ab", shadow_fault="it is the version served")
    assert live.shadow is not None
    assert len(warnings_of(live)) == 1
    promoted = replace(live, shadow=replace(live.shadow, digest="ab"))
    assert warnings_of(promoted) == []
    assert sample_values(promoted, counters)["vae_shadow_fault"] == 0


@pytest.mark.parametrize(
    ("log", "text"),
    [(0.0, "1"), (-0.5, "0.607"), (4.6, "99.5"), (2302.6, "1.0e+1000"), (float("inf"), "unknown")],
)
def test_an_e_value_beyond_every_float_is_written(log: float, text: str) -> None:
    assert e_value_text(log) == text


def test_the_file_is_read_when_it_has_changed(tmp_path: Path) -> None:
    file = LiveFile(tmp_path / "live.json")
    assert file.read("ab") is None
    first = make_live_status("ab")
    first.write(tmp_path / "live.json")
    assert file.read("ab") == first
    assert file.read("ab") is file.read("ab")
    assert file.read("cd") is None  # of another version
    second = make_live_status("ab", alarm=True)
    second.write(tmp_path / "live.json")
    assert file.read("ab") == second


def test_a_broken_file_is_logged_once_and_counts_as_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "live.json").write_text('{"time": 3}')
    file = LiveFile(tmp_path / "live.json")
    assert file.read("ab") is None
    assert file.read("ab") is None
    assert len(caplog.records) == 1


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, slow_tier: None) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("watched")
    with serve(folder, SEALED, "--drain", "1", TMPDIR=str(folder)) as running:
        yield running


def test_a_server_says_what_its_observer_has_written(watched: Running) -> None:
    with httpx.Client(base_url=watched.rest) as client:
        status = client.get("/status").json()
        assert (status["live"], status["warnings"]) == (None, [])
        assert "warnings" not in client.get("/v2/health/ready").json()
        live = make_live_status(watched.digest, alarm=True)
        live.write(live_file_of(watched.log.parent))
        found = client.get("/status").json()
        assert found["live"] == json.loads(live_file_of(watched.log.parent).read_text())
        ready = client.get("/v2/health/ready")
        assert ready.status_code == 200
        assert ready.json()["ready"] is True
        assert ready.json()["warnings"] == found["warnings"] == warnings_of(live)
        assert "vae_drift_alarm 1.0" in client.get("/metrics").text
        make_live_status("another version", alarm=True).write(live_file_of(watched.log.parent))
        assert client.get("/status").json()["live"] is None


def test_rows_that_were_lost_on_the_way_are_counted_by_reason(watched: Running) -> None:
    none = {"busy": 0, "size": 0, "error": 0}
    counters = SharedCounters(live_file_of(watched.log.parent).with_name("counters"), 2, 0)
    with httpx.Client(base_url=watched.rest) as client:
        found = client.get("/status").json()
        assert found["unwatched_rows"] == found["uncaptured_rows"] == none
        counters.add("unwatched_rows", "busy", value=7)
        counters.add("uncaptured_rows", "size", value=9)
        found = client.get("/status").json()
        assert found["unwatched_rows"] == {**none, "busy": 7}
        assert found["uncaptured_rows"] == {**none, "size": 9}


def test_status_names_what_is_served_and_counts(watched: Running) -> None:
    before_s = time.time()
    with httpx.Client(base_url=watched.rest) as client:
        first = client.get("/status").json()
        client.post("/v2/models/sample/infer", json={"parameters": {"num_samples": 3}})
        client.post("/v2/models/sample/infer", json={"parameters": {"seed": -1}})
        second = client.get("/status").json()
    digest = open_bundle(SEALED).manifest.digest
    model = {"model": "bundle", "version": digest[:12], "digest": digest}
    assert second["model"] == model
    assert (second["decision"], second["refused"], second["ready"]) == (None, None, True)
    assert (second["workers"], second["ready_workers"], second["queue"]["rows"]) == (1, 1, 0)
    assert second["started"] == first["started"] < before_s <= first["time"] < second["time"]
    old, new = first["operations"]["sample"], second["operations"]["sample"]
    grown = {
        status: count - old["answers"].get(status, 0) for status, count in new["answers"].items()
    }
    assert grown == {"200": 1, "400": 1}
    assert new["rows"] - old["rows"] == 3
    counts = [sum(each["histograms"]["request"]["counts"]) for each in (old, new)]
    assert counts[1] - counts[0] == 1
    assert len(new["histograms"]["request"]["counts"]) == len(second["bounds"]["request"]) + 1
    assert new["histograms"]["request"]["sum"] > old["histograms"]["request"]["sum"]


def test_a_table_has_the_counts_of_unknown_cells(tmp_path: Path, slow_tier: None) -> None:
    word = {"name": "colour", "datatype": "BYTES", "shape": [1], "data": ["mauve"]}
    with serve(tmp_path, MIXED, "--drain", "1") as server:
        example = httpx.get(f"{server.rest}/openapi.json").json()["x-row-by-columns"]
        inputs = [each for each in example["inputs"] if each["name"] != "colour"]
        answer = httpx.post(
            f"{server.rest}/v2/models/score/infer", json={"inputs": [*inputs, word]}
        )
        answer.raise_for_status()
        found = httpx.get(f"{server.rest}/status").json()["operations"]["score"]
    assert found["unseen_words"] == 1
