"""A store whose folder was moved: every command says so, none writes to the old place."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.doctor import examine
from pipeline.registry.audit_log import list_decisions
from pipeline.tracking import tracked_run
from serving.bundle import Bundle
from serving.errors import UsageRefused, VerificationFailed
from serving.mlflow_store import connect
from tests.pipeline.registry.versions import champion, promote_with, register
from tests.trained_models import Trained

TINY = ("--epochs", "1", "--hidden-dims", "16", "--latent-dim", "3", "--nll-samples", "2")


@pytest.fixture
def moved(
    store: Path,
    sealed: Bundle,
    worse: Bundle,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """Return the present folder of a store with the champion 2 and the version 1 before it."""
    old, new = tmp_path / "old #1", tmp_path / "new 50%"
    old.mkdir()
    store.rename(old / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{old}/mlflow.db")
    with tracked_run("vae"):  # a run without files
        pass
    promote_with(trained, register(worse))
    promote_with(trained, register(sealed))
    old.rename(new)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{new}/mlflow.db")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))
    monkeypatch.chdir(tmp_path)
    return new


COMMANDS = {
    "verify": ("verify", "2"),
    "sample": ("sample", "--count", "2", "--out", "a.npy"),
    "check": ("check", "models:/vae/2"),
    "evaluate": ("evaluate", "models:/vae/2"),
    "promote": ("promote", "1"),
    "rollback": ("rollback",),
    "delete": ("delete", "1"),
    "register": ("register", "{bundle}"),
    "serve": ("serve", "--port", "0", "--grpc-port", "0"),
    "train": ("train", "--data", "{data}", *TINY),
    "run": ("run", "--data", "{data}", *TINY),
    "deploy": ("deploy", "--target", "triton", "--out", "deployed"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_says_that_the_store_was_moved(
    vae: Any, moved: Path, sealed: Bundle, trained: Trained, tmp_path: Path, command: str
) -> None:
    if command == "delete":
        connect().delete_registered_model_alias("vae", "previous")
    places = {"bundle": str(sealed.path), "data": trained[1].source}
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(VerificationFailed) as caught:
        vae(*(word.format(**places) for word in COMMANDS[command]))
    assert caught.value.exit_code == 7
    old = moved.with_name("old #1")
    message = str(caught.value)
    assert f"{old}/mlartifacts/" in message
    assert message.endswith(
        f"the store was moved from {old} to {moved}: run vae doctor --repair-store"
    )
    left = {path.name for path in tmp_path.iterdir()} - {"another cache"}
    assert left == set(before)
    assert not old.exists()


def test_the_doctor_repairs_it(vae: Any, moved: Path, trained: Trained, tmp_path: Path) -> None:
    (finding,) = [row for row in examine() if row.subject == "MLflow store"]
    assert (finding.status, finding.fix) == ("failed", "vae doctor --repair-store")
    assert str(moved.with_name("old #1")) in finding.detail
    vae("doctor", "--repair-store", "true")  # as mlflow writes a flag
    (finding,) = [row for row in examine() if row.subject == "MLflow store"]
    assert finding.status == "ok"
    assert vae("verify", "2")["verified"]
    assert vae("promote", "1", "--data", trained[1].source, "--margin", "1e6")["previous"] == "2"
    assert vae("rollback")["version"] == "2"
    done = vae("train", "--data", trained[1].source, *TINY)
    assert vae("evaluate", "--run-id", done["run_id"], "--nll-samples", "2")["elbo"] == done["elbo"]
    assert not moved.with_name("old #1").exists()
    with pytest.raises(UsageRefused, match=r"nothing to repair: sqlite:.* was not moved"):
        vae("doctor", "--repair-store")


def test_what_lies_in_the_database_is_still_read(vae: Any, moved: Path) -> None:
    assert [row["version"] for row in vae("history")["decisions"]] == ["2", "1"]
    assert [row["version"] for row in vae("list")["versions"]] == ["2", "1"]
    assert len(list_decisions("vae")) == 2
    assert champion() == "2"


def test_files_that_are_gone_are_named_with_their_place(
    vae: Any, store: Path, sealed: Bundle, tmp_path: Path
) -> None:
    register(sealed)
    (tmp_path / "mlartifacts").rename(tmp_path / "elsewhere")
    with pytest.raises(VerificationFailed) as caught:
        vae("verify", "1")
    message = str(caught.value)
    assert f"version 1 has no files at {tmp_path}/mlartifacts/test/models/m-" in message
    assert message.endswith(": bring them back, or register it again")
    assert "moved" not in message


def test_a_copy_does_not_write_into_the_original(
    vae: Any, moved: Path, trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    old = moved.with_name("old #1")
    (old / "mlartifacts").mkdir(parents=True)
    (old / "mlartifacts" / "vae-promotions").mkdir()
    with pytest.raises(VerificationFailed, match="the store was moved from"):
        vae("promote", "1", "--data", trained[1].source)
    assert list((old / "mlartifacts" / "vae-promotions").iterdir()) == []
    vae("doctor", "--repair-store")
    assert vae("promote", "1", "--data", trained[1].source, "--margin", "1e6")["version"] == "1"
    assert list((old / "mlartifacts" / "vae-promotions").iterdir()) == []
    said = json.dumps(capsys.readouterr().err)
    assert "Traceback" not in said
