"""`vae config`: the values that a command would use, their sources, and a file that gives them."""

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest

import pipeline.errors
import serving.errors
from pipeline.cli.main import cli
from pipeline.config import PromoteConfig, configure
from pipeline.presets import PRESETS
from serving.errors import UsageRefused
from tests.serving.conftest import SEALED

MANUAL = (Path(__file__).parents[3] / "docs" / "command-line.md").read_text()


@pytest.fixture(autouse=True)
def working_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Any:
    """A function that runs `vae config` and returns its JSON line and what a person sees."""

    def run(*arguments: str) -> tuple[Any, str]:
        cli.main(["config", *arguments], prog_name="vae", standalone_mode=False)
        captured = capsys.readouterr()
        return json.loads(captured.out), captured.err

    return run


def sources(content: Any, *names: str) -> list[tuple[Any, str]]:
    return [
        (content["options"][name]["value"], content["options"][name]["source"]) for name in names
    ]


def test_each_value_has_its_source(show: Any) -> None:
    Path("run.toml").write_text('preset = "conv"\n[model]\nlatent-dim = 12\n')
    content, shown = show("run", "--config", "run.toml", "--epochs", "3", "--name", "mine")
    assert content["command"] == "run"
    assert sources(content, "preset", "latent-dim", "epochs", "name") == [
        ("conv", "run.toml"),
        (12, "run.toml"),
        (3, "option"),
        ("mine", "option"),
    ]
    assert sources(content, "hidden-dims", "margin", "device", "max-time") == [
        ([32, 64, 128], "preset conv"),
        (1.0, "default"),
        ("cpu", "default"),
        (None, "default"),
    ]
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert 'preset = "conv" # run.toml' in lines
    assert "hidden-dims = [32, 64, 128] # preset conv" in lines
    assert '# device = "cpu" # default' in lines
    assert "[promote]" in lines


@pytest.mark.parametrize("preset", PRESETS)
def test_the_values_are_those_that_the_command_builds(show: Any, preset: str) -> None:
    content, _ = show("run", "--preset", preset)
    config = configure(preset).to_json()
    expected = {
        name: value
        for part in ("data", "model", "train", "evaluate")
        for name, value in config[part].items()
    }
    expected |= {"margin": PromoteConfig().margin, "require": ()}
    for name, value in expected.items():
        shown = content["options"][name.replace("_", "-")]["value"]
        assert shown == (list(value) if isinstance(value, tuple) else value)


def test_the_environment_is_named(show: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "abc")
    content, _ = show("score", "x.npy", "scores")
    assert sources(content, "run-id") == [("abc", "MLFLOW_RUN_ID")]


def test_the_example_of_the_manual_is_taken(show: Any) -> None:
    (example,) = re.findall("```toml\n(.*?)```", MANUAL, re.DOTALL)
    Path("run.toml").write_text(example)
    words = ("train", "--config", "run.toml", "--preset", "conv", "--write", "used.toml")
    assert f"$ vae config {' '.join(words)}\n" in MANUAL
    content, _ = show(*words)
    assert sources(content, "preset", "latent-dim", "hidden-dims", "binarize") == [
        ("conv", "option"),
        (2, "run.toml"),
        ([32, 64, 128], "preset conv"),
        ("none", "default"),
    ]
    gate, _ = show("promote", "--config", "run.toml")
    assert sources(gate, "require") == [(["cpu", "cuda"], "run.toml")]


def test_the_manual_has_every_exit_code() -> None:
    errors = (*vars(serving.errors).values(), *vars(pipeline.errors).values())
    codes = {error.exit_code for error in errors if hasattr(error, "exit_code")}
    listed = {int(code) for code in re.findall(r"^\| (\d) \|", MANUAL, re.MULTILINE)}
    assert listed == {0, *codes}


COMMANDS = {
    "run": ("run", "--preset", "resnet", "--columns", 'a,"b, c"', "--require", "cpu"),
    "run a flag": ("run", "--no-promote", "--output-bias", "--out", "b"),
    "train": ("train", "--data", "a \\ \"b\"\x7fé\t.npy", "--max-time", "1.5"),
    "train small": ("train", "--learning-rate", "1e-05", "--hidden-dims", ""),
    "promote": ("promote", "3", "--min-elbo", "-90.25", "--allow-new-data"),
    "score": ("score", "x.npy", "scores", "--id", "a", "--id", "b, c", "--where", "label != 'x'"),
    "serve": ("serve", "--port", "9000", "--drain", "0.5", "--log-format", "json"),
}  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_written_file_gives_the_same_values(show: Any, words: tuple[str, ...]) -> None:
    first, shown = show(*words, "--write", "used.toml")
    assert first["out"] == "used.toml"
    assert Path("used.toml").read_text(encoding="utf-8") == shown
    positional = [word for word in words if word in ("3", "x.npy", "scores")][:2]
    again, _ = show(words[0], *positional, "--config", "used.toml")
    values = {name: item["value"] for name, item in first["options"].items()}
    assert {name: item["value"] for name, item in again["options"].items()} == values
    given = [name for name, item in first["options"].items() if item["source"] != "default"]
    assert {again["options"][name]["source"] for name in given} == {"used.toml"}


def test_the_settings_of_a_model_become_a_file(show: Any) -> None:
    content, _ = show("train", "--config", str(SEALED), "--write", "old.toml")
    assert sources(content, "latent-dim") == [(3, str(SEALED))]
    assert "latent-dim = 3 " in Path("old.toml").read_text()


def test_what_the_command_would_refuse_is_refused() -> None:
    with pytest.raises(UsageRefused, match="objective iwae takes no free bits"):
        cli.main(
            ["config", "run", "--preset", "resnet", "--objective", "iwae"], standalone_mode=False
        )
    with pytest.raises(click.UsageError, match="No such option '--epcohs'"):
        cli.main(["config", "run", "--epcohs", "3"], standalone_mode=False)
    with pytest.raises(UsageRefused, match=r"--write must end in \.toml, got 'run\.txt'"):
        cli.main(["config", "run", "--write", "run.txt"], standalone_mode=False)


def test_a_command_without_a_config_is_refused() -> None:
    with pytest.raises(click.UsageError) as caught:
        cli.main(["config", "trian"], standalone_mode=False)
    assert caught.value.format_message() == (
        "Invalid value for COMMAND: must be one of run, train, promote, score, serve, "
        "monitor, got 'trian'"
    )
