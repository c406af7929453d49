"""Which module may import what: a reader of `serving/` needs neither torch nor the pipeline."""

import ast
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests import module_graph

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "mlflow", "onnxruntime", "onnx", "pyarrow", "pyspark"}
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
    "contracts"
]


def loaded(code: str) -> set[str]:
    """Top-level names of the modules that a new Python has loaded after `code`."""
    code += "\nimport json, sys; print(json.dumps(list(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in json.loads(result.stdout.splitlines()[-1])}


def imported(source: str) -> set[str]:
    """Top-level names that a source imports anywhere, in functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add(str(node.module).split(".")[0])
    return names


@pytest.mark.slow
def test_help_of_every_command_loads_nothing_heavy() -> None:
    modules = loaded(
        "from pipeline.cli.main import cli\n"
        "for command in (None, *cli.commands):\n"
        "    arguments = ['--help'] if command is None else [command, '--help']\n"
        "    cli.main(arguments, standalone_mode=False)\n"
    )
    assert {"pipeline", "serving", "click"} <= modules
    assert modules & {*HEAVY, "numpy"} == set()


@pytest.mark.slow
def test_completion_and_vae_config_load_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("[train]\nepochs = 3\n")
    modules = loaded(
        "from click.shell_completion import BashComplete\n"
        "from pipeline.cli.main import cli\n"
        "shell = BashComplete(cli, {}, 'vae', '_VAE_COMPLETE')\n"
        "assert shell.get_completions(['run', '--preset'], 'se')\n"
        f"arguments = ['config', 'run', '--config', '{tmp_path / 'run.toml'}']\n"
        "cli.main(arguments, standalone_mode=False)\n"
    )
    assert {"pipeline", "serving", "click"} <= modules
    assert modules & HEAVY == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "needed"),
    [
        ("cli.options", {"click"}),
        ("cli.score", {"click"}),
        ("batch.job", {"pyarrow", "onnxruntime"}),
        ("cli.serve", {"click"}),
        ("client", {"httpx"}),
        ("server.supervisor", {"numpy"}),
        ("server.worker", {"hpack", "httptools", "onnxruntime"}),
        ("engine", {"onnxruntime"}),
        ("bundle", {"numpy"}),
        ("io.array_files", {"numpy"}),
        ("noise", {"numpy"}),
        ("operations", {"serving"}),
        ("source", {"serving"}),
    ],
)
def test_serving_loads_neither_the_pipeline_nor_torch_nor_mlflow(
    module: str, needed: set[str]
) -> None:
    modules = loaded(f"import serving.{module}")
    assert needed <= modules
    assert modules & {"pipeline", "torch", "mlflow", "onnx"} == set()


@pytest.mark.slow
@pytest.mark.parametrize("module", ["config", "cli.config_options", "data.dataset"])
def test_settings_and_data_load_no_torch(module: str) -> None:
    modules = loaded(f"import pipeline.{module}")
    assert "pipeline" in modules
    assert modules & HEAVY == set()


def test_the_model_that_mlflow_loads_stands_alone() -> None:
    source = (ROOT / "serving" / "pyfunc_model.py").read_text()
    assert imported(source) - set(sys.stdlib_module_names) == {
        "mlflow",
        "model_signing",  # where VAE_VERIFY_KEY asks for it
        "numpy",
        "onnxruntime",
    }


PLANTED = {
    "pipeline-layers": ("pipeline/model/vae.py", "from pipeline.export import bundle_export"),
    "pipeline-stages": ("pipeline/export/manifest.py", "from pipeline.training import loop"),
    "pipeline-data": ("pipeline/parity/inputs.py", "from pipeline.data import dataset"),
    "pipeline-tracking": ("pipeline/evaluation/plots.py", "from pipeline import tracking"),
    "serving-layers": ("serving/bundle.py", "from serving import engine"),
    "serving-server": ("serving/server/service.py", "from serving.io import rows"),
    "serving-batch": ("serving/io/images.py", "from serving.protocol import messages"),
    "serving-alone": ("serving/engine.py", "def later() -> None:\n    import torch"),
    "pyfunc-alone": ("serving/pyfunc_model.py", "from serving import noise"),
    "frames-alone": ("serving/frames.py", "from serving import errors"),
    "commands": ("pipeline/training/loop.py", "from serving.cli import options"),
    "shared-core": ("pipeline/registry/gate.py", "from serving.batch import scorer"),
    "optional-packages": ("serving/source.py", "def later() -> None:\n    import mlflow"),
    "no-circles": ("serving/io/arrow_types.py", "from serving.io import columns"),
}
"""For each contract, a module and an import in it that the contract forbids."""


def lint(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `lint-imports` on the copy of the project in `folder`."""
    command = "import sys; from importlinter.cli import lint_imports_command; "
    command += "sys.argv[0] = 'lint-imports'; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", command, "--no-logo", "--no-cache", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def project(tmp_path: Path, slow_tier: None) -> Path:
    """A copy of the packages and of the contracts."""
    for name in ("pipeline", "serving"):
        ignored = shutil.ignore_patterns("__pycache__", "mnist")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_every_contract_is_kept(project: Path) -> None:
    result = lint(project)
    assert result.returncode == 0, result.stdout
    assert f"Contracts: {len(PLANTED)} kept, 0 broken." in result.stdout


def test_a_violation_is_planted_for_every_contract() -> None:
    assert [contract["id"] for contract in CONTRACTS] == list(PLANTED)


@pytest.mark.parametrize("contract", PLANTED)
def test_a_planted_violation_breaks_its_contract(project: Path, contract: str) -> None:
    module, violation = PLANTED[contract]
    with (project / module).open("a") as file:
        file.write(f"\n\n{violation}\n")
    result = lint(project, "--contract", contract)
    assert result.returncode == 1
    assert "Contracts: 0 kept, 1 broken." in result.stdout
    assert Path(module).stem in result.stdout


def test_no_package_has_more_than_seven_floors() -> None:
    floors = {package: max(found.values()) for package, found in module_graph.measure().items()}
    assert {"pipeline", "pipeline.parity", "serving", "serving.server"} <= floors.keys()
    assert max(floors.values()) <= 7, floors
