import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline import tracking
from pipeline.experiments import open_experiment
from pipeline.tracking import fetch_artifact, fetch_json, git_state, tracked_run
from serving.errors import UsageRefused, VaeError
from serving.mlflow_store import connect
from tests.forks import forks

pytestmark = pytest.mark.usefixtures("store")


def status(run_id: str) -> str:
    return str(connect().get_run(run_id).info.status)


def test_a_run_keeps_what_is_logged(tmp_path: Path) -> None:
    (tmp_path / "things").mkdir()
    (tmp_path / "things" / "a.txt").write_text("a")
    with tracked_run("vae") as run:
        run.log_params({"train.epochs": 3, "note": "hello world"})
        run.log_metrics({"elbo": -3.5, "kl": 1}, step=2)
        run.set_tags({"git.dirty": True})
        run.log_json("config.json", {"a": 1})
        run.log_dataset({"source": "/data/x.npy", "splits": {"test": {"sha256": "ab" * 32}}})
        run.log_folder(tmp_path / "things", "figures")
        place = run.artifact_place("figures")
        assert status(run.run_id) == "RUNNING"
    whole = connect().get_run(run.run_id)
    data, (logged,) = whole.data, whole.inputs.dataset_inputs
    assert (logged.dataset.name, logged.dataset.digest) == ("x.npy", "ab" * 18)
    assert logged.tags[0].value == "test"
    assert status(run.run_id) == "FINISHED"
    assert data.params == {"train.epochs": "3", "note": "hello world"}
    assert data.metrics == {"elbo": -3.5, "kl": 1.0}
    assert data.tags["git.dirty"] == "True"
    assert connect().get_metric_history(run.run_id, "elbo")[0].step == 2
    assert fetch_json(run.run_id, "config.json") == {"a": 1}
    assert (Path(place) / "a.txt").read_text() == "a"
    fetched = fetch_artifact(run.run_id, "figures", tmp_path)
    assert (fetched / "a.txt").read_text() == "a"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(KeyboardInterrupt, "KILLED", id="interrupt"),
        pytest.param(ValueError, "FAILED", id="error"),
        pytest.param(VaeError, "FAILED", id="refusal"),
    ],
)
def test_a_run_that_breaks_off_has_the_right_status(
    error: type[BaseException], expected: str
) -> None:
    run_id = ""
    with pytest.raises(error), tracked_run("vae") as run:  # noqa: PT012  the id must come out
        run_id = run.run_id
        raise error
    assert status(run_id) == expected
    assert connect().get_run(run_id).data.tags["vae.status"] == expected


def test_params_that_mlflow_run_has_logged_keep_their_spelling() -> None:
    client = connect()
    run_id = client.create_run(open_experiment(client, "vae")).info.run_id
    client.log_param(run_id, "learning_rate", "1e-3")
    with tracked_run(run_id=run_id) as run:
        run.log_params({"learning_rate": 0.001, "epochs": 2})
        assert run.run_id == run_id
    assert client.get_run(run_id).data.params == {"learning_rate": "1e-3", "epochs": "2"}


def test_artifacts_lie_beside_the_store_in_any_working_folder(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with tracked_run("vae") as run:
        place = Path(run.artifact_place("figures"))
    assert store.parent / "mlartifacts" / "vae" in place.parents


def test_the_store_is_by_default_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").write_text("name: old file store")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(tmp_path)
    connect(create=True)
    assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/mlflow.db"


def test_a_run_without_the_artifact_is_refused_by_name() -> None:
    with tracked_run("vae") as run:
        pass
    with pytest.raises(UsageRefused, match=f"run {run.run_id} has no checkpoint: no training has"):
        fetch_json(run.run_id, "checkpoint")


def test_git_state_of_a_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    monkeypatch.setattr(tracking, "__file__", str(tree / "tracking.py"))
    assert git_state() == {"sha": "unknown", "dirty": False}
    for command in (
        "init --quiet",
        "-c user.name=a -c user.email=a@b commit --quiet --allow-empty -m a",
    ):
        subprocess.run(["git", "-C", tree, *command.split()], check=True)
    clean = git_state()
    assert len(clean["sha"]) == 40
    assert clean["dirty"] is False
    (tree / "new").touch()
    assert git_state() == {"sha": clean["sha"], "dirty": True}


def log_one_metric(uri: str, results: Any) -> None:
    os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        with tracked_run("vae") as run:
            run.log_metrics({"elbo": -1.0})
        results.put(run.run_id)
    except BaseException as err:
        results.put(repr(err))
        raise


def test_four_processes_at_once_can_begin_a_store(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'fresh.db'}"
    context = forks()
    results = context.Queue()
    workers = [context.Process(target=log_one_metric, args=(uri, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    run_ids = [results.get(timeout=180) for _ in workers]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4, run_ids
    assert len(set(run_ids)) == 4
