import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
import pytest
from click.testing import CliRunner

from pipeline.cli.config_options import chosen
from pipeline.cli.main import cli
from pipeline.config import (
    DataConfig,
    EvaluateConfig,
    ExportConfig,
    ModelConfig,
    PromoteConfig,
    TrainConfig,
    configure,
    settings_of,
)
from pipeline.presets import PRESETS, preset_settings
from serving.cli.command import CONTEXT, Command

SECTIONS = {
    "run": (DataConfig, ModelConfig, TrainConfig, EvaluateConfig, PromoteConfig),
    "train": (DataConfig, ModelConfig, TrainConfig, EvaluateConfig),
    "evaluate": (EvaluateConfig,),
    "export": (ExportConfig,),
    "promote": (PromoteConfig,),
}
SETTINGS = {
    f"{command}-{name}": (command, name)
    for command, sections in SECTIONS.items()
    for section in sections
    for name, *_ in settings_of(section)
}


def setting_of(command: str, name: str) -> tuple[Any, Any, Any]:
    """Type, limits and default."""
    rows = {row[0]: row[1:] for section in SECTIONS[command] for row in settings_of(section)}
    return rows[name]


def find_option(command: str, name: str) -> click.Option:
    (found,) = (param for param in cli.commands[command].params if param.name == name)
    assert isinstance(found, click.Option)
    return found


Given = dict[str, Any]


@pytest.fixture(autouse=True)
def given(monkeypatch: pytest.MonkeyPatch) -> Given:
    """The settings that a command was called with; the command itself does not run."""
    values: Given = {}
    for command in cli.commands.values():
        monkeypatch.setattr(command, "callback", lambda **settings: values.update(settings))
    return values


def call(*arguments: str) -> None:
    cli.main(list(arguments), standalone_mode=False)


def refusal(*arguments: str) -> str:
    """Run a command that must end with a usage error, and return its message."""
    result = CliRunner().invoke(cli, list(arguments))
    assert result.exit_code == 2
    assert result.stdout == ""
    return result.stderr.splitlines()[-1]


@pytest.mark.parametrize(("command", "name"), SETTINGS.values(), ids=SETTINGS.keys())
def test_every_setting_is_an_option_with_its_help_and_default(command: str, name: str) -> None:
    _, limits, default = setting_of(command, name)
    option = find_option(command, name)
    assert option.opts == [f"--{name.replace('_', '-')}"]
    assert option.default is None  # so that a preset can tell what was given
    shown = re.fullmatch(r"(.*)  \[default: (.*?)(, or the preset's)?\]", str(option.help))
    assert shown is not None
    assert shown[1] == limits.help
    text = "" if shown[2] == "none" and default in ("", ()) else shown[2]
    assert option.type.convert(text, option, None) == default
    assert (shown[3] is not None) == (name in preset_settings())


@pytest.mark.parametrize("command", SECTIONS)
def test_help_shows_every_setting(command: str) -> None:
    shown = CliRunner().invoke(cli, [command, "--help"]).stdout
    text = " ".join(shown.split())
    assert "None" not in text
    for section in SECTIONS[command]:
        for name, _, limits, _ in settings_of(section):
            assert f"--{name.replace('_', '-')} " in text
            assert f" {limits.help} [default: " in text


def test_a_closed_choice_offers_what_its_type_allows() -> None:
    for command, name in SETTINGS.values():
        kind = setting_of(command, name)[0]
        if get_origin(kind) is Literal:
            option = find_option(command, name)
            assert isinstance(option.type, click.Choice)
            assert tuple(option.type.choices) == get_args(kind)
    assert isinstance(presets := find_option("run", "preset").type, click.Choice)
    assert list(presets.choices) == list(PRESETS)


def bounds() -> Iterator[Any]:
    """For each limit of `vae run`'s settings yield a value just beyond it and one just within."""
    for section in SECTIONS["run"]:
        for name, kind, limits, _ in settings_of(section):
            option = f"--{name.replace('_', '-')}"
            step = 1e-9 if kind is float else 1
            if limits.min is not None:
                low = limits.min if kind is float else int(limits.min)
                refused, taken = (low, low + step) if limits.open_min else (low - step, low)
                yield pytest.param(option, refused, taken, id=f"{name} below")
            if limits.max is not None:
                high = limits.max if kind is float else int(limits.max)
                yield pytest.param(option, high + step, high, id=f"{name} above")


