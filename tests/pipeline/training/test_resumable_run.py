"""A training that breaks off, however it does, and goes on: the same as one that never stopped."""

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.dataset import Dataset
from serving.mlflow_store import connect
from tests.pipeline.training.processes import Blow, outcome, vae_train

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
def test_what_is_interrupted_and_killed_in_its_epochs_is_what_never_stopped(
    unbroken: Mapping[str, Any], images: Dataset, tmp_path: Path
) -> None:
    def break_off(*arguments: object, blow: Blow) -> tuple[int, str, list[str]]:
        ended = vae_train(tmp_path, *arguments, blow=blow)
        (run_id,) = run_ids()
        return ended.exit_code, status(run_id), [line for line in ended.said if line][-2:]

    begun = break_off("--data", images.source, *SETTINGS, blow=Blow((TERM,), step=STEPS + 2))
    (run_id,) = run_ids()
    advice = f"the state is saved; go on with: vae train --resume {run_id}"
    assert begun == (143, "KILLED", [advice, "terminated"])
    impatient = Blow((INT, TERM), step=2, save=1)  # again while the state is written
    assert break_off("--resume", run_id, blow=impatient) == (130, "KILLED", [advice, "interrupted"])
    killed = break_off("--resume", run_id, blow=Blow((KILL,), step=STEPS))
    assert killed[:2] == (-KILL, "RUNNING")
    last = vae_train(tmp_path, "--resume", run_id)
    assert last.exit_code == 0, last.said
    assert last.said[1] == f"going on in epoch 3, after {2 * STEPS} steps"
    assert run_ids() == [run_id]
    assert outcome(run_id, tmp_path / "outcome") == unbroken


@pytest.mark.usefixtures("store")
def test_deaths_between_two_changes_to_the_store_and_a_damaged_state_are_survived(
    unbroken: Mapping[str, Any], images: Dataset, tmp_path: Path
) -> None:
    """Dead after the state and before its metrics; in the evaluation; with the run half closed."""

    def die(*arguments: object, blow: Blow) -> str:
        ended = vae_train(tmp_path, *arguments, blow=blow)
        assert ended.exit_code == -KILL, ended.said
        return ended.said[-1]

    die("--data", images.source, *SETTINGS, blow=Blow(save=1))
    (run_id,) = run_ids()
    assert connect().get_run(run_id).data.metrics == {}
    assert die("--resume", run_id, blow=Blow(change=9)).startswith("epoch 2/4 ")
    folder = Path(connect().get_run(run_id).info.artifact_uri.removeprefix("file://"), "resume")
    newest = max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-1])
    assert die("--resume", run_id, blow=Blow(change=15)).startswith("test loss ")
    last = vae_train(tmp_path, "--resume", run_id)
    assert last.exit_code == 0, last.said
    assert outcome(run_id, tmp_path / "outcome") == unbroken
