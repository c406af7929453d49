"""What is written in two places agrees: requirements, entry points, targets."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml  # type: ignore[import-untyped]
from packaging.requirements import Requirement
from packaging.version import Version

from pipeline.cli.main import cli

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
CONDA: dict[str, Any] = yaml.safe_load((ROOT / "conda.yaml").read_text())
MLPROJECT: dict[str, Any] = yaml.safe_load((ROOT / "MLproject").read_text())
ENTRY_POINTS: dict[str, Any] = MLPROJECT["entry_points"]

RUNTIME = ("client", "files", "otel", "registry", "sign", "train")


def by_name(lines: list[str]) -> dict[str, Requirement]:
    requirements = [Requirement(line) for line in lines]
    return {requirement.name: requirement for requirement in requirements}


def wanted() -> dict[str, Requirement]:
    """What pyproject.toml asks for to run everything, its own extras resolved."""
    extras = PROJECT["optional-dependencies"]
    found = by_name(
        [*PROJECT["dependencies"], *(line for extra in RUNTIME for line in extras[extra])]
    )
    assert found.pop(PROJECT["name"]).extras == {"files", "registry"}
    return found


def pinned() -> dict[str, Requirement]:
    (pip,) = (entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict))
    assert len(by_name(pip)) == len(pip)
    return by_name(pip)


def test_conda_pins_every_package_of_the_project_and_no_other() -> None:
    assert pinned().keys() == wanted().keys()


@pytest.mark.parametrize("name", sorted(wanted()))
def test_a_pin_is_one_version_within_the_project_s_range(name: str) -> None:
    pin, want = pinned()[name], wanted()[name]
    (specifier,) = pin.specifier
    assert specifier.operator == "=="
    assert want.specifier.contains(Version(specifier.version))
    assert str(pin.marker) == str(want.marker)


def test_spark_is_tested_at_a_version_of_its_extra() -> None:
    extras = PROJECT["optional-dependencies"]
    (pin,) = by_name(extras["dev"])["pyspark"].specifier
    want = by_name(extras["spark"])
    assert want["pyspark"].specifier.contains(Version(pin.version))
    assert want[PROJECT["name"]].extras == {"files", "registry"}  # neither torch nor onnx


def test_python_is_the_same_everywhere() -> None:
    (python,) = (entry for entry in CONDA["dependencies"] if str(entry).startswith("python="))
    version = python.removeprefix("python=")
    assert PROJECT["requires-python"] == f">={version}"
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{version.replace('.', '')}"
    assert f"PYTHON ?= python{version}\n" in (ROOT / "Makefile").read_text()


def test_the_project_has_one_name() -> None:
    assert PROJECT["name"] == CONDA["name"] == MLPROJECT["name"] == "vae-pipeline"
    assert MLPROJECT["conda_env"] == "conda.yaml"
    assert PROJECT["scripts"] == {"vae": "pipeline.cli.main:main"}


def test_there_is_an_entry_point_for_each_command_and_main() -> None:
    assert ENTRY_POINTS.keys() == {"main", *cli.commands}


@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_an_entry_point_runs_its_command(entry: str) -> None:
    command = "run" if entry == "main" else entry
    arguments = [
        f"{{{param.name}}}"
        for param in cli.commands[command].params
        if isinstance(param, click.Argument)
    ]
    words = ENTRY_POINTS[entry]["command"].split()
    assert words == ["python", "-m", "pipeline.cli", command, *arguments]


@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_a_declared_parameter_is_one_of_the_command_with_its_default(entry: str) -> None:
    command = cli.commands["run" if entry == "main" else entry]
    params = {param.name: param for param in command.params}
    arguments = {name for name, param in params.items() if isinstance(param, click.Argument)}
    declared = ENTRY_POINTS[entry].get("parameters", {})
    assert declared.keys() == arguments  # mlflow hands options on without a declaration
    for name, content in declared.items():
        if isinstance(content, str):
            assert params[name].required
        else:
            assert content["default"] == params[name].default


def phony_targets(makefile: str) -> list[str]:
    (line,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    return str(line).split()


def make(*targets: str) -> str:
    command = ["make", "--no-print-directory", *targets]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_make_help_lists_every_target_with_what_it_does() -> None:
    makefile = (ROOT / "Makefile").read_text()
    listed = dict(line.split(maxsplit=1) for line in make("help").splitlines())
    assert sorted(listed) == sorted(phony_targets(makefile))
    for target, words in listed.items():
        assert re.search(rf"^{target}:.*## {re.escape(words)}$", makefile, re.MULTILINE)


@pytest.mark.slow
def test_make_alone_gives_help_and_makes_nothing() -> None:
    assert make("--dry-run") == make("--dry-run", "help")


def test_help_lists_every_command_with_an_example() -> None:
    listed = cli.get_help(click.Context(cli, info_name="vae"))
    for name, command in cli.commands.items():
        assert re.search(rf"^  {name} ", listed, re.MULTILINE)
        assert str(command.help).count(f"Example: vae {name}") == 1
