"""Prometheus reads the values of the shared counters, and they count what the server did."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving import Client
from serving.engine import Engine
from serving.server.metrics import render, statistics
from serving.server.shared_counters import ROWS, SECONDS, SharedCounters
from tests.serving.conftest import SEALED
from tests.serving.running import Running, serve

NAMES = {"model": "vae", "version": "3", "digest": "ab"}
OPERATIONS = ("encode", "decode", "reconstruct", "sample", "score", "draw")
Sample = tuple[str, tuple[tuple[str, str], ...]]


def parsed(text: str) -> dict[Sample, float]:
    """Return every sample by name and labels, as Prometheus' own parser reads them."""
    found: dict[Sample, float] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def key(name: str, **labels: str) -> Sample:
    return name, tuple(sorted(labels.items()))


def rendered(counters: SharedCounters) -> dict[Sample, float]:
    return parsed(render(counters, NAMES).decode())


@pytest.fixture
def by_process(tmp_path: Path) -> list[SharedCounters]:
    """The counters as the parent and two workers see them."""
    return [SharedCounters(tmp_path / "counters", 3, row) for row in range(3)]


def test_counters_are_summed_over_processes(by_process: list[SharedCounters]) -> None:
    parent, first, second = by_process
    first.add("requests", "encode", "rest", 200)
    second.add("requests", "encode", "rest", 200, value=2)
    second.add("requests", "encode", "grpc", 429)
    first.add("rows", "encode", value=5)
    second.add("rows", "encode", value=6)
    first.set("ready", value=1)
    second.set("ready", value=1)
    parent.add("registry_failures", value=4)
    for counters in by_process:
        found = rendered(counters)
        labels = {"operation": "encode", "transport": "rest", "status": "200"}
        assert found[key("vae_requests_total", **labels)] == 3
        labels = {"operation": "encode", "transport": "grpc", "status": "429"}
        assert found[key("vae_requests_total", **labels)] == 1
        assert sum(name == "vae_requests_total" for name, _ in found) == 2
        assert found[key("vae_rows_total", operation="encode")] == 11
        assert found[key("vae_rows_total", operation="score")] == 0
        assert found[key("vae_ready")] == 2
        assert found[key("vae_registry_failures_total")] == 4
        assert found[key("vae_model_info", **NAMES)] == 1


@pytest.mark.parametrize(
    ("name", "metric", "bounds"),
    [
        ("request", "vae_request_seconds", SECONDS),
        ("batch_rows", "vae_batch_rows", ROWS),
    ],
    ids=["seconds", "rows"],
)
def test_buckets_are_cumulative_with_their_bounds_included(
    by_process: list[SharedCounters], name: str, metric: str, bounds: tuple[float, ...]
) -> None:
    values = [bounds[0] / 2, bounds[0], bounds[1], (bounds[1] + bounds[2]) / 2, bounds[-1] * 2]
    for place, value in enumerate(values):
        by_process[1 + place % 2].observe(name, "score", value)
    found = rendered(by_process[0])
    for bound in (*bounds, math.inf):
        label = "+Inf" if math.isinf(bound) else str(bound)
        expected = sum(value <= bound for value in values)
        assert found[key(f"{metric}_bucket", operation="score", le=label)] == expected
    assert found[key(f"{metric}_count", operation="score")] == 5
    assert found[key(f"{metric}_sum", operation="score")] == pytest.approx(sum(values), rel=1e-12)


def test_a_restarted_worker_keeps_its_counts(tmp_path: Path) -> None:
    SharedCounters(tmp_path / "counters", 2, 1).add("rows", "score", value=7)
    assert SharedCounters(tmp_path / "counters", 2, 0).total("rows", "score") == 7


def test_every_process_sees_a_flag(by_process: list[SharedCounters]) -> None:
    by_process[2].set_flag("unloaded.score", value=1)
    assert [counters.get("unloaded.score") for counters in by_process] == [1, 1, 1]
    by_process[1].set_flag("unloaded.score", value=0)
    assert [counters.get("unloaded.score") for counters in by_process] == [0, 0, 0]


def test_statistics_are_nanoseconds_and_counts_over_processes(
    by_process: list[SharedCounters],
) -> None:
    for counters, seconds in zip(by_process[1:], (0.5, 0.25), strict=True):
        counters.add("requests", "score", "rest", 200)
        counters.add("requests", "score", "grpc", 504)
        counters.observe("request", "score", seconds)
        counters.observe("compute", "score", seconds / 2)
        counters.add("request_compute", "score", value=seconds / 2)
        counters.add("rows", "score", value=3)
    by_process[1].set("last_inference", "score", value=1e9)
    by_process[2].set("last_inference", "score", value=2e9)
    found = statistics(by_process[0], "score", "3")
    assert (found["name"], found["version"]) == ("score", "3")
    assert found["last_inference"] == 2 * 10**12
    assert (found["inference_count"], found["execution_count"]) == (6, 2)
    assert found["inference_stats"]["success"] == {"count": 2, "ns": 750_000_000}
    assert found["inference_stats"]["compute_infer"] == {"count": 2, "ns": 375_000_000}
    assert found["inference_stats"]["fail"]["count"] == 2


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory, slow_tier: None) -> Iterator[Running]:
    """Two workers that share their ports."""
    folder = tmp_path_factory.mktemp("two_workers")
    with serve(folder, SEALED, "--workers", "2", "--drain", "2") as running:
        yield running


