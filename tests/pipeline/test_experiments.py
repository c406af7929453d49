"""Which experiment a run belongs to, and those that cannot take one."""

import os
from pathlib import Path

import pytest

from pipeline.experiments import check_experiment, choose_experiment, open_experiment
from pipeline.tracking import tracked_run
from serving.errors import UsageRefused
from serving.mlflow_store import connect
from serving.sqlite_store import local_path
from tests.e2e.conftest import clean_environment
from tests.forks import run_fork

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(variable, raising=False)


def name_of(number: str) -> str:
    return str(connect().get_experiment(number).name)


@pytest.mark.parametrize(
    ("option", "name", "number", "expected"),
    [
        pytest.param("mine", "team", True, "mine", id="option"),
        pytest.param(None, "team", True, "team", id="name"),
        pytest.param(None, "", True, "by number", id="number"),
        pytest.param(None, "", False, "vae", id="default"),
        pytest.param("", "", False, "vae", id="empty"),
    ],
)
def test_the_option_comes_before_the_variables(
    monkeypatch: pytest.MonkeyPatch, option: str | None, name: str, number: bool, expected: str
) -> None:
    client = connect()
    given = client.create_experiment("by number")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", given if number else "")
    assert name_of(choose_experiment(client, option)) == expected
    with tracked_run(option) as run:
        assert name_of(client.get_run(run.run_id).info.experiment_id) == expected


def test_a_number_without_an_experiment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")
    with pytest.raises(UsageRefused, match="has no experiment 77, which MLFLOW_EXPERIMENT_ID"):
        choose_experiment(connect(), None)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("team/a b", "team_a_b"),
        ("../../x", "_.._x"),
        ("/etc", "_etc"),
        ("50% off #1 ü+a&b?", "50_off_1_ü_a_b_"),
        ("..", "_"),
        ("v1.2", "v1.2"),
    ],
)
def test_the_folder_of_an_experiment_lies_beside_the_store(
    store: Path, name: str, folder: str
) -> None:
    with tracked_run(name) as run:
        run.log_json("a.json", {})
        place = Path(run.artifact_place("a.json"))
    assert place.exists()
    assert place.is_relative_to(store.parent / "mlartifacts" / folder)
    found = connect().get_experiment_by_name(name)
    assert found is not None
    assert local_path(found.artifact_location) == store.parent / "mlartifacts" / folder


def test_a_deleted_experiment_names_the_command_that_restores_it(tmp_path: Path) -> None:
    client = connect()
    with tracked_run("team") as run:
        pass
    number = open_experiment(client, "team")
    client.delete_experiment(number)
    for attempt in (
        lambda: choose_experiment(client, "team"),
        lambda: check_experiment(client, "team"),
        lambda: tracked_run("team").__enter__(),
        lambda: tracked_run(run_id=run.run_id).__enter__(),
    ):
        with pytest.raises(UsageRefused) as caught:
            attempt()
        message, _, command = str(caught.value).partition(": restore it with ")
        assert message == "experiment 'team' was deleted"
    uri = os.environ["MLFLOW_TRACKING_URI"]
    done = run_fork(
        tuple(command.split()), tmp_path, clean_environment(tmp_path, {"MLFLOW_TRACKING_URI": uri})
    )
    assert done.returncode == 0, done.stderr
    assert choose_experiment(client, "team") == number
    with tracked_run(run_id=run.run_id):
        pass


def test_a_deleted_run_names_the_command_that_restores_it(tmp_path: Path) -> None:
    with tracked_run() as run:
        pass
    connect().delete_run(run.run_id)
    with pytest.raises(UsageRefused) as caught:
        tracked_run(run_id=run.run_id).__enter__()
    message, _, command = str(caught.value).partition(": restore it with ")
    assert message == f"run {run.run_id} was deleted"
    uri = os.environ["MLFLOW_TRACKING_URI"]
    done = run_fork(
        tuple(command.split()), tmp_path, clean_environment(tmp_path, {"MLFLOW_TRACKING_URI": uri})
    )
    assert done.returncode == 0, done.stderr
    with tracked_run(run_id=run.run_id):
        pass


def test_a_run_of_mlflow_run_stays_in_its_experiment() -> None:
    client = connect()
    run_id = client.create_run(open_experiment(client, "team")).info.run_id
    with tracked_run("team", run_id=run_id) as run:
        assert run.run_id == run_id
    message = "belongs to the experiment 'team', not to 'mine'; under mlflow run, give --experiment"
    with pytest.raises(UsageRefused, match=message):
        tracked_run("mine", run_id=run_id).__enter__()


@pytest.mark.parametrize(
    ("before", "name", "expected"),
    [
        pytest.param(None, None, "default", id="made up"),
        pytest.param(None, "mine", "mine", id="option"),
        pytest.param("our-first-1", None, "our-first-1", id="a person's"),
        pytest.param("our-first-1", "mine", "mine", id="option over a person's"),
    ],
)
def test_the_name_of_a_run_that_mlflow_opened(
    before: str | None, name: str | None, expected: str
) -> None:
    client = connect()
    opened = client.create_run(open_experiment(client, "vae"), run_name=before)
    with tracked_run(run_id=opened.info.run_id, name=name, default_name="default"):
        pass
    assert client.get_run(opened.info.run_id).info.run_name == expected


def test_the_name_of_a_new_run() -> None:
    for name, expected in ((None, "default"), ("mine", "mine")):
        with tracked_run(name=name, default_name="default") as run:
            assert connect().get_run(run.run_id).info.run_name == expected
