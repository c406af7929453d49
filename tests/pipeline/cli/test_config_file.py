"""`--config`: values from a file or a model, and which of two sources comes first."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest

from pipeline.cli.main import cli
from pipeline.config import SECTIONS
from serving.errors import VerificationFailed
from tests.serving.conftest import SEALED

Given = dict[str, Any]


@pytest.fixture(autouse=True)
def given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Given:
    """The values that a command was called with; the command itself does not run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    values: Given = {}
    for command in cli.commands.values():
        monkeypatch.setattr(command, "callback", lambda **settings: values.update(settings))
    return values


def call(command: str, content: str, *arguments: str) -> None:
    """Run a command with a file of options."""
    Path("run.toml").write_text(content, encoding="utf-8")
    cli.main([command, "--config", "run.toml", *arguments], standalone_mode=False)


def refusal(command: str, content: str) -> str:
    with pytest.raises(click.BadParameter) as caught:
        call(command, content)
    assert caught.value.exit_code == 2
    message = caught.value.format_message()
    assert message.startswith("Invalid value for '--config': ")
    assert len(message) < 300
    return message.removeprefix("Invalid value for '--config': ")


RUN_TOML = """
preset = "conv"
threads = 3
no-promote = true
out = "bundles/first"

[data]
data = "ärger/x.npy"
columns = ["mean radius", "area, mm", 'a "b"']

[model]
hidden-dims = [64, 32]
output_bias = false
latent_dim = 7

[train]
learning-rate = 5e-4
max-time = "none"

[promote]
require = ["cpu", "cuda"]
min-elbo = -90
"""
VALUES: Mapping[str, Any] = {
    "preset": "conv",
    "threads": 3,
    "no_promote": True,
    "out": Path("bundles/first"),
    "data": "ärger/x.npy",
    "columns": ("mean radius", "area, mm", 'a "b"'),
    "hidden_dims": (64, 32),
    "output_bias": False,
    "latent_dim": 7,
    "learning_rate": 5e-4,
    "require": ("cpu", "cuda"),
    "min_elbo": -90.0,
}


def test_a_file_gives_the_values_of_options(given: Given) -> None:
    call("run", RUN_TOML)
    assert {name: given[name] for name in VALUES} == VALUES
    assert given["epochs"] is None  # what the file does not name is left to the preset


def test_an_option_comes_before_the_file(given: Given) -> None:
    call("run", RUN_TOML, "--preset", "seed", "--hidden-dims", "8", "--output-bias")
    assert (given["preset"], given["hidden_dims"], given["output_bias"]) == ("seed", (8,), True)
    assert given["latent_dim"] == 7


def test_settings_may_stand_outside_of_their_sections(given: Given) -> None:
    call("train", "epochs = 3\nhidden_dims = '16,8'\n")
    assert (given["epochs"], given["hidden_dims"]) == (3, (16, 8))


def test_settings_that_a_command_does_not_have_are_passed_over(given: Given) -> None:
    call("train", "margin = 3\npreset = 'seed'\n[promote]\nmin-elbo = -90\n[export]\n")
    assert given["preset"] == "seed"
    call("promote", "preset = 'seed'\n[data]\ndata = 'x.npy'\n[promote]\nmargin = 3\n")
    assert given["margin"] == 3
    assert given["source"] is None  # --data of promote is not the setting of the section


def test_a_flag_that_is_false_stays_off(given: Given) -> None:
    call("run", "no-promote = false\n")
    assert given["no_promote"] is False


def test_the_commands_that_use_a_model_take_a_file(given: Given) -> None:
    call("score", 'id = ["a", "b"]\nnum-samples = 4\nmax-bad = "3"\n', "x.npy", "scores")
    assert given["ids"] == ("a", "b")
    assert (given["num_samples"], given["max_bad"]) == (4, "3")
    call("serve", 'model = "bundle"\nport = 9000\naccess-log = true\ntimeout = 2.5\n')
    assert (given["reference"], given["port"], given["access_log"]) == ("bundle", 9000, True)
    assert given["timeout_s"] == 2.5