@contextmanager
def new_connections(server: Running) -> Iterator[httpx.Client]:
    """A client with a new connection for each request, which any worker may accept."""
    with httpx.Client(base_url=server.rest, headers={"connection": "close"}) as client:
        yield client


def scrape(server: Running) -> dict[Sample, float]:
    response = httpx.get(f"{server.rest}/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    return parsed(response.text)


def grown(before: dict[Sample, float], after: dict[Sample, float]) -> dict[Sample, float]:
    """Return the counters that grew, without the times, which vary."""
    return {
        sample: value - before.get(sample, 0)
        for sample, value in after.items()
        if value != before.get(sample, 0)
        and sample[0] in ("vae_requests_total", "vae_rows_total", "vae_request_seconds_count")
    }


def test_a_server_counts_what_was_asked(server: Running, x: np.ndarray) -> None:
    before = scrape(server)
    with Client(server.rest) as client:
        client.score(x[:4], 3, 1)
        client.sample(5)
        client.sample(6)
    for path, content in (
        ("sample/infer", {"parameters": {"seed": -1}}),
        ("sample/infer", {"parameters": {"timeout": 1}}),
        ("sample/versions/41/infer", {}),
        ("nope/infer", {}),
    ):
        httpx.post(f"{server.rest}/v2/models/{path}", json=content)
    after = scrape(server)

    def requests(operation: str, status: str) -> Sample:
        return key("vae_requests_total", operation=operation, transport="rest", status=status)

    assert grown(before, after) == {
        requests("score", "200"): 1,
        requests("sample", "200"): 2,
        requests("sample", "400"): 1,
        requests("sample", "404"): 1,
        requests("sample", "504"): 1,
        key("vae_rows_total", operation="score"): 4,
        key("vae_rows_total", operation="sample"): 11,
        key("vae_request_seconds_count", operation="score"): 1,
        key("vae_request_seconds_count", operation="sample"): 2,
    }
    assert after[key("vae_ready")] == 1
    names = {"model": "bundle", "version": server.version, "digest": server.digest}
    assert after[key("vae_model_info", **names)] == 1


def test_two_workers_answer_with_the_same_bytes_and_count_together(
    two_workers: Running, engine: Engine, x: np.ndarray
) -> None:
    """Over many connections both workers answer, and each reports the sum of both."""
    assert len(two_workers.children()) == 2
    expected = {"sample": {"x_loc": engine.sample(7, 21)}, "score": engine.score(x[:9], 2, 21)}
    numbers = {"name": "x", "datatype": "UINT8", "shape": [9, 6, 5], "data": x[:9].tolist()}
    contents = {
        "sample": {"parameters": {"seed": 21, "num_samples": 7}},
        "score": {"inputs": [numbers], "parameters": {"seed": 21, "num_samples": 2}},
    }

    before = scrape(two_workers)
    with new_connections(two_workers) as http:

        def ask(place: int) -> None:
            operation = ("sample", "score")[place % 2]
            response = http.post(f"/v2/models/{operation}/infer", json=contents[operation])
            for output in response.json()["outputs"]:
                got = np.array(output["data"], np.float32)
                assert got.tobytes() == expected[operation][output["name"]].tobytes()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(80)))
    for _ in range(10):
        counts = grown(before, scrape(two_workers))
        assert counts[key("vae_rows_total", operation="sample")] == 280
        assert counts[key("vae_rows_total", operation="score")] == 360
        labels = {"transport": "rest", "status": "200"}
        assert counts[key("vae_requests_total", operation="sample", **labels)] == 40
    assert scrape(two_workers)[key("vae_ready")] == 2


def test_what_one_worker_unloads_is_unloaded_in_both(two_workers: Running) -> None:
    with new_connections(two_workers) as http:

        def statuses() -> set[int]:
            return {http.post("/v2/models/sample/infer", json={}).status_code for _ in range(16)}

        assert statuses() == {200}
        http.post("/v2/repository/models/sample/unload")
        assert statuses() == {503}
        http.post("/v2/repository/models/sample/load")
        assert statuses() == {200}


def test_statistics_are_those_of_the_metrics(two_workers: Running) -> None:
    metrics = scrape(two_workers)
    content: dict[str, Any] = httpx.get(f"{two_workers.rest}/v2/models/stats").json()
    for entry in content["model_stats"]:
        name = entry["name"]
        assert entry["inference_count"] == metrics[key("vae_rows_total", operation=name)]
        runs = metrics[key("vae_compute_seconds_count", operation=name)]
        assert entry["execution_count"] == runs
