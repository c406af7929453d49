"""How commands end, and what names they take."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from serving.cli.command import CONTEXT, Command, run_command
from serving.cli.paths import Origin, Target, target

PYPROJECT = (Path(__file__).parents[3] / "pyproject.toml").read_text()


def end_of(monkeypatch: pytest.MonkeyPatch, error: Exception) -> int:
    """Return the exit code of a command that raises."""

    @click.command(cls=Command, context_settings=CONTEXT)
    def fail() -> None:
        raise error

    monkeypatch.setattr("sys.argv", ["vae"])
    monkeypatch.setattr("signal.signal", lambda *arguments: None)
    monkeypatch.setattr("sys.unraisablehook", None)
    with pytest.raises(SystemExit) as caught:
        run_command(fail)
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("torch", "'vae-pipeline[train]'"),
        ("onnxscript.ir", "'vae-pipeline[train]'"),
        ("mlflow", "'vae-pipeline[registry]'"),
        ("pyarrow.parquet", "'vae-pipeline[files]'"),
        ("PIL", "'vae-pipeline[files]'"),
        ("opentelemetry.sdk", "'vae-pipeline[otel]'"),
        ("pyspark", "'vae-pipeline[spark]'"),
        ("mynets", "mynets"),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: str,
    package: str,
) -> None:
    assert end_of(monkeypatch, ModuleNotFoundError("No module", name=module)) == 2
    top = module.partition(".")[0]
    assert capsys.readouterr().err == (f"error: this command needs {top}: pip install {package}\n")


def test_the_extras_exist() -> None:
    from serving.cli import command

    for extra in set(command._EXTRAS.values()):
        assert re.search(rf"^{extra} = \[", PYPROJECT, re.MULTILINE)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (Origin(), "", "it must have a name, got ''"),
        (Target(), "", "it must have a name, got ''"),
        (target(), "", "it must have a name, got ''"),
        (Target(), "-", "stdout is for the JSON line: name a file, got '-'"),
        (target(), "-", "stdout is for the JSON line: name a file, got '-'"),
    ],
    ids=["input", "output", "local output", "output to stdout", "local output to stdout"],
)
def test_names_that_are_none_are_refused(kind: click.Path, value: str, message: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        kind.convert(value, None, None)
    assert caught.value.message == message


def test_other_names_are_taken() -> None:
    taken: Mapping[Any, Any] = {
        Origin(): "s3://bucket/x",
        Target(): "./-",
        target(): Path("a/b.npy"),
    }
    for kind, value in taken.items():
        assert kind.convert(str(value), None, None) == value


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
    ],
    ids=["terminal", "empty NO_COLOR", "NO_COLOR", "dumb terminal"],
)
def test_colours_can_be_switched_off(variables: Mapping[str, str], coloured: bool) -> None:
    @click.command(cls=Command, context_settings=CONTEXT)
    def warn() -> None:
        click.secho("loud", fg="red", err=True)

    runner = CliRunner(env={"NO_COLOR": None, **variables})
    shown = runner.invoke(warn, color=True).stderr
    assert shown == ("\x1b[31mloud\x1b[0m\n" if coloured else "loud\n")
