"""Triton's perf_analyzer measures the server over REST and gRPC, and finds its statistics."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from serving.bundle import open_bundle
from serving.source import Source, remember
from tests.serving.conftest import SEALED
from tests.serving.perf_analyzer import MISSING, REASON, Report, make_libraries, measure
from tests.serving.running import Running, serve

pytestmark = [pytest.mark.slow(20), pytest.mark.skipif(MISSING, reason=REASON)]
ALIAS = "models:/vae@champion"


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_libraries(tmp_path_factory.mktemp("libraries"))


@pytest.fixture(scope="module")
def of_alias(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two workers that serve version 7 of an alias from the cache; the registry is not there."""
    folder = tmp_path_factory.mktemp("of_alias")
    bundle = open_bundle(SEALED)
    shutil.copytree(SEALED, folder / "cache/vae-pipeline" / bundle.manifest.digest)
    store = f"sqlite:///{folder / 'none.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("MLFLOW_TRACKING_URI", store)
        remember(ALIAS, Source(bundle, "vae", "7"), "ledger")
    arguments = ("--workers", "2", "--drain", "1", "--poll", "3600")
    with serve(folder, ALIAS, *arguments, MLFLOW_TRACKING_URI=store) as running:
        assert running.version == "7"
        yield running


@pytest.fixture(params=["folder", "alias"])
def measured(request: pytest.FixtureRequest) -> Running:
    name = {"folder": "server", "alias": "of_alias"}[request.param]
    running: Running = request.getfixturevalue(name)
    return running


def arguments_of(over: str, running: Running) -> list[str]:
    return {
        "REST": ["-u", running.rest.removeprefix("http://")],
        "REST, JSON": [
            *("-u", running.rest.removeprefix("http://")),
            *("--input-tensor-format", "json", "--output-tensor-format", "json"),
        ],
        "gRPC": ["-i", "grpc", "-u", running.grpc],
        "gRPC, compressed": [
            *("-i", "grpc", "-u", running.grpc, "--grpc-compression-algorithm", "gzip")
        ],
        "gRPC, stream": ["-i", "grpc", "-u", running.grpc, "--streaming", "--async"],
    }[over]


def durations(running: Running) -> Mapping[str, Mapping[str, int]]:
    (entry,) = httpx.get(f"{running.rest}/v2/models/encode/stats").json()["model_stats"]
    stats: Mapping[str, Mapping[str, int]] = entry["inference_stats"]
    return stats


@pytest.mark.parametrize("over", ["REST", "REST, JSON", "gRPC", "gRPC, compressed", "gRPC, stream"])
def test_it_measures_and_finds_the_server_s_statistics(
    libraries: Path, measured: Running, over: str
) -> None:
    before = durations(measured)
    report = measure(
        libraries, "encode", *arguments_of(over, measured), "-b", "2", "--concurrency-range", "3"
    )
    check(report)
    after = durations(measured)
    counted = after["success"]["count"] - before["success"]["count"]
    assert counted >= report.requests
    assert after["fail"] == before["fail"]


def check(report: Report) -> None:
    """The rows are those of the requests, and the parts are what the whole is made of."""
    assert report.requests > 20
    # it reads the statistics at two moments, at which requests are in progress
    assert abs(report.rows - 2 * report.requests) <= 16
    assert 0 < report.runs <= report.requests + 8
    assert abs(report.latency_us - sum(report.parts_us)) <= len(report.parts_us)
    assert report.parts_us[3] > 0
