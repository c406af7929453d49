"""Counts of all processes are summed, and are kept when a process ends."""

import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.errors import VaeError
from serving.server.metrics import render, statistics
from serving.server.shared_counters import (
    CELLS,
    HISTOGRAMS,
    OPERATIONS,
    ROWS,
    SECONDS,
    STATUSES,
    SharedCounters,
)

WRITERS, TIMES = 3, 20_000


def open_counters(path: Path, count: int = 3) -> list[SharedCounters]:
    return [SharedCounters(path / "counters", count, row) for row in range(count)]


def samples(counters: SharedCounters) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return the samples that Prometheus would read."""
    text = render(counters, {"model": "vae", "version": "7", "digest": "abc"}).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_each_process_counts_in_its_own_row_and_reads_all(tmp_path: Path) -> None:
    parent, first, second = open_counters(tmp_path)
    first.add("reloads")
    second.add("reloads", value=4)
    second.set("ready", value=1)
    assert [counters.total("reloads") for counters in (parent, first, second)] == [5, 5, 5]
    assert [parent.get("reloads", row=row) for row in range(3)] == [0, 1, 4]
    assert (parent.total("ready"), parent.maximum("reloads"), parent.get("reloads")) == (1, 4, 0)


def test_any_process_may_set_a_flag(tmp_path: Path) -> None:
    parent, first, second = open_counters(tmp_path)
    second.set_flag("draining", value=1)
    assert [counters.get("draining") for counters in (parent, first, second)] == [1, 1, 1]
    parent.set_flag("draining", value=0)
    assert second.get("draining") == 0


def test_a_restarted_process_continues_its_counts(tmp_path: Path) -> None:
    parent, first, _ = open_counters(tmp_path)
    first.add("rows", "encode", value=41)
    del first
    again = SharedCounters(tmp_path / "counters", 3, 1)
    again.add("rows", "encode")
    assert parent.total("rows", "encode") == 42


@pytest.mark.slow
def test_processes_that_count_at_once_lose_nothing(tmp_path: Path) -> None:
    counters = SharedCounters(tmp_path / "counters", WRITERS + 1, 0)
    code = (
        "import sys; from pathlib import Path\n"
        "from serving.server.shared_counters import SharedCounters\n"
        f"counters = SharedCounters(Path(sys.argv[1]), {WRITERS + 1}, int(sys.argv[2]))\n"
        f"for _ in range({TIMES}):\n"
        "    counters.add('reloads'); counters.observe('queue', 'encode', 0.5)\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "counters"), str(row)])
        for row in range(1, WRITERS + 1)
    ]
    assert [writer.wait() for writer in writers] == [0] * WRITERS
    assert counters.total("reloads") == WRITERS * TIMES
    place = SECONDS.index(0.5)
    assert counters.total("queue", "encode", place) == WRITERS * TIMES
    assert counters.total("queue", "encode", "sum") == WRITERS * TIMES * 0.5


def test_every_field_has_a_cell_of_its_own(tmp_path: Path) -> None:
    parent, first, _ = open_counters(tmp_path)
    for number, field in enumerate(CELLS):
        first.set(*field, value=number)
    assert [parent.total(*field) for field in CELLS] == list(range(len(CELLS)))


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (0.0, 0),
        (1e-4, 0),
        (1.0001e-4, 1),
        (10.0, len(SECONDS) - 1),
        (10.001, len(SECONDS)),
        (1e9, len(SECONDS)),
    ],
)
def test_a_bucket_includes_its_upper_bound(tmp_path: Path, value: float, place: int) -> None:
    counters = SharedCounters(tmp_path / "counters", 1, 0)
    counters.observe("queue", "score", value)
    counts = [counters.get("queue", "score", index) for index in range(len(SECONDS) + 1)]
    assert counts == [float(index == place) for index in range(len(SECONDS) + 1)]
    assert counters.get("queue", "score", "sum") == value


def test_the_status_of_every_error_can_be_counted() -> None:
    def classes(base: type[VaeError]) -> set[type[VaeError]]:
        return {base}.union(*(classes(child) for child in base.__subclasses__()))

    assert {error.status for error in classes(VaeError)} <= {*STATUSES}


def test_metrics_are_sums_over_processes(tmp_path: Path) -> None:
    _, first, second = open_counters(tmp_path)
    for counters, times in ((first, 3), (second, 2)):
        for _ in range(times):
            counters.add("requests", "decode", "grpc", 200)
            counters.add("requests", "decode", "rest", 429)
            counters.observe("request", "decode", 0.25)
            counters.observe("batch_rows", "decode", 64)
        counters.add("rows", "decode", value=64 * times)
        counters.set("ready", value=1)
    found = samples(first)

    def value(name: str, **labels: str) -> float:
        return found[(name, frozenset(labels.items()))]

    assert value("vae_requests_total", operation="decode", transport="grpc", status="200") == 5
    assert value("vae_requests_total", operation="decode", transport="rest", status="429") == 5
    assert value("vae_rows_total", operation="decode") == 320
    assert value("vae_ready") == 2
    # buckets are cumulative
    assert value("vae_batch_rows_bucket", operation="decode", le="32.0") == 0
    assert value("vae_batch_rows_bucket", operation="decode", le="64.0") == 5
    assert value("vae_batch_rows_bucket", operation="decode", le="+Inf") == 5
    assert value("vae_batch_rows_sum", operation="decode") == 320
    assert value("vae_request_seconds_count", operation="decode") == 5
    assert value("vae_model_info", model="vae", version="7", digest="abc") == 1


def test_statistics_are_sums_over_processes_in_nanoseconds(tmp_path: Path) -> None:
    parent, first, second = open_counters(tmp_path)
    for counters, seconds in ((first, 0.25), (second, 0.5)):
        counters.observe("compute", "encode", seconds)
        counters.add("request_compute", "encode", value=seconds)
        counters.observe("queue", "encode", seconds / 2)
        counters.add("rows", "encode", value=7)
        counters.add("requests", "encode", "rest", 200)
        counters.add("requests", "encode", "grpc", 504)
        counters.set("last_inference", "encode", value=seconds)
    found = statistics(parent, "encode", "7")
    assert found["inference_count"] == 14
    assert found["execution_count"] == 2
    assert found["last_inference"] == 500
    times = found["inference_stats"]
    assert times["compute_infer"] == {"count": 2, "ns": 750_000_000}
    assert times["queue"] == {"count": 2, "ns": 375_000_000}
    assert times["success"]["count"] == times["fail"]["count"] == 2


def test_statistics_count_each_answered_request_once(tmp_path: Path) -> None:
    """Three requests shared a run and a fourth failed: perf_analyzer wants equal counts."""
    parent, first, _ = open_counters(tmp_path)
    first.observe("compute", "encode", 0.5)
    first.add("request_compute", "encode", value=1.5)
    for place in range(4):
        first.observe("queue", "encode", 0.25)
        first.add("requests", "encode", "grpc", 500 if place == 3 else 200)
    times = statistics(parent, "encode", "7")["inference_stats"]
    counted = ("success", "queue", "compute_input", "compute_infer", "compute_output")
    assert {name: times[name]["count"] for name in counted} == dict.fromkeys(counted, 3)
    assert times["compute_infer"]["ns"] == 1_500_000_000
    assert (times["fail"]["count"], times["cache_hit"]["count"]) == (1, 0)


def test_bounds_rise() -> None:
    for bounds in (SECONDS, ROWS, *HISTOGRAMS.values()):
        assert list(bounds) == sorted(set(bounds))
    assert len(OPERATIONS) == 8
