"""What the main job says at its end."""

import sys
from pathlib import Path

import pytest

from pipeline.cli.results import say_summary
from pipeline.evaluation.evaluate import Metrics
from serving.drift import HeldOut

NONE = dict.fromkeys(Metrics.__dataclass_fields__, 0)


@pytest.fixture
def venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virtual environment that this seems to run in; the shell knows none."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "vae").touch(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.delenv("MAKELEVEL", raising=False)
    return tmp_path / "venv"


def advises_to_activate(
    capsys: pytest.CaptureFixture[str], advice: str = "  . venv/bin/activate\n"
) -> bool:
    held_out = HeldOut.__new__(HeldOut)
    metrics = Metrics(**{**NONE, "held_out": held_out, "warnings": ()})  # type: ignore[arg-type]
    say_summary("vae", "1", (6, 5), metrics, None, "figures")
    return advice in capsys.readouterr().err


def test_an_environment_that_the_shell_does_not_know_is_to_be_activated(
    venv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert advises_to_activate(capsys)


def test_an_environment_elsewhere_is_named_by_its_whole_path(
    venv: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (venv.parent / "runs").mkdir()
    monkeypatch.chdir(venv.parent / "runs")
    assert advises_to_activate(capsys, f"  . {venv}/bin/activate\n")


@pytest.mark.parametrize("how", ["activated", "through a link", "on the path"])
def test_an_active_environment_is_not_named(
    venv: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    (venv.parent / "link").symlink_to(venv)
    if how == "on the path":
        monkeypatch.setenv("PATH", f"{venv / 'bin'}:/usr/bin")
    else:
        monkeypatch.setenv("VIRTUAL_ENV", str(venv if how == "activated" else venv.parent / "link"))
    assert not advises_to_activate(capsys)


@pytest.mark.parametrize("how", ["another is active", "on the path of make alone"])
def test_an_environment_of_another_shell_is_named(
    venv: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    monkeypatch.setenv("PATH", f"{venv / 'bin'}:/usr/bin")
    if how == "another is active":
        monkeypatch.setenv("VIRTUAL_ENV", "/somewhere/else")
    else:
        monkeypatch.setenv("MAKELEVEL", "1")
    assert advises_to_activate(capsys)


def test_without_a_virtual_environment_nothing_is_to_be_activated(
    venv: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert not advises_to_activate(capsys)
