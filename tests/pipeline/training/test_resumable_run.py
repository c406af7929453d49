"""A training that is interrupted in any way and resumed equals one that was never interrupted."""

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.dataset import Dataset
from serving.mlflow_store import connect
from tests.pipeline.training.processes import Interruption, run_content, vae_train

STEPS = 6
"""Steps in an epoch of the 270 training rows."""
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
def uninterrupted(
    images: Dataset, empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Any]:
    """Return the content of the run of a training that nothing interrupts."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
        ended = vae_train(folder, "--data", images.source, *SETTINGS)
        assert ended.exit_code == 0, ended.stderr
        (run_id,) = run_ids()
        content = run_content(run_id, folder / "content")
    assert [step for step, _ in content["metrics"]["valid_elbo"]] == [1, 2, 3, 4]
    assert content["status"] == ("FINISHED", "FINISHED")
    assert content["artifacts"] == ["checkpoint", "config.json", "figures", "metrics.json"]
    return content


@pytest.mark.usefixtures("store")
def test_a_training_interrupted_and_killed_during_epochs_ends_as_if_it_were_not(
    uninterrupted: Mapping[str, Any], images: Dataset, tmp_path: Path
) -> None:
    def interrupt(*arguments: object, by: Interruption) -> tuple[int, str, list[str]]:
        ended = vae_train(tmp_path, *arguments, interruption=by)
        (run_id,) = run_ids()
        return ended.exit_code, status(run_id), [line for line in ended.stderr if line][-2:]

    terminate = Interruption((TERM,), step=STEPS + 2)
    terminated = interrupt("--data", images.source, *SETTINGS, by=terminate)
    (run_id,) = run_ids()
    advice = f"the state is saved; resume with: vae train --resume {run_id}"
    assert terminated == (143, "KILLED", [advice, "terminated"])
    twice = Interruption((INT, TERM), step=2, save=1)  # again while the state is written
    assert interrupt("--resume", run_id, by=twice) == (130, "KILLED", [advice, "interrupted"])
    killed = interrupt("--resume", run_id, by=Interruption((KILL,), step=STEPS))
    assert killed[:2] == (-KILL, "RUNNING")
    last = vae_train(tmp_path, "--resume", run_id)
    assert last.exit_code == 0, last.stderr
    assert last.stderr[1] == f"resuming in epoch 3, after {2 * STEPS} steps"
    assert run_ids() == [run_id]
    assert run_content(run_id, tmp_path / "content") == uninterrupted


@pytest.mark.usefixtures("store")
def test_a_training_survives_kills_between_changes_to_the_store_and_a_damaged_state(
    uninterrupted: Mapping[str, Any], images: Dataset, tmp_path: Path
) -> None:
    """It is killed between a state and its metrics, in the evaluation, and while the run ends."""

    def kill(*arguments: object, by: Interruption) -> str:
        ended = vae_train(tmp_path, *arguments, interruption=by)
        assert ended.exit_code == -KILL, ended.stderr
        return ended.stderr[-1]

    kill("--data", images.source, *SETTINGS, by=Interruption(save=1))
    (run_id,) = run_ids()
    assert connect().get_run(run_id).data.metrics == {}
    assert kill("--resume", run_id, by=Interruption(change=9)).startswith("epoch 2/4 ")
    folder = Path(connect().get_run(run_id).info.artifact_uri.removeprefix("file://"), "resume")
    newest = max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-1])
    last_words = kill("--resume", run_id, by=Interruption(change=15))
    assert last_words.startswith("warning: validation was still improving")  # it was evaluated
    last = vae_train(tmp_path, "--resume", run_id)
    assert last.exit_code == 0, last.stderr
    assert run_content(run_id, tmp_path / "content") == uninterrupted