def test_the_environment_comes_before_the_file_and_after_an_option(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "environment")
    call("score", 'run-id = "file"\n', "x.npy", "scores")
    assert given["run_id"] == "environment"
    call("score", 'run-id = "file"\n', "x.npy", "scores", "--run-id", "option")
    assert given["run_id"] == "option"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epoch = 3", "'epoch', which is no option of vae train; did you mean 'epochs'?"),
        ("zzz = 3", "'zzz', which is no option of vae train; vae config shows all keys"),
        ("name = 'x'", "'name', which is no option of vae train; did you mean 'run-name'?"),
        ("config = 'x'", "'config', which is no option of vae train; vae config shows all keys"),
        (
            "[train]\nlatent-dim = 3",
            "'latent-dim' in [train], which is no setting there; vae config shows all keys",
        ),
        (
            "[model]\nlatent_dims = 3",
            "'latent_dims' in [model], which is no setting there; did you mean 'latent-dim'?",
        ),
        ("[trian]\n", f"the section [trian]; the sections are {', '.join(SECTIONS)}"),
        ("epochs = 3\n[train]\nepochs = 3", "'epochs' twice"),
        ("latent-dim = 3\nlatent_dim = 3", "'latent-dim' twice"),
        ("epochs = 2.5", "a bad 'epochs': '2.5' is not a valid integer."),
        ("epochs = true", "a bad 'epochs': 'true' is not a valid integer."),
        ("epochs = 0", "a bad 'epochs': 0 is not in the range x>=1."),
        ("kl-weight = nan", "a bad 'kl-weight': 'nan' is not a finite number."),
        ("hidden-dims = [1.5]", "a bad 'hidden-dims': '1.5' is not a list of widths such as "),
        ("epochs = 1979-05-27", "a bad 'epochs': '1979-05-27' is not a valid integer."),
        ("epochs = [{a = 1}]", "a bad 'epochs': \"{'a': 1}\" is not a valid integer."),
        ("data = ''", "a bad 'data': it must have a name, got ''"),
        ("preset = 'exmaple'", "a bad 'preset': 'exmaple' is not one of "),
    ],
)
def test_a_bad_entry_is_refused(given: Given, content: str, message: str) -> None:
    assert refusal("train", content).startswith(f"run.toml has {message}")
    assert given == {}


def test_a_section_for_a_command_without_any_is_refused(given: Given) -> None:
    message = "run.toml has the section [train]; there are none"
    assert refusal("serve", "[train]\nepochs = 3\n").startswith(message)


@pytest.mark.parametrize(
    ("command", "content", "key"),
    [
        ("train", "[promote]\nmargin = -1", "margin"),
        ("train", "margin = 'wide'", "margin"),
        ("train", "[export]\nprecision = 'fp8'", "precision"),
        ("promote", "[model]\nlatent-dim = 0", "latent-dim"),
        ("promote", "[data]\ndata = ''", "data"),
        ("promote", "preset = 'exmaple'", "preset"),
    ],
    ids=lambda value: str(value).replace("\n", " "),
)
def test_a_bad_value_of_another_command_s_setting_is_refused(
    given: Given, command: str, content: str, key: str
) -> None:
    assert refusal(command, content).startswith(f"run.toml has a bad {key!r}: ")
    assert given == {}


def test_a_bad_entry_is_refused_though_an_option_overrides_it(given: Given) -> None:
    with pytest.raises(click.BadParameter, match=r"run\.toml has a bad 'epochs'"):
        call("train", "epochs = 0", "--epochs", "3")


def test_a_file_that_is_no_toml_is_refused(given: Given) -> None:
    assert refusal("train", "[data").startswith("run.toml is no TOML file: Expected ']' ")
    Path("run.toml").write_bytes(b"\xff = 1")
    with pytest.raises(click.BadParameter, match=r"run\.toml is no TOML file: 'utf-8' codec"):
        cli.main(["train", "--config", "run.toml"], standalone_mode=False)
    with pytest.raises(click.BadParameter, match=r"no file none\.toml"):
        cli.main(["train", "--config", "none.toml"], standalone_mode=False)
    assert given == {}


def test_the_settings_of_a_bundle_are_taken(given: Given) -> None:
    cli.main(["train", "--config", str(SEALED), "--epochs", "7"], standalone_mode=False)
    assert (given["preset"], given["hidden_dims"], given["latent_dim"]) == ("default", (16,), 3)
    assert given["epochs"] == 7


def test_a_folder_that_is_no_bundle_is_refused(given: Given, tmp_path: Path) -> None:
    with pytest.raises(VerificationFailed, match="is not a bundle"):
        cli.main(["train", "--config", str(tmp_path)], standalone_mode=False)
    assert given == {}
