"""A training that breaks off, however it does, and goes on: the same as one that never stopped."""

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.data import Dataset
from serving.source import connect
from tests.pipeline.training_processes import Blow, outcome, vae_train

STEPS = 6
"""In an epoch of the 270 training rows."""
SETTINGS = (
    *("--epochs", 4, "--patience", 9, "--hidden-dims", "16", "--latent-dim", 3, "--batch-size", 50),
    *("--learning-rate", 0.01, "--test-fraction", 0.25, "--nll-samples", 4),
    *("--binarize", "dynamic"),
)
INT, TERM, KILL = signal.SIGINT, signal.SIGTERM, signal.SIGKILL


def run_ids() -> list[str]:
    client = connect()
    return [str(run.info.run_id) for run in client.search_runs(["1"])]


def status(run_id: str) -> str:
    return str(connect().get_run(run_id).info.status)


@pytest.fixture(scope="module")
def unbroken(
    images: Dataset, empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Any]:
    """What a training holds that nothing disturbs."""
    folder = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
        ended = vae_train(folder, "--data", images.source, *SETTINGS)
        assert ended.exit_code == 0, ended.said
        (run_id,) = run_ids()
        content = outcome(run_id, folder / "outcome")
    assert [step for step, _ in content["metrics"]["valid_elbo"]] == [1, 2, 3, 4]
    assert content["status"] == ("FINISHED", "FINISHED")
    assert content["artifacts"] == ["checkpoint", "config.json", "figures", "metrics.json"]
    return content


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("blow", "exit_code", "left"),
    [
        pytest.param(Blow(step=2 * STEPS + 3), -KILL, "RUNNING", id="killed in an epoch"),
        pytest.param(Blow((TERM,), step=STEPS + 2), 143, "KILLED", id="SIGTERM in an epoch"),
        pytest.param(
            Blow((INT, TERM), step=2 * STEPS, save=2), 130, "KILLED", id="SIGINT and others"
        ),
    ],
)
def test_what_goes_on_is_what_never_stopped(
    unbroken: Mapping[str, Any],
    images: Dataset,
    tmp_path: Path,
    blow: Blow,
    exit_code: int,
    left: str,
) -> None:
    ended = vae_train(tmp_path, "--data", images.source, *SETTINGS, blow=blow)
    (run_id,) = run_ids()
    assert (ended.exit_code, status(run_id)) == (exit_code, left), ended.said
    if exit_code > 0:
        word = "terminated" if exit_code == 143 else "interrupted"
        advice = f"the state is saved; go on with: vae train --resume {run_id}"
        assert [line for line in ended.said if line][-2:] == [advice, word]
    resumed = vae_train(tmp_path, "--resume", run_id)
    assert resumed.exit_code == 0, resumed.said
    assert run_ids() == [run_id]
    assert outcome(run_id, tmp_path / "outcome") == unbroken


@pytest.mark.usefixtures("store")
def test_deaths_at_every_kind_of_change_to_the_store_and_damage_are_survived(
    unbroken: Mapping[str, Any], images: Dataset, tmp_path: Path
) -> None:
    """A process dies when a state is written, and the next ones each before a later change."""
    first = vae_train(tmp_path, "--data", images.source, *SETTINGS, blow=Blow(save=1))
    (run_id,) = run_ids()
    assert first.exit_code == -KILL
    place = Path(connect().get_run(run_id).info.artifact_uri.removeprefix("file://"), "resume")
    for change in range(7, 16):
        ended = vae_train(tmp_path, "--resume", run_id, blow=Blow(change=change))
        print(change, ended)
        if ended.exit_code == 0:
            break
        assert ended.exit_code == -KILL, ended.said
    assert outcome(run_id, tmp_path / "outcome") == unbroken