@pytest.mark.parametrize(("option", "refused", "taken"), [*bounds()])
def test_limits_are_kept(given: Given, option: str, refused: float, taken: float) -> None:
    assert refusal("run", f"{option}={refused}").startswith(
        f"Error: Invalid value for '{option}': "
    )
    assert given == {}
    call("run", f"{option}={taken}")
    value = given[option[2:].replace("-", "_")]
    assert value == ((taken,) if option == "--hidden-dims" else taken)


USAGE_ERRORS = {
    "--latent-dim 0": "Invalid value for '--latent-dim': 0 is not in the range x>=1.",
    "--epochs 0": "Invalid value for '--epochs': 0 is not in the range x>=1.",
    "--epochs 1.5": "Invalid value for '--epochs': '1.5' is not a valid integer.",
    "--learning-rate 0": "Invalid value for '--learning-rate': 0.0 is not in the range x>0.",
    "--learning-rate nan": "Invalid value for '--learning-rate': 'nan' is not a finite number.",
    "--valid-fraction nan": "Invalid value for '--valid-fraction': 'nan' is not a finite number.",
    "--kl-weight inf": "Invalid value for '--kl-weight': 'inf' is not a finite number.",
    "--hidden-dims x": (
        "Invalid value for '--hidden-dims': 'x' is not a list of widths such as 512,256"
    ),
    "--hidden-dims 64,,32": (
        "Invalid value for '--hidden-dims': '64,,32' is not a list of widths such as 512,256"
    ),
    "--hidden-dims 64,0": (
        "Invalid value for '--hidden-dims': widths must be at least 1, got '64,0'"
    ),
    "--likelihood poisson": (
        "Invalid value for '--likelihood': 'poisson' is not one of 'auto', 'bernoulli', "
        "'continuous-bernoulli', 'gaussian', 'discretized-logistic', 'categorical', "
        "'mixed'."
    ),
    "--preset exmaple": (
        "Invalid value for '--preset': 'exmaple' is not one of 'default', 'seed', 'example', "
        "'burda', 'conv', 'resnet'."
    ),
    "--device tpu": "Invalid value for '--device': 'tpu' is not one of 'cpu', 'cuda', 'auto'.",
    "--threads 0": "Invalid value for '--threads': 0 is not in the range x>=1.",
    "--epoch 3": "No such option '--epoch'. Did you mean '--epochs'?",
    "--epochs": "Option '--epochs' requires an argument.",
    "3": "Got unexpected extra argument (3)",
}


@pytest.mark.parametrize("arguments", USAGE_ERRORS)
def test_a_usage_error_says_what_is_allowed(arguments: str) -> None:
    assert refusal("run", *arguments.split()) == f"Error: {USAGE_ERRORS[arguments]}"


@pytest.mark.parametrize(
    ("text", "widths"),
    [("512,256", (512, 256)), ("64", (64,)), (" 8 , 4 ", (8, 4)), ("", ())],
    ids=["two", "one", "spaces", "no layer"],
)
def test_widths_are_separated_by_commas(given: Given, text: str, widths: tuple[int, ...]) -> None:
    call("run", "--hidden-dims", text)
    assert given["hidden_dims"] == widths


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("mean radius, area", ("mean radius", "area")),
        ('a,"b, in m",a', ("a", "b, in m")),
        (' a , "b, in m" , c ', ("a", "b, in m", "c")),
        ('a," b","c "", d , e "', ("a", " b", 'c ", d , e ')),
        ("", ()),
    ],
    ids=["two", "a comma in a name", "spaces around", "spaces in quotes", "none"],
)
def test_columns_are_separated_by_commas(given: Given, text: str, names: tuple[str, ...]) -> None:
    call("train", "--columns", text, "--label", "kind of")
    assert (given["columns"], given["label"]) == (names, "kind of")


def test_what_was_not_given_is_left_to_the_preset(given: Given) -> None:
    call("run", "--preset", "seed", "--epochs", "3")
    settings = {name: given[name] for command, name in SETTINGS.values() if command == "run"}
    assert settings.pop("epochs") == 3
    assert set(settings.values()) == {None}
    assert given["preset"] == "seed"


