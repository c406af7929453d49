"""The registry's commands: their options, messages and exit codes."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from pipeline.cli.main import cli
from pipeline.cli.results import say_summary
from pipeline.evaluation.evaluate import Metrics
from pipeline.registry.audit_log import Decision, DecisionStatus, list_decisions
from serving.bundle import Bundle
from serving.errors import DataRefused, UsageRefused, VaeError, VerificationFailed
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
    "encoder.onnx",
    "golden.npz",
    "manifest.json",
    "metrics.json",
    "parity.json",
    "reconstruct.onnx",
    "reconstructions.png",
    "samples.png",
    "score.onnx",
    "weights.pt",
)


@pytest.fixture
def vae(capsys: pytest.CaptureFixture[str]) -> Any:
    """A function that runs the command line and returns its JSON line, or raises its error."""

    def run(*arguments: str) -> Any:
        capsys.readouterr()
        cli.main([*arguments], standalone_mode=False)
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


def test_dry_run_force_and_at(
    vae: Any, sealed: Bundle, worse: Bundle, trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    promote_with(trained, register(sealed))
    register(worse)
    assert vae("promote", "1", "--dry-run")["decision"] == "promoted"  # it is already
    with pytest.raises(VaeError, match="version 2 of vae was refused: not shown to be") as caught:
        vae("promote", "--dry-run", "true")  # mlflow writes a flag like this
    assert caught.value.exit_code == 5
    printed = capsys.readouterr()
    assert json.loads(printed.out)["decision"] == "refused"
    assert "not shown" not in printed.err  # only the error says it
    assert vae("promote", "--dry-run", "--margin", "1000")["decision"] == "accepted"
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
        ("history", "--at", "yesterday"),
        ("delete",),
    ],
    ids=["no reason", "empty reason", "no force", "no time", "no version"],
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
