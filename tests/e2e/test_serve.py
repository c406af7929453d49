"""A server follows an alias: through moves, bad versions, and the loss of the registry."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from mlflow import MlflowClient

from pipeline.registry import versions
from pipeline.tracking import tracked_run
from serving.bundle import open_bundle
from serving.engine import Engine
from serving.mlflow_store import DIGEST_TAG, connect
from tests.e2e.stores import Remote, Store, damage, put_golden_off, replace, untag
from tests.e2e.versions import other_model
from tests.serving.conftest import SEALED
from tests.serving.running import SERVE, Running, serve
from tests.serving.server.asking import asking, metrics, ready, wait_for

REFERENCE = "models:/vae@champion"
ALIAS = ("--follow", "alias")
"""The tests move the alias themselves."""
SECRET = "a secret of the webhook"
NO_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
"""By default, MLflow tries for 15 s to reach a server that is down."""
ALL_LOOK = 12
"""So many connections that both of two workers get some."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("store")
    bundles = [open_bundle(SEALED), other_model(SEALED, folder / "other")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # artifacts are stored in it
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        # parity was checked where the bundle was made
        patch.setattr(versions, "parity_faults", lambda *_, **__: [])
        client = connect(create=True)
        with tracked_run("test") as run:
            numbers = [versions.register_bundle(run, bundle, "vae") for bundle in bundles]
    assert numbers == ["1", "2"]
    engines = {v: Engine(bundle) for v, bundle in zip(numbers, bundles, strict=True)}
    answers = [engine.sample(1, 0).tobytes() for engine in engines.values()]
    assert answers[0] != answers[1]
    store = Store(folder, client, engines)
    store.point("1")
    return store


@pytest.fixture(scope="module")
def server(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two workers that follow the alias."""
    folder = tmp_path_factory.mktemp("server")
    arguments = ("--poll", "0.2", "--workers", "2", "--drain", "1", "--log-format", "json", *ALIAS)
    variables = {"MLFLOW_TRACKING_URI": store.uri}
    with serve(folder, REFERENCE, *arguments, **variables) as running:
        assert running.version == "1"
        yield running


def all_ready(server: Running) -> list[dict[str, Any]]:
    """Return the answers over several connections, so that both workers answer."""
    return [ready(server) for _ in range(ALL_LOOK)]


def move(store: Store, server: Running, version: str) -> None:
    """Point the alias at a version, and wait until both workers serve it."""
    if ready(server)["version"] == version:
        store.point(version)
        return
    before = metrics(server)["vae_reloads_total"]
    store.point(version)
    wait_for(
        f"version {version} is served",
        lambda: metrics(server)["vae_reloads_total"] == before + 2,
        server,
    )


@pytest.mark.usefixtures("far")  # the load starts while this runs
def test_moves_under_load_lose_no_request_and_mix_no_versions(
    store: Store, server: Running
) -> None:
    move(store, server, "1")
    before = metrics(server)["vae_reloads_total"]
    with asking(server, store.engines) as counts:
        for number, version in enumerate(("2", "1", "2", "1"), 1):
            move(store, server, version)
            told = {"ready": True, "name": "vae", "version": version}
            assert all_ready(server) == [told] * ALL_LOOK
            assert metrics(server)["vae_reloads_total"] == before + 2 * number
            answered = partial(counts.more_than, counts.answers.copy(), version)
            wait_for("all transports answer with it", answered, server)
    assert counts.failed == []
    assert counts.wrong == []
    assert counts.answers.total() > 100


def test_metrics_and_metadata_name_the_version(store: Store, server: Running) -> None:
    for version in ("2", "1"):
        move(store, server, version)
        digest = store.engines[version].bundle.manifest.digest
        label = f'vae_model_info{{digest="{digest}",model="vae",version="{version}"}}'
        assert metrics(server)[label] == 1
        metadata = httpx.get(f"{server.rest}/v2/models/encode").json()
        assert metadata["versions"] == [version]
        assert metadata["parameters"] == {"model": "vae", "digest": digest}


BAD = [
    (damage, "decoder.onnx is not the file that was sealed"),
    (put_golden_off, "decode puts x_loc off by 1"),
    (replace, "but 000000000000 was registered"),
    (untag, "no digest in its tag bundle.sha256"),
]


@pytest.mark.parametrize(("spoil", "reason"), BAD, ids=[spoil.__name__ for spoil, _ in BAD])
def test_a_bad_version_is_refused_and_reported_until_the_alias_moves_on(
    store: Store, server: Running, spoil: Callable[[Path], str | None], reason: str
) -> None:
    current = ready(server)["version"]
    other = {"1": "2", "2": "1"}[current]
    bad = store.add(spoil.__name__, spoil)
    before = metrics(server)
    with asking(server, store.engines, ["binary"]) as counts:
        store.point(bad)
        wait_for(
            "all workers tell of it",
            lambda: all(
                told.get("refused", {}).get("version") == bad for told in all_ready(server)
            ),
            server,
            patience_s=15,
        )
        told = ready(server)
        assert (told["ready"], told["version"]) == (True, current)
        assert reason in told["refused"]["reason"]
        move(store, server, other)
    assert all("refused" not in told for told in all_ready(server))
    assert (counts.failed, counts.wrong) == ([], [])
    assert counts.by("binary") <= {current, other}
    after = metrics(server)
    # it was tried once, although the alias was polled several times
    assert after["vae_reload_failures_total"] == before["vae_reload_failures_total"] + 1
    said = [json.loads(line) for line in server.log.read_text().splitlines()]
    (line,) = [line for line in said if f"version {bad} is refused" in line["message"]]
    assert line["level"] == "error"
    assert reason in line["message"]


def test_the_alias_back_at_the_version_served_ends_the_refusal(
    store: Store, server: Running
) -> None:
    current = ready(server)["version"]
    before = metrics(server)["vae_reloads_total"]
    bad = store.add("back", damage)
    store.point(bad)
    wait_for("it is refused", lambda: "refused" in ready(server), server)
    store.point(current)
    wait_for(
        "no worker tells of it",
        lambda: not any("refused" in told for told in all_ready(server)),
        server,
    )
    assert metrics(server)["vae_reloads_total"] == before


def test_an_alias_that_is_deleted_leaves_the_version_and_comes_back(
    store: Store, server: Running
) -> None:
    current = ready(server)["version"]
    other = {"1": "2", "2": "1"}[current]
    with asking(server, store.engines, ["json"]) as counts:
        store.client.delete_registered_model_alias("vae", "champion")
        looked = len(counts.answers), counts.answers.total()
        wait_for("it is asked for long", lambda: counts.answers.total() > looked[1] + 100, server)
        assert counts.by("json") == {current}
        assert ready(server) == {"ready": True, "name": "vae", "version": current}
        move(store, server, other)
    assert (counts.failed, counts.wrong) == ([], [])


@pytest.fixture(scope="module")
def far(
    store: Store, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, "subprocess.Popen[bytes]", Path]]:
    """Run `mlflow server` on a copy of the store; it may send webhooks to this machine."""
    folder = tmp_path_factory.mktemp("remote")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    shutil.copy(store.folder / "mlflow.db", folder / "mlflow.db")
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--workers", "1"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    env = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    env |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    env |= {"MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true"}
    env |= {"MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": "A" * 43 + "=", "MLFLOW_WEBHOOK_CACHE_TTL": "0"}
    log = folder / "mlflow.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield f"http://127.0.0.1:{port}", process, log
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def remote(store: Store, far: tuple[str, "subprocess.Popen[bytes]", Path]) -> Remote:
    """Versions 1 and 2 of `far`, whose artifacts are fetched over HTTP."""
    uri, process, log = far
    wait_for("MLflow answers", lambda: httpx.get(f"{uri}/health").status_code == 200)
    client = MlflowClient(uri)
    client.create_registered_model("far")
    run = client.create_run(client.create_experiment("far")).info.run_id
    for version, engine in store.engines.items():
        bundle = engine.bundle
        client.log_artifacts(run, str(bundle.path), f"{version}/artifacts/bundle")
        tags = {DIGEST_TAG: bundle.manifest.digest}
        client.create_model_version("far", f"runs:/{run}/{version}", run_id=run, tags=tags)
    client.set_registered_model_alias("far", "champion", "1")
    return Remote(uri, client, process, store.engines, log)


@pytest.fixture(scope="module")
def patient(remote: Remote, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that polls only every ten minutes by itself."""
    folder = tmp_path_factory.mktemp("patient")
    variables = {"MLFLOW_TRACKING_URI": remote.uri, "VAE_WEBHOOK_SECRET": SECRET, **NO_PATIENCE}
    arguments = ("--poll", "600", "--drain", "0.5", "--log-format", "json", *ALIAS)
    with serve(folder, "models:/far@champion", *arguments, **variables) as running:
        yield running


def test_a_webhook_of_mlflow_makes_the_server_poll_at_once(
    remote: Remote, patient: Running
) -> None:
    assert patient.version == ready(patient)["version"] == "1"
    asked = "GET /api/2.0/mlflow/registered-models/alias"
    wait_for("it has looked once", lambda: asked in remote.log.read_text(), patient)
    remote.client.create_webhook(
        "vae",
        f"{patient.rest}/webhooks/mlflow",
        ["model_version_alias.created"],
        secret=SECRET,
    )
    with asking(patient, remote.engines, ["binary"]) as counts:
        remote.client.set_registered_model_alias("far", "champion", "2")
        wait_for("it follows", lambda: ready(patient)["version"] == "2", patient)
    assert (counts.failed, counts.wrong) == ([], [])


def test_loading_an_operation_makes_the_server_poll_at_once(
    remote: Remote, patient: Running
) -> None:
    current = ready(patient)["version"]
    other = {"1": "2", "2": "1"}[current]
    for hook in remote.client.list_webhooks():
        remote.client.delete_webhook(hook.webhook_id)
    remote.client.set_registered_model_alias("far", "champion", other)
    assert ready(patient)["version"] == current
    httpx.post(f"{patient.rest}/v2/repository/models/encode/load").raise_for_status()
    wait_for("it follows", lambda: ready(patient)["version"] == other, patient)


def has_failed(server: Running, times: int) -> bool:
    return metrics(server)["vae_registry_failures_total"] == times


def test_a_registry_that_is_down_is_counted_and_changes_nothing(
    remote: Remote, patient: Running
) -> None:
    """This test is the last of three, since the registry is not started again."""
    current = ready(patient)["version"]
    remote.kill()
    with asking(patient, remote.engines, ["binary"]) as counts:
        for times in (1, 2):
            httpx.post(f"{patient.rest}/v2/repository/models/encode/load").raise_for_status()
            wait_for("it has polled", partial(has_failed, patient, times), patient)
    assert (counts.failed, counts.wrong) == ([], [])
    assert ready(patient) == {"ready": True, "name": "far", "version": current}
    assert metrics(patient)["vae_reload_failures_total"] == 0
    said = [json.loads(line) for line in patient.log.read_text().splitlines()]
    (line,) = [line for line in said if f"still serving version {current}" in line["message"]]
    assert line["level"] == "warning"
    assert remote.uri in line["message"]


def test_without_the_registry_a_server_starts_with_what_it_served_last(
    remote: Remote, patient: Running, tmp_path: Path
) -> None:
    current = ready(patient)["version"]
    remote.kill()
    shutil.copytree(patient.log.parent / "cache", tmp_path / "cache")
    variables = {"MLFLOW_TRACKING_URI": remote.uri, **NO_PATIENCE}
    arguments = ("--drain", "0.2", *ALIAS)
    with serve(tmp_path, "models:/far@champion", *arguments, **variables) as running:
        assert running.version == current
        assert running.digest == remote.engines[current].bundle.manifest.digest
        with asking(running, remote.engines, ["binary"]) as counts:
            wait_for("it answers", lambda: counts.answers.total() > 20)
        assert (counts.failed, counts.wrong) == ([], [])
        assert counts.by("binary") == {current}


def test_without_registry_and_cache_the_start_ends_with_one_line(
    remote: Remote, tmp_path: Path
) -> None:
    remote.kill()
    env = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    env |= {"MLFLOW_TRACKING_URI": remote.uri, "XDG_CACHE_HOME": str(tmp_path), **NO_PATIENCE}
    result = subprocess.run(
        [*SERVE, "--model", "models:/far@champion", "--port", "0", "--grpc-port", "0"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: the MLflow store {remote.uri} refused: ")
