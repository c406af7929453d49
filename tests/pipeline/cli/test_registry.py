"""The registry's commands: their options, messages and exit codes."""

import json
import os
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from pipeline.cli.results import say_summary
from pipeline.evaluation.evaluate import Metrics
from pipeline.registry.audit_log import Decision, DecisionStatus, list_decisions
from serving.bundle import Bundle
from serving.errors import DataRefused, UsageRefused, VaeError, VerificationFailed
from serving.mlflow_store import connect
from tests.pipeline.registry.versions import (
    champion,
    flip_byte,
    promote_with,
    register,
    stored_files,
)
from tests.trained_models import Trained

pytestmark = pytest.mark.usefixtures("store")

FILES = (
    "MODEL_CARD.md",
    "decoder.onnx",
    "draw.onnx",
    "draw_noise.onnx",
    "draw_portable.onnx",
    "encoder.onnx",
    "golden.npz",
    "held_out.npz",
    "manifest.json",
    "metrics.json",
    "noise.onnx",
    "parity.json",
    "reconstruct.onnx",
    "reconstructions.png",
    "samples.png",
    "score.onnx",
    "score_noise.onnx",
    "score_portable.onnx",
    "weights.pt",
)


def test_dry_run_force_and_at(
    vae: Any, sealed: Bundle, worse: Bundle, trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    promote_with(trained, register(sealed))
    register(worse)
    assert vae("promote", "1", "--dry-run")["decision"] == "promoted"  # it is already
    with pytest.raises(VaeError, match=r"was refused: .*not shown to be") as caught:
        vae("promote", "--dry-run", "true")  # mlflow writes a flag like this
    assert caught.value.exit_code == 5
    printed = capsys.readouterr()
    assert json.loads(printed.out)["decision"] == "refused"
    assert "not shown" not in printed.err  # only the error says it
    assert (
        vae("promote", "--dry-run", "--margin", "1000", "--min-active-units", "0")["decision"]
        == "accepted"
    )
    assert len(list_decisions("vae")) == 1
    forced = vae("promote", "--force", "--reason", "for a test", "--confidence", "0.5")
    assert (forced["decision"], forced["previous"]) == ("promoted", "1")
    assert forced["reasons"][0] == "forced: for a test"
    moved_at = list_decisions("vae")[0]["moved_at"]
    answer = vae("history", "--at", moved_at)
    assert (answer["version"], answer["certain"]) == ("2", True)
    local = datetime.fromisoformat(moved_at).astimezone().replace(tzinfo=None)
    assert vae("history", "--at", local.isoformat()) == answer
    assert vae("history", "--at", moved_at.replace("+00:00", "Z")) == answer


@pytest.mark.parametrize(
    "arguments",
    [
        ("promote", "--force"),
        ("promote", "--force", "--reason", " "),
        ("promote", "--reason", "because"),
        ("approve",),
        ("approve", "1", "--reason", " "),
        ("history", "--at", "yesterday"),
        ("delete",),
        ("verify", ""),
        ("train", "--experiment", " "),
        ("train", "--run-name", ""),
        ("register", "bundle", "--experiment", ""),
    ],
    ids=lambda arguments: " ".join(map(repr, arguments)),
)
def test_usage(vae: Any, arguments: tuple[str, ...]) -> None:
    with pytest.raises(click.UsageError) as caught:
        vae(*arguments)
    assert caught.value.exit_code == 2


def decided_on(name: str, status: DecisionStatus) -> Decision:
    """A decision on a model's first version."""
    return Decision(
        name=name, action="promote", version="1", previous=None, decision=status, reasons=()
    )


@pytest.mark.parametrize(
    ("kind", "decided", "out", "commands"),
    [
        pytest.param("sealed", False, "grid.png", ["sample", "promote"], id="pictures"),
        pytest.param("sealed_table", False, "samples.parquet", ["sample", "promote"], id="table"),
        pytest.param("sealed", True, "grid.png", ["sample", "history"], id="promoted"),
    ],
)
def test_what_the_main_job_says_to_try_next_works(
    vae: Any,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    decided: bool,
    out: str,
    commands: list[str],
) -> None:
    bundle: Bundle = request.getfixturevalue(kind)
    version = register(bundle, "mine")
    if decided:
        vae("promote", version, "--name", "mine")
    decision = decided_on("mine", "promoted")
    metrics = Metrics.from_json(bundle.read_json("metrics.json"))
    x_shape = bundle.manifest.x_shape
    say_summary("mine", version, x_shape, metrics, decision if decided else None, "figures")
    said = capsys.readouterr().err.partition("try next:")[2]
    found = [line.split()[1:] for line in said.splitlines() if line.startswith("  vae ")]
    assert [words[0] for words in found] == [*commands, "doctor"]
    monkeypatch.chdir(tmp_path)
    results = [vae(*words) for words in found[:-1]]
    assert (tmp_path / out).exists()
    assert results[0]["version"] == version
    assert decided or results[1]["decision"] == "promoted"


def test_a_refused_first_version_leaves_no_champion(
    sealed: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = Metrics.from_json(sealed.read_json("metrics.json"))
    say_summary("vae", "1", (6, 5), metrics, decided_on("vae", "refused"), "figures")
    said = capsys.readouterr().err.splitlines()
    assert said[1] == "version 1 of vae was refused; there is no champion"


def test_rows_that_cannot_be_read_are_no_decision(vae: Any, sealed: Bundle, tmp_path: Path) -> None:
    register(sealed)
    np.save(tmp_path / "other.npy", np.zeros((50, 6, 5), np.uint8))
    refusals = {"nope.npy": (UsageRefused, "nope"), "other.npy": (DataRefused, "is not the data")}
    for name, (kind, message) in refusals.items():
        with pytest.raises(kind, match=message):
            vae("promote", "1", "--data", str(tmp_path / name))
    assert list_decisions("vae") == []
    assert champion() is None
    assert vae("promote", "1")["decision"] == "promoted"


def test_delete(vae: Any, sealed: Bundle, worse: Bundle, trained: Trained) -> None:
    promote_with(trained, register(worse))
    register(sealed)
    with pytest.raises(UsageRefused, match="version 1 of vae is champion: promote another"):
        vae("delete", "1")
    register(worse)
    assert vae("delete", "2")["decision"] == "deleted"
    assert champion() == "1"


@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_stops_everything(
    vae: Any, sealed: Bundle, tmp_path: Path, name: str
) -> None:
    """Promote, verify, sample and serve refuse with exit code 7 and name the file."""
    flip_byte(stored_files(register(sealed)) / name)
    out = tmp_path / "y.npy"
    for arguments in (
        ("promote", "1"),
        ("promote", "1", "--force", "--reason", "it must"),
        ("verify", "1"),
        ("sample", "--model", "models:/vae/1", "--out", str(out)),
        ("serve", "--model", "models:/vae/1", "--port", "0", "--grpc-port", "0"),
    ):
        with pytest.raises(VerificationFailed, match=name) as caught:
            vae(*arguments)
        assert caught.value.exit_code == 7
    assert champion() is None
    assert not out.exists()


def test_a_byte_of_every_file_is_changed_once(sealed: Bundle) -> None:
    assert sorted(FILES) == sorted(path.name for path in sealed.path.iterdir())


def test_verify_takes_what_other_commands_take(
    vae: Any, sealed: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(sealed)
    digest = sealed.manifest.digest
    version = {"name": "vae", "version": "1", "digest": digest, "verified": True}
    for reference in ("1", "@candidate", "models:/vae/1", "models:/vae@candidate"):
        assert vae("verify", reference) == version
    shutil.copytree(sealed.path, tmp_path / "7")
    monkeypatch.chdir(tmp_path)
    for folder in (str(sealed.path), "./7"):
        assert vae("verify", folder) == {"bundle": folder, "digest": digest, "verified": True} | (
            {"bundle": "7"} if folder == "./7" else {}
        )
    with pytest.raises(UsageRefused, match="vae has no version 7 in sqlite:"):
        vae("verify", "7")
    with pytest.raises(UsageRefused, match="'nope' is neither a bundle folder nor a version: "):
        vae("verify", "nope")
    with pytest.raises(VerificationFailed, match="is not a bundle: it has no manifest"):
        vae("verify", str(tmp_path))
    flip_byte(tmp_path / "7" / "weights.pt")
    with pytest.raises(VerificationFailed, match=r"weights\.pt is not the file that was sealed"):
        vae("verify", "./7")


@pytest.mark.parametrize("command", ["verify", "promote", "delete"])
def test_a_reference_and_a_name_must_agree(vae: Any, sealed: Bundle, command: str) -> None:
    register(sealed)
    with pytest.raises(click.UsageError, match="models:/vae/1 is no version of --name other"):
        vae(command, "models:/vae/1", "--name", "other")


def test_promote_takes_a_reference(vae: Any, sealed: Bundle) -> None:
    register(sealed, "mine")
    assert vae("promote", "models:/mine@candidate")["name"] == "mine"


READING = {
    "history": ("history",),
    "list": ("list",),
    "verify": ("verify",),
    "promote": ("promote",),
    "approve": ("approve", "1", "--reason", "fine"),
    "rollback": ("rollback",),
    "delete": ("delete", "1"),
    "sample": ("sample", "--out", "a.npy"),
    "score": ("score", "{data}", "out"),
    "reconstruct": ("reconstruct", "{data}", "--out", "a.npy"),
    "evaluate": ("evaluate", "models:/vae@champion"),
    "check": ("check", "models:/vae/1"),
    "export": ("export", "--run-id", "0" * 32, "--out", "b"),
    "resume": ("train", "--resume", "0" * 32),
    "warm start": ("train", "--data", "{data}", "--init-from", "models:/vae/1"),
    "serve": ("serve", "--port", "0", "--grpc-port", "0"),
    "deploy": ("deploy", "--target", "triton", "--out", "out"),
}


@pytest.mark.parametrize("command", READING)
def test_a_command_that_reads_makes_no_store(
    vae: Any, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(UsageRefused) as caught:
        vae(*(word.format(data=trained[1].source) for word in READING[command]))
    assert str(caught.value).startswith(f"there is no MLflow store {folder}/mlflow.db: ")
    assert list(folder.iterdir()) == []


def test_a_store_cannot_be_in_a_folder_with_a_question_mark(
    vae: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "what?").mkdir()
    before = sorted(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path / "what?")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(UsageRefused, match=r"no MLflow store can be at .*/what\?/mlflow\.db"):
        vae("history")
    assert sorted(tmp_path.iterdir()) == before


def test_a_run_is_named_and_described(
    vae: Any, trained: Trained, sealed: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its name says preset, data and seed; the description of run and version has the figures."""
    monkeypatch.chdir(tmp_path)
    register(sealed)
    tiny = ("--hidden-dims", "16", "--latent-dim", "3", "--nll-samples", "2", "--seed", "4")
    data = ("--data", trained[1].source, "--epochs", "1")
    done = vae(
        "train", *data, *tiny, "--experiment", "team", "--init-from", "models:/vae@candidate"
    )
    run = connect().get_run(done["run_id"])
    assert run.info.run_name == "default x seed 4"
    assert connect().get_experiment(run.info.experiment_id).name == "team"
    assert run.data.params["train.init_from"] == "models:/vae/1"
    assert run.data.tags["init.from"] == "models:/vae/1"
    assert run.data.tags["init.sha256"] == sealed.manifest.digest
    figures = f"ELBO {done['elbo']:.2f} ± "
    assert run.data.tags["mlflow.note.content"].startswith(figures)
    assert f"{done['active_units']} of 3 latents active" in run.data.tags["mlflow.note.content"]

    whole = vae("run", *data, *tiny, "--name", "mine", "--run-name", "first", "--no-promote")
    run = connect().get_run(whole["run_id"])
    assert run.info.run_name == "first"
    assert (run.data.tags["model.name"], run.data.tags["model.version"]) == ("mine", "1")
    assert "init.from" not in run.data.tags
    version = connect().get_model_version("mine", "1")
    assert version.description.startswith(f"ELBO {whole['elbo']:.2f} ± ")
    assert "preset default, seed 4; parity passed.\n\n# Variational auto" in version.description

    again = vae("run", *data, *tiny, "--init-from", whole["run_id"], "--no-promote")
    assert connect().get_model_version("vae", again["version"]).tags["init.from"] == whole["run_id"]


@pytest.mark.slow(8)
@pytest.mark.parametrize(
    "command",
    [("verify",), ("sample", "--model", "models:/vae@champion", "--out", "x.npy")],
    ids=["verify", "sample"],
)
def test_a_terminal_is_told_what_the_first_seconds_are_for(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    screen, keyboard = os.openpty()
    arguments = [sys.executable, "-m", "pipeline.cli", *command]
    ended = subprocess.run(arguments, cwd=tmp_path, stdin=keyboard, stderr=keyboard)
    os.close(keyboard)
    with os.fdopen(screen, "rb", buffering=0) as read:
        lines = read.read(4000).decode().splitlines()
    assert ended.returncode == 2
    assert lines[0] == f"opening the store sqlite:///{store}"
    assert lines[1].startswith("error: ")
