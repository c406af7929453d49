"""A deployment is written whole or not at all, and its command is one that vae takes."""

import ast
import json
import shlex
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pipeline.cli.main import cli
from serving import deploy
from serving.bundle import Bundle
from serving.deploy import TARGETS, DeployTarget, write_deployment
from serving.errors import UsageRefused, VaeError
from serving.source import Source
from tests.serving.deployments import OPERATIONS, argument, container


@pytest.mark.parametrize("version", [None, "7"], ids=["a bundle folder", "a version"])
def test_lists_the_files_it_wrote(bundle: Bundle, tmp_path: Path, version: str | None) -> None:
    source = Source(bundle, version and "vae", version)
    triton = [(f"{name}/config.pbtxt", f"{name}/{version or 1}/model.onnx") for name in OPERATIONS]
    inside = [f"bundle/{path.name}" for path in bundle.path.iterdir()] if version is None else []
    expected: dict[DeployTarget, list[str]] = {
        "triton": [name for pair in triton for name in pair],
        "kserve": ["inferenceservice.yaml"],
        "docker": ["Dockerfile", ".dockerignore", *inside],
    }
    assert set(expected) == set(TARGETS)
    for target, names in expected.items():
        out = tmp_path / target
        assert write_deployment(source, target, out) == tuple(sorted(names))
        found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
        assert found == set(names)


def test_an_empty_folder_is_filled_and_a_missing_parent_made(
    registered: Source, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o700)
    deep = tmp_path / "a" / "b"
    for out in (empty, deep):
        assert write_deployment(registered, "docker", out) == (".dockerignore", "Dockerfile")
        assert out.stat().st_mode & 0o777 == 0o755


def test_a_folder_with_a_file_a_file_and_the_working_folder_are_refused(
    registered: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, file, working = tmp_path / "full", tmp_path / "file", tmp_path / "working"
    full.mkdir()
    (full / ".hidden").write_text("mine")
    file.write_text("mine")
    working.mkdir()
    monkeypatch.chdir(working)
    for out, message in (
        (full, "full exists and is not an empty folder: name a new folder"),
        (file, "file exists and is not an empty folder: name a new folder"),
        (Path("."), "is the working folder"),
    ):
        with pytest.raises(UsageRefused, match=message):
            write_deployment(registered, "kserve", out)
    assert [path.read_text() for path in (full / ".hidden", file)] == ["mine", "mine"]
    assert list(working.iterdir()) == []


@pytest.mark.parametrize("target", TARGETS)
def test_a_write_that_fails_leaves_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: DeployTarget
) -> None:
    before = sorted(tmp_path.iterdir())

    def fail(*args: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(VaeError, match=r"cannot write .*out: No space left on device"):
        write_deployment(Source(bundle), target, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("version", ["0", "-1", "../up", "1\n", "", "1" * 30, "٣"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_version_that_is_no_positive_number_is_refused(
    bundle: Bundle, tmp_path: Path, target: DeployTarget, version: str
) -> None:
    with pytest.raises(UsageRefused, match="version must be a positive whole number, got"):
        write_deployment(Source(bundle, "vae", version), target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_but_the_standard_library_and_serving_is_imported() -> None:
    tree = ast.parse(Path(deploy.__file__).read_text())
    assert not [
        node for node in ast.walk(tree) if isinstance(node, ast.Import) and node not in tree.body
    ]
    modules = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name) or ""
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert "json" in modules
    assert {name.split(".")[0] for name in modules} <= {*sys.stdlib_module_names, "serving"}


@pytest.mark.parametrize("target", ["docker", "kserve"])
def test_the_command_is_one_that_vae_takes(
    registered: Source, tmp_path: Path, target: DeployTarget
) -> None:
    write_deployment(registered, target, tmp_path / "out")
    if target == "docker":
        command = json.loads(argument(tmp_path / "out", "CMD"))
    else:
        only = container(registered, tmp_path / "again")
        command = only["command"] + only["args"]
    assert command[:2] == ["vae", "serve"]
    serve = cli.commands["serve"]
    parsed = serve.make_context("serve", command[2:]).params
    assert "models:/vae/7" in parsed.values()
    assert {"0.0.0.0", 8080, 8081} <= set(parsed.values())


@pytest.mark.parametrize("target", ["docker", "kserve"])
def test_a_container_of_an_alias_follows_it(
    registered: Source, tmp_path: Path, target: DeployTarget
) -> None:
    write_deployment(registered, target, tmp_path / "out", alias="champion")
    (file,) = (f for f in (tmp_path / "out").iterdir() if f.name != ".dockerignore")
    assert f'"models:/{registered.name}@champion"' in file.read_text()


def test_the_command_line_offers_every_target() -> None:
    (option,) = (o for o in cli.commands["deploy"].params if o.name == "target")
    assert isinstance(option.type, click.Choice)
    assert [*option.type.choices] == [*TARGETS]


@pytest.mark.parametrize("target", ["triton", "kserve", "docker"])
def test_the_command_prints_the_next_steps(
    bundle: Bundle, tmp_path: Path, target: DeployTarget
) -> None:
    out = tmp_path / "my files"
    arguments = ["deploy", "--model", str(bundle.path), "--target", target, "--out", str(out)]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0
    steps = [line.removeprefix("next: ") for line in result.stderr.splitlines()]
    words = [shlex.split(step, comments=True) for step in steps]
    programs = {
        "triton": ["tritonserver"],
        "kserve": ["docker push", "kubectl apply"],
        "docker": ["pip wheel", "docker build", "docker run"],
    }
    assert all(step.startswith(name) for step, name in zip(steps, programs[target], strict=True))
    named = {word.rpartition("=")[2] for step in words for word in step}
    assert {str(out), str(out / "inferenceservice.yaml")} & named
    if target == "docker":
        checkout = Path(words[0][-1])
        assert (checkout / "pyproject.toml").is_file()
        assert words[1][3] == words[2][-1]  # the image that is built is the one that runs