@pytest.mark.parametrize(
    "spelling", ["--nll-samples", "--nll_samples"], ids=["hyphen", "underscore"]
)
@pytest.mark.parametrize("command", ["run", "train", "evaluate"])
def test_options_are_taken_with_underscores(given: Given, command: str, spelling: str) -> None:
    call(command, spelling, "3")
    assert given["nll_samples"] == 3


@pytest.mark.parametrize(
    ("arguments", "no_promote"),
    [
        ("", False),
        ("--no-promote", True),
        ("--no-promote true", True),
        ("--no-promote false", False),
        ("--no_promote true", True),
        ("--no_promote false", False),
    ],
)
def test_a_flag_of_run_is_taken_as_mlflow_writes_it(
    given: Given, arguments: str, no_promote: bool
) -> None:
    call("run", "--epochs", "3", *arguments.split(), "--seed", "5")
    assert given["no_promote"] is no_promote
    assert (given["epochs"], given["seed"]) == (3, 5)


@pytest.mark.parametrize(
    ("arguments", "output_bias"),
    [
        ("", True),
        ("--output-bias", True),
        ("--output-bias true", True),
        ("--output-bias false", False),
        ("--output_bias False", False),
        ("--no-output-bias", False),
        ("--no_output_bias", False),
        ("--no-output-bias false", True),
        ("--no-output-bias true", False),
    ],
)
def test_a_preset_s_flag_can_be_switched_off(
    given: Given, arguments: str, output_bias: bool
) -> None:
    call("run", "--preset", "conv", *arguments.split(), "--seed", "5")
    config = configure("conv", **chosen({"output_bias": given["output_bias"]}))
    assert config.model.output_bias is output_bias
    assert given["seed"] == 5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", {}),
        ("--flag", {"flag": True}),
        ("--flag true", {"flag": True}),
        ("--flag false", {}),
        ("--flag 3", {"flag": True, "version": "3"}),
        ("3 --flag", {"flag": True, "version": "3"}),
        ("3 --flag false", {"version": "3"}),
        ("--flag true 3", {"flag": True, "version": "3"}),
        ("--flag true true", {"flag": True, "version": "true"}),
        ("--flag false --dry-run true", {"dry_run": True}),
        ("--dry_run true", {"dry_run": True}),
        ("--flag --dry-run", {"flag": True, "dry_run": True}),
        ("--out true", {"out": "true"}),
        ("true", {"version": "true"}),
    ],
)
def test_a_flag_takes_true_and_false_and_leaves_arguments(
    arguments: str, expected: dict[str, Any]
) -> None:
    seen: dict[str, Any] = {}

    @click.command(cls=Command, context_settings=CONTEXT)
    @click.argument("version", default="@candidate")
    @click.option("--flag", is_flag=True)
    @click.option("--dry-run", is_flag=True)
    @click.option("--out")
    def promote(**values: Any) -> None:
        seen.update(values)

    promote.main(arguments.split(), standalone_mode=False)
    absent = {"version": "@candidate", "flag": False, "dry_run": False, "out": None}
    assert seen == absent | expected


def test_a_path_to_data_is_made_whole_and_the_name_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist").mkdir()
    (tmp_path / "x.npy").touch()
    (tmp_path / "link.npy").symlink_to("x.npy")
    assert chosen({"data": "mnist/../x.npy"}) == {"data": str(tmp_path / "x.npy")}
    assert chosen({"data": "mnist/.."}) == {"data": str(tmp_path)}
    assert chosen({"data": "."}) == {"data": str(tmp_path)}
    assert chosen({"data": "link.npy"}) == {"data": str(tmp_path / "link.npy")}
    assert chosen({"data": "mnist", "epochs": None}) == {"data": "mnist"}
    assert chosen({"data": "x.npy"}) == {"data": str(tmp_path / "x.npy")}
    assert chosen({"data": "./mnist"}) == {"data": str(tmp_path / "mnist")}
    assert chosen({"data": "typo.npy"}) == {"data": "typo.npy"}
    assert chosen({}) == {}
