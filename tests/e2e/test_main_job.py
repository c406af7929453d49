"""The main job as users start it: `mlflow run`, a store in a file, a tracking server over HTTP."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from tests.forks import run_fork
from tests.tracking_server import tracking_server

ROOT = Path(__file__).parents[2]
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
TINY = {"epochs": 2, "hidden-dims": 16, "latent-dim": 3, "nll-samples": 4, "threads": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(0)
    x = generator.integers(0, 40, (400, 6, 5), dtype=np.uint8)
    x[np.arange(400), generator.integers(0, 6, 400)] = 230
    path = tmp_path_factory.mktemp("data") / "x.npy"
    np.save(path, x)
    return path


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """Return the variables of a shell with the environment active and a store in `folder`."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    return {
        **env,
        "PATH": f"{Path(sys.executable).parent}:{env['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "XDG_CACHE_HOME": str(folder / "cache"),
        **variables,
    }


def run(*words: str, env: dict[str, str], cwd: Path) -> dict[str, Any]:
    """Run a command to its end; return what the last line of stdout says."""
    result = run_fork(words, cwd, env)
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    content: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return content


def vae(arguments: list[str], env: dict[str, str], cwd: Path) -> dict[str, Any]:
    return run("vae", *arguments, env=env, cwd=cwd)


def options(settings: dict[str, Any]) -> list[str]:
    return [part for key, value in settings.items() for part in (f"--{key}", str(value))]


def project(entry_point: str, settings: dict[str, Any], env: dict[str, str]) -> dict[str, Any]:
    """Run an entry point with `mlflow run`, which starts a new process for it."""
    parameters = [part for key, value in settings.items() for part in ("-P", f"{key}={value}")]
    words = ("mlflow", "run", str(ROOT), "-e", entry_point, "--env-manager=local", *parameters)
    return run(*words, env=env, cwd=ROOT)


def read_run(env: dict[str, str], run_id: str) -> Any:
    return MlflowClient(env["MLFLOW_TRACKING_URI"]).get_run(run_id)


def browse(folder: Path, url: str) -> str:
    """Return the document that a browser makes of a page."""
    assert BROWSER is not None
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--virtual-time-budget=30000", f"--user-data-dir={folder / 'profile'}"),
        *("--window-size=1400,800", "--dump-dom", url),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.slow(45)
def test_mlflow_run_trains_registers_and_promotes(data: Path, tmp_path: Path) -> None:
    env = environment(tmp_path)
    settings = {**TINY, "data": data, "out": tmp_path / "bundle-1"}
    first = project("main", settings, env)
    assert read_run(env, first["run_id"]).info.run_name == "default x seed 0"
    assert (first["version"], first["parity"], first["decision"]) == ("1", "passed", "promoted")
    assert (tmp_path / "bundle-1" / "manifest.json").exists()

    lines = [f"{key} = {value}" for key, value in TINY.items()]
    (tmp_path / "run.toml").write_text("\n".join([*lines, f'data = "{data}"', "no-promote = true"]))
    second = project(
        "run",
        {
            "config": tmp_path / "run.toml",
            "out": tmp_path / "bundle-2",
            "learning_rate": "1e-2",
        },
        env,
    )
    assert (second["version"], second["decision"]) == ("2", None)
    assert second["elbo"] > first["elbo"]

    promoted = project("promote", {}, env)
    assert (promoted["version"], promoted["decision"], promoted["previous"]) == (
        "2",
        "promoted",
        "1",
    )
    assert project("rollback", {}, env)["version"] == "1"
    decisions = vae(["history"], env, tmp_path)["decisions"]
    assert [(row["action"], row["version"]) for row in decisions] == [
        ("rollback", "1"),
        ("promote", "2"),
        ("promote", "1"),
    ]
    assert project("verify", {"version": 2}, env)["verified"] is True
    scores = project("score", {"input": data, "output": tmp_path / "scores"}, env)
    assert (scores["rows"], scores["version"]) == (400, "1")


@pytest.mark.slow(20)
def test_stages_one_by_one_give_what_the_main_job_gives(data: Path, tmp_path: Path) -> None:
    env = environment(tmp_path)
    settings = options({**TINY, "data": data})
    trained = vae(["train", *settings], env, tmp_path)
    again = vae(["evaluate", "--run-id", trained["run_id"], "--nll-samples", "4"], env, tmp_path)
    assert {key: again[key] for key in ("elbo", "nll", "kl", "run_id")} == {
        key: trained[key] for key in ("elbo", "nll", "kl", "run_id")
    }
    bundle = ["bundle"]
    exported = vae(["export", "--run-id", trained["run_id"], "--out", *bundle], env, tmp_path)
    checked = vae(["check", *bundle], env, tmp_path)
    assert checked["parity"] == "passed"
    assert checked["digest"] != exported["digest"]
    registered = vae(["register", *bundle, "--name", "mine"], env, tmp_path)
    assert registered == {"name": "mine", "version": "1", "digest": checked["digest"]}
    promoted = vae(["promote", "--name", "mine"], env, tmp_path)
    assert promoted["decision"] == "promoted"

    whole = vae(["run", *settings, "--out", "whole", "--name", "mine"], env, tmp_path)
    assert whole["elbo"] == trained["elbo"]
    assert (whole["version"], whole["decision"]) == ("2", "promoted")
    for graph in ("encoder.onnx", "decoder.onnx"):  # the files differ only in the id of the run
        sizes = {(tmp_path / folder / graph).stat().st_size for folder in ("bundle", "whole")}
        assert len(sizes) == 1
    by_path = vae(["sample", "--model", "whole", "--seed", "7", "--out", "a.npy"], env, tmp_path)
    by_alias = vae(
        ["sample", "--model", "models:/mine@champion", "--seed", "7", "--out", "b.npy"],
        env,
        tmp_path,
    )
    assert (by_path["version"], by_alias["version"]) == (None, "2")
    assert by_path["digest"] == by_alias["digest"]
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


@pytest.fixture
def server(tmp_path: Path, slow_tier: None) -> Iterator[str]:
    with tracking_server(tmp_path, environment(tmp_path)) as url:
        yield url


@pytest.mark.slow(15)
def test_the_main_job_works_with_a_tracking_server(data: Path, tmp_path: Path, server: str) -> None:
    env = environment(tmp_path, MLFLOW_TRACKING_URI=server)
    words = ("vae", "run", *options({**TINY, "data": data, "out": "bundle"}))
    result = run_fork(words, tmp_path, env)
    done = json.loads(result.stdout)
    assert (done["version"], done["decision"]) == ("1", "promoted")
    (page,) = [line.split()[1] for line in result.stderr.splitlines() if "workflowType" in line]
    assert page.startswith(f"{server}/#/experiments/")
    if BROWSER is not None:  # the page shows the runs, not MLflow's view for language models
        document = browse(tmp_path, page)
        assert "default x seed 0" in document
        assert "Detect Issues" not in document
    sampled = vae(["sample", "--count", "4", "--seed", "7", "--out", "s.npy"], env, tmp_path)
    assert (sampled["version"], sampled["rows"]) == ("1", 4)
    assert np.load(tmp_path / "s.npy").shape == (4, 6, 5)
    assert vae(["verify"], env, tmp_path)["digest"] == sampled["digest"]
    assert not (tmp_path / "mlflow.db").exists()
