"""What `vae train` refuses to start or to resume, before it changes any run."""

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipeline.cli.data_loading import load_data
from pipeline.cli.main import cli
from pipeline.cli.resumption import prepare_resume
from pipeline.config import configure
from pipeline.data.dataset import Dataset
from pipeline.errors import TrainingDiverged
from pipeline.tracking import RESUME, TrackedRun, tracked_run
from pipeline.training.beginning import begin_training
from pipeline.training.resumable_run import STATE_FILES, ResumableRun, fetch_state, fit
from serving.errors import (
    DataRefused,
    DeviceUnavailable,
    UsageRefused,
    VaeError,
    VerificationFailed,
)
from serving.mlflow_store import connect
from tests.trained_models import draw_images, tiny_config

pytestmark = pytest.mark.usefixtures("store")


def interrupted_run(dataset: Dataset, saves: int = 1, device: str = "cpu") -> TrackedRun:
    """Return an interrupted run with `saves` saved states that name `device` as theirs."""
    state = begin_training(dataset, tiny_config(dataset), "cpu")
    state.device = device
    with pytest.raises(KeyboardInterrupt), tracked_run() as run:  # noqa: PT012  the run must come out
        tracked = ResumableRun(run, state)
        for _ in range(saves):
            tracked.save(state)
        raise KeyboardInterrupt
    return run


def folder(run: TrackedRun) -> Path:
    return Path(run.artifact_place(RESUME))


def test_states_are_saved_to_two_files_in_turn_and_the_newest_undamaged_one_is_fetched(
    images: Dataset,
) -> None:
    run = interrupted_run(images, saves=3)
    assert sorted(path.name for path in folder(run).iterdir()) == sorted(STATE_FILES)
    assert fetch_state(run.run_id)["saves"] == 3
    (folder(run) / STATE_FILES[3 % 2]).write_bytes(b"")
    assert fetch_state(run.run_id)["saves"] == 2
    (folder(run) / STATE_FILES[2 % 2]).write_bytes(b"half of it")
    with pytest.raises(
        VerificationFailed, match=f"run {run.run_id} cannot be resumed: .* is damaged"
    ):
        fetch_state(run.run_id)


def test_a_resumed_run_overwrites_the_older_file(images: Dataset) -> None:
    run = interrupted_run(images, saves=2)
    older, newer = (folder(run) / STATE_FILES[saves % 2] for saves in (1, 2))
    content = newer.read_bytes()
    state, _ = prepare_resume(run.run_id, None, 1)
    ResumableRun(run, state).save(state)
    assert newer.read_bytes() == content
    assert fetch_state(run.run_id)["saves"] == 3
    assert older.read_bytes() != content


@pytest.mark.parametrize("saves", [0, 1], ids=["nothing", "an earlier epoch"])
def test_a_state_that_does_not_fit_on_the_disk_is_not_reported_as_saved(
    images: Dataset,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    saves: int,
) -> None:
    state = begin_training(images, tiny_config(images, epochs=4), "cpu")
    real, written = TrackedRun.log_file, [0]

    def log_file(run: TrackedRun, path: Path, folder: str) -> None:
        written[0] += 1
        if written[0] > saves:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(run, path, folder)

    monkeypatch.setattr(TrackedRun, "log_file", log_file)
    with pytest.raises(VaeError) as caught, tracked_run() as run:  # noqa: PT012  the run must come out
        tracked = ResumableRun(run, state)
        with tracked.advise_resume():
            fit(tracked, images)
    message = f"cannot save the state of run {run.run_id}: No space left on device"
    assert str(caught.value) == message
    advice = f"the state is saved; resume with: vae train --resume {run.run_id}"
    assert (advice in capsys.readouterr().err) == bool(saves)
    assert state.saves == saves
    if saves:
        assert fetch_state(run.run_id)["saves"] == saves


def finish(run: TrackedRun) -> None:
    connect().set_terminated(run.run_id, "FINISHED")


def drop(run: TrackedRun) -> None:
    run.delete_folder(RESUME)
    assert not folder(run).exists()


def change_data(run: TrackedRun) -> None:
    source = Path(str(fetch_state(run.run_id)["config"]["data"]["data"]))
    x = np.load(source)
    x[0, 0, 0] ^= 1
    np.save(source, x)


@pytest.mark.parametrize(
    ("spoil", "device", "kind", "message"),
    [
        pytest.param(finish, None, UsageRefused, "run .* has finished: there is", id="finished"),
        pytest.param(drop, None, UsageRefused, "run .* holds no state to resume", id="no state"),
        pytest.param(change_data, None, DataRefused, "has changed since", id="data"),
        pytest.param(
            lambda run: None, "cuda", UsageRefused, "was training on cpu, .*got --d", id="device"
        ),
    ],
)
def test_a_run_that_cannot_be_resumed_is_refused_with_the_reason_and_left_unchanged(
    tmp_path: Path,
    spoil: Callable[[TrackedRun], None],
    device: str | None,
    kind: type[VaeError],
    message: str,
) -> None:
    np.save(tmp_path / "x.npy", draw_images(60))
    dataset = load_data(configure(data=str(tmp_path / "x.npy")))
    run = interrupted_run(dataset)
    spoil(run)
    before = run.status()
    with pytest.raises(kind, match=message):
        prepare_resume(run.run_id, device, None)
    assert run.status() == before


