"""Two processes that torchrun starts train one model, and end as one."""

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.mlflow_store import connect
from tests.e2e.conftest import TINY, run_vae
from tests.e2e.refusals import refusal, run_statuses
from tests.e2e.torchrun import Torchrun, torchrun
from tests.pipeline.training.processes import Interruption, run_content, vae_train
from tests.trained_models import draw_images

EPOCHS = 20
BATCHES = ("--batch-size", 11, "--binarize", "dynamic", *TINY)
SETTINGS = ("--epochs", EPOCHS, "--patience", 99, *BATCHES)
SLOW = ("--epochs", 100_000, "--patience", 100_000, "--batch-size", 11, *TINY)
LIMIT_S = 30


@pytest.fixture
def folder(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with `x.npy` and an empty store, which this process uses as well."""
    return prepare(tmp_path, empty_store, monkeypatch)


def prepare(folder: Path, empty_store: Path, patch: pytest.MonkeyPatch) -> Path:
    np.save(folder / "x.npy", draw_images(300))
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """Return the content of the run of a training in two processes, and its JSON line."""
    with pytest.MonkeyPatch.context() as patch:
        folder = prepare(tmp_path_factory.mktemp("uninterrupted"), empty_store, patch)
        ended = torchrun(folder, "train", "--data", "x.npy", *SETTINGS)
        assert ended.exit_code == 0, ended.said
        (line,) = ended.stdout.splitlines()
        assert run_statuses(folder) == ["FINISHED"]
        epochs = [line for line in ended.said if line.startswith("epoch ")]
        assert [line.split()[1] for line in epochs] == [
            f"{n}/{EPOCHS}" for n in range(1, EPOCHS + 1)
        ]
        assert len(set(ended.said)) == len(ended.said)
        result = json.loads(line)
        return {"result": result, **run_content(result["run_id"], folder / "content")}


def test_two_processes_give_the_model_of_one(
    uninterrupted: Mapping[str, Any], folder: Path
) -> None:
    result = run_vae(folder, "train", "--data", "x.npy", *map(str, SETTINGS))
    assert result.returncode == 0, result.stderr
    alone = json.loads(result.stdout)
    assert alone["elbo"] == pytest.approx(uninterrupted["result"]["elbo"], abs=0.02)
    content = run_content(alone["run_id"], folder / "content")
    assert content["weights"] != uninterrupted["weights"]  # sums have another order
    for name in ("elbo", "kl", "valid_elbo"):
        for (step, value), (shared_step, shared) in zip(
            content["metrics"][name], uninterrupted["metrics"][name], strict=True
        ):
            assert step == shared_step
            assert value == pytest.approx(shared, abs=1e-4 if step == 1 else 0.05)


def test_a_stopped_training_goes_on_in_as_many_processes_as_if_it_had_not_stopped(
    uninterrupted: Mapping[str, Any], folder: Path
) -> None:
    running = Torchrun(folder, "train", "--data", "x.npy", *SETTINGS)
    running.wait_for("epoch 3/")
    running.process.send_signal(signal.SIGTERM)
    ended = running.wait()
    assert ended.exit_code != 0
    (run_id,) = run_ids()
    last = [f"the state is saved; resume with: vae train --resume {run_id}", "terminated"]
    assert [line for line in ended.said if line in last] == last
    assert run_statuses(folder) == ["KILLED"]
    again = torchrun(folder, "train", "--resume", run_id)
    assert again.exit_code == 0, again.said
    assert not any(line.startswith("warning: run") for line in again.said)
    content = run_content(run_id, folder / "content")
    assert content == {name: uninterrupted[name] for name in content}


def test_a_training_goes_on_in_another_number_of_processes_and_says_so(folder: Path) -> None:
    kill = Interruption((signal.SIGTERM,), step=30)
    arguments = ("--data", folder / "x.npy", *BATCHES, "--epochs", 5)
    assert vae_train(folder, *arguments, interruption=kill).exit_code == 143
    (run_id,) = run_ids()
    ended = torchrun(folder, "train", "--resume", run_id)
    assert ended.exit_code == 0, ended.said
    assert (
        f"warning: run {run_id} was training in 1 process, and goes on in 2: what it computes "
        "differs from an uninterrupted training by rounding"
    ) in ended.said
    assert len(run_content(run_id, folder / "content")["metrics"]["elbo"]) == 5


def test_divergence_is_told_once_and_ends_all(folder: Path) -> None:
    ended = torchrun(folder, "train", "--data", "x.npy", *SETTINGS, "--learning-rate", "1e30")
    assert ended.exit_code == 1
    assert set(ended.exit_codes) <= {1, -signal.SIGTERM}
    (error,) = (line for line in ended.said if line.startswith("error: "))
    assert error.startswith("error: training diverged in epoch 1: ")
    assert run_statuses(folder) == ["FAILED"]


@pytest.mark.parametrize(("rank", "status"), [(0, "RUNNING"), (1, "FAILED")])
def test_a_killed_process_ends_all(folder: Path, rank: int, status: str) -> None:
    running = Torchrun(folder, "train", "--data", "x.npy", *SLOW)
    running.wait_for("epoch 2/")
    os.kill(running.pid(rank), signal.SIGKILL)
    ended = running.wait()
    assert ended.seconds < LIMIT_S
    assert -signal.SIGKILL in ended.exit_codes
    (error,) = (line for line in ended.said if line.startswith("error: "))
    assert error.startswith("error: another process of this training has ended")
    assert run_statuses(folder) == [status]


def test_a_signal_to_one_process_stops_all(folder: Path) -> None:
    running = Torchrun(folder, "train", "--data", "x.npy", *SLOW)
    running.wait_for("epoch 2/")
    os.kill(running.pid(1), signal.SIGTERM)
    ended = running.wait()
    assert set(ended.exit_codes) <= {128 + signal.SIGTERM, -signal.SIGTERM}
    assert ended.said[-1] == "terminated"
    assert run_statuses(folder) == ["KILLED"]
    assert any(line.startswith("the state is saved; resume with: ") for line in ended.said)


def test_data_that_one_process_refuses_end_all_with_its_message_and_exit_code(folder: Path) -> None:
    np.save(folder / "bad.npy", np.full((300, 4), np.nan, np.float32))
    script = folder / "script.py"
    script.write_text("""
import os, sys
if os.environ["RANK"] == "1":
    sys.argv[sys.argv.index("x.npy")] = "bad.npy"
from pipeline.cli.main import main
main()
""")
    program = (str(script),)
    ended = torchrun(folder, "train", "--data", "x.npy", *SETTINGS, program=program)
    errors = [line for line in ended.said if line.startswith("error: ")]
    assert any("bad.npy" in line for line in errors), ended.said
    assert 3 in ended.exit_codes
    assert set(ended.exit_codes) <= {3, -signal.SIGTERM}


def test_processes_with_other_data_are_refused(folder: Path) -> None:
    np.save(folder / "other.npy", draw_images(301))
    script = folder / "script.py"
    script.write_text("""
import os, sys
if os.environ["RANK"] == "1":
    sys.argv[sys.argv.index("x.npy")] = "other.npy"
from pipeline.cli.main import main
main()
""")
    ended = torchrun(folder, "train", "--data", "x.npy", *SETTINGS, program=(str(script),))
    errors = [line for line in ended.said if line.startswith("error: ")]
    assert errors == ["error: process 1 has other data than process 0"]
    assert set(ended.exit_codes) <= {3, -signal.SIGTERM}


def test_the_main_job_trains_in_two_processes_and_goes_on_in_one(folder: Path) -> None:
    arguments = ("--data", "x.npy", "--epochs", 2, "--out", "bundle", *TINY)
    ended = torchrun(folder, "run", *arguments, "--min-active-units", 0)
    assert ended.exit_code == 0, ended.said
    (line,) = ended.stdout.splitlines()
    assert json.loads(line)["decision"] == "promoted"
    assert run_statuses(folder) == ["FINISHED"]


@pytest.mark.parametrize("rank", [0, 1])
def test_other_commands_are_refused(tmp_path: Path, rank: int) -> None:
    result = run_vae(tmp_path, "evaluate", "bundle", RANK=str(rank), WORLD_SIZE="2")
    if rank:
        assert (result.returncode, result.stdout, result.stderr) == (2, "", "")
    else:
        assert refusal(result, 2) == (
            "vae evaluate is the work of one process: torchrun is for run and train"
        )


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"WORLD_SIZE": "2"},
            "WORLD_SIZE is 2, but RANK is not set: start the processes with torchrun, or unset "
            "WORLD_SIZE to train in one",
        ),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE, which torchrun sets, must be a number, got 'two'"),
    ],
    ids=["incomplete", "no number"],
)
def test_an_environment_that_torchrun_did_not_make_is_refused(
    tmp_path: Path, variables: dict[str, str], message: str
) -> None:
    result = run_vae(tmp_path, "train", *TINY, command=(), **variables)
    assert refusal(result, 2) == message


def run_ids() -> list[str]:
    return [str(run.info.run_id) for run in connect().search_runs(["1"])]
