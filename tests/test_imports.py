"""Which module may import what: a reader of `serving/` needs neither torch nor the pipeline."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVING = sorted((ROOT / "serving").rglob("*.py"))
HEAVY = {"torch", "mlflow", "onnxruntime", "onnx", "pyarrow", "pyspark"}
ARROW = {
    "array_rows.py",
    "arrow_types.py",
    "job.py",
    "options.py",  # where it says that it is missing
    "columns.py",
    "csv_rows.py",
    "score_summary.py",
    "array_files.py",
    "output.py",
    "rows.py",
    "sampler.py",
    "scorer.py",
    "spark_job.py",
    "spark_frame.py",
    "filesystems.py",
    "row_filter.py",
}


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


def test_help_of_every_command_loads_nothing_heavy() -> None:
    modules = loaded(
        "from pipeline.cli.main import cli\n"
        "for command in (None, *cli.commands):\n"
        "    arguments = ['--help'] if command is None else [command, '--help']\n"
        "    cli.main(arguments, standalone_mode=False)\n"
    )
    assert {"pipeline", "serving", "click"} <= modules
    assert modules & HEAVY == set()


@pytest.mark.parametrize(
    ("module", "needed"),
    [
        ("cli.options", {"click"}),
        ("cli.score", {"click"}),
        ("batch.job", {"pyarrow", "onnxruntime"}),
        ("cli.serve", {"click"}),
        ("client", {"httpx"}),
        ("server.supervisor", {"granian"}),
        ("server.worker", {"grpc", "onnxruntime"}),
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


@pytest.mark.parametrize("module", ["config", "cli.config_options", "data.dataset"])
def test_settings_and_data_load_no_torch(module: str) -> None:
    modules = loaded(f"import pipeline.{module}")
    assert "pipeline" in modules
    assert modules & HEAVY == set()


@pytest.mark.parametrize(
    ("package", "owners"),
    [
        ("pipeline", set()),
        ("torch", set()),
        ("onnx", set()),
        ("mlflow", {"mlflow_store.py", "pyfunc_model.py"}),
        ("granian", {"supervisor.py"}),
        ("grpc", {"grpc_server.py"}),
        ("httpx", {"client.py"}),
        ("opentelemetry", {"tracing.py"}),
        ("orjson", {"http_body.py", "rest_routes.py", "rest_server.py"}),
        ("prometheus_client", {"metrics.py"}),
        ("onnxruntime", {"engine.py", "pyfunc_model.py"}),
        ("pyarrow", ARROW),
        ("fsspec", {"filesystems.py"}),
        ("PIL", {"array_files.py"}),
        ("pyspark", {"spark_job.py", "spark_frame.py"}),
    ],
)
def test_an_optional_package_stands_in_its_own_files(package: str, owners: set[str]) -> None:
    assert {path.name for path in SERVING if package in imported(path.read_text())} == owners


def test_the_model_that_mlflow_loads_stands_alone() -> None:
    source = (ROOT / "serving" / "pyfunc_model.py").read_text()
    assert imported(source) - set(sys.stdlib_module_names) == {"mlflow", "numpy", "onnxruntime"}


@pytest.mark.parametrize(
    "source",
    ["import mlflow.pyfunc as m", "def f():\n    from mlflow import x", "if 1:\n    import mlflow"],
    ids=["at the top", "in a function", "under a condition"],
)
def test_an_import_is_seen_wherever_it_stands(source: str) -> None:
    assert imported(source) == {"mlflow"}
