"""What a shell is offered to complete a command line with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete

from pipeline.cli.main import cli
from pipeline.presets import PRESETS


def complete(*words: str) -> list[str]:
    """Return what may stand for the last, incomplete word; files are `file:`."""
    shell = BashComplete(cli, {}, "vae", "_VAE_COMPLETE")
    items = shell.get_completions(list(words[:-1]), words[-1])
    return [item.value if item.type == "plain" else f"{item.type}:" for item in items]


def test_commands_are_completed() -> None:
    assert complete("") == list(cli.commands)
    assert complete("re") == ["register", "reconstruct"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("run", "--lat"), ["--latent-dim"]),
        (("run", "--preset", ""), list(PRESETS)),
        (("run", "--schedule", "co"), ["constant", "cosine"]),
        (("run", "--epochs", "3", "--device", "c"), ["cpu", "cuda"]),
        (("run", "--config", "none.toml", "--schedule", "cons"), ["constant"]),
        (("config", ""), ["run", "train", "promote", "score", "serve", "monitor"]),
        (("deploy", "--target", "k"), ["kserve"]),
    ],
    ids=["option", "preset", "choice", "after others", "after a file", "command", "target"],
)
def test_options_and_choices_are_completed(words: tuple[str, ...], offered: list[str]) -> None:
    assert complete(*words) == offered


@pytest.mark.parametrize(
    "words",
    [
        ("run", "--data", "x"),
        ("run", "--config", "x"),
        ("run", "--out", "x"),
        ("sample", "--model", "x"),
        ("score", "x"),
        ("score", "x.npy", "x"),
        ("evaluate", "x"),
        ("check", "x"),
        ("register", "x"),
    ],
    ids=" ".join,
)
def test_files_are_completed(words: tuple[str, ...]) -> None:
    assert complete(*words) == ["file:"]


@pytest.mark.slow
def test_the_shell_s_own_protocol_is_answered(tmp_path: Path) -> None:
    env = {"COMP_WORDS": "vae run --preset se", "COMP_CWORD": "3", "_VAE_COMPLETE": "bash_complete"}
    code = "import sys; sys.argv = ['vae']; from pipeline.cli.main import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "plain,seed\n", "")