def test_a_run_on_a_gpu_is_resumed_only_there(images: Dataset) -> None:
    run = interrupted_run(images, device="cuda")
    with pytest.raises(UsageRefused, match="was training on cuda, so it can only continue there"):
        prepare_resume(run.run_id, "cpu", None)
    if torch.cuda.is_available():
        return
    for device in (None, "auto", "cuda"):
        with pytest.raises(DeviceUnavailable) as caught:
            prepare_resume(run.run_id, device, None)
        message = f"run {run.run_id} was training on cuda, which this machine lacks: torch "
        assert str(caught.value).startswith(message)
        assert "--device" not in str(caught.value)
        assert caught.value.exit_code == 8


def test_device_auto_takes_the_device_of_the_run(images: Dataset) -> None:
    state, _ = prepare_resume(interrupted_run(images).run_id, "auto", 1)
    assert state.device == "cpu"


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["train", "--resume"], id="train"),
        pytest.param(["export", "--out", "bundle", "--run-id"], id="export"),
        pytest.param(["evaluate", "--run-id"], id="evaluate"),
    ],
)
@pytest.mark.parametrize("run_id", ["nope", "0" * 32, "../a"], ids=["word", "id", "path"])
def test_an_unknown_run_is_named(arguments: list[str], run_id: str) -> None:
    result = CliRunner().invoke(cli, [*arguments, run_id])
    assert isinstance(result.exception, UsageRefused)
    assert str(result.exception) == f"no run {run_id!r} in {os.environ['MLFLOW_TRACKING_URI']}"


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["export", "--out", "bundle", "--run-id"], id="export"),
        pytest.param(["evaluate", "--run-id"], id="evaluate"),
    ],
)
def test_an_interrupted_run_must_be_resumed_before_it_is_used(
    images: Dataset, arguments: list[str]
) -> None:
    run_id = interrupted_run(images).run_id
    result = CliRunner().invoke(cli, [*arguments, run_id])
    assert isinstance(result.exception, UsageRefused)
    assert str(result.exception) == (
        f"run {run_id} has no checkpoint: its training has not finished; continue it with "
        f"vae train --resume {run_id}"
    )


@pytest.mark.parametrize("given", ["--epochs", "--preset", "--data", "--max-time"])
def test_settings_beside_resume_are_refused_by_name(given: str) -> None:
    value = {"--preset": "default", "--data": "mnist"}.get(given, "3")
    result = CliRunner().invoke(cli, ["train", "--resume", "0" * 32, given, value])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        f"Error: {given} cannot be combined with --resume, which takes all settings from the run "
        "except --device, --threads, --learning-rate, --memory, --cache"
    )


@pytest.mark.parametrize("command", ["train", "run"])
@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        pytest.param(["--data", "typo.npy"], UsageRefused, id="no data"),
        pytest.param(["--data", "table", "--likelihood", "bernoulli"], DataRefused, id="support"),
    ],
)
def test_what_cannot_be_trained_opens_no_run(
    table: Dataset, command: str, arguments: list[str], kind: type[VaeError]
) -> None:
    words = [table.source if word == "table" else word for word in arguments]
    threads = str(torch.get_num_threads())
    result = CliRunner().invoke(cli, [command, *words, "--threads", threads])
    assert isinstance(result.exception, kind)
    assert connect().search_runs(["0", "1"]) == []


class SpoilingRun(ResumableRun):
    """A run that spoils the sums of the third epoch."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        super().log_metrics(metrics, step)
        if step == 2:
            self.state.sums.fill_(torch.nan)


def test_divergence_keeps_the_last_good_state_and_says_how_to_resume(
    images: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    state = begin_training(images, tiny_config(images, epochs=5), "cpu")
    with pytest.raises(TrainingDiverged, match="3: log_likelihood"), tracked_run() as run:  # noqa: PT012  the run must come out
        tracked = SpoilingRun(run, state)
        with tracked.advise_resume():
            fit(tracked, images)
    assert run.status() == "FAILED"
    assert fetch_state(run.run_id)["epoch"] == 3
    steps = [row.step for row in connect().get_metric_history(run.run_id, "elbo")]
    assert steps == [1, 2]
    lines = capsys.readouterr().err.splitlines()
    advice = f"vae train --resume {run.run_id} --learning-rate RATE"
    assert lines[-1] == f"the last good state is saved; resume with: {advice}"
