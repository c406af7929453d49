"""Other runtimes run a bundle's graphs, within the budgets of its golden rows."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.parity.check import provider_fault
from serving.bundle import Bundle, open_bundle
from serving.client import Client
from serving.engine import Engine
from serving.noise import MAX_SEED, draw_rows
from tests.clients.runtimes import (
    HERE,
    NODE,
    OLDEST,
    ROOT,
    RUNTIMES,
    WEB,
    WEBGPU,
    forms_without_float64,
    webgpu_variables,
)
from tests.serving.running import serve
from tests.trained_models import (
    draw_images,
    load,
    make_bundle,
    tiny_config,
    train_checkpoint,
)

MIXED = ROOT / "tests/serving/mixed_bundle"
EXACT = ("onnxruntime", "oldest")
"""How the names of runtimes begin that have float64 and the operators of mixed tables."""
MILLION_ROWS = 333_334
"""Of three columns, so that they are a million values."""
DIGEST = """
import hashlib, sys, numpy
from serving.noise import draw_rows
eps = draw_rows(int(sys.argv[1]), 0, int(sys.argv[2]), 3)
print(numpy.__version__, hashlib.sha256(eps.tobytes()).hexdigest())
"""


@pytest.fixture(params=["sealed", "sealed_table"])
def model(request: pytest.FixtureRequest) -> Bundle:
    """Return the bundle of a model of images, and of one of a table."""
    found: Bundle = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_operation_is_within_its_budget(runtime: str, model: Bundle) -> None:
    found = RUNTIMES[runtime](model)
    exact = runtime not in ("OpenVINO", "WebGPU (plugin)")
    forms = model.all_forms if exact else forms_without_float64(model)
    expected = {f"{label}.{t.name}" for label, form in forms.items() for t in form.outputs}
    assert found.shares.keys() == expected
    assert {name: share for name, share in found.shares.items() if not share <= 1} == {}


@pytest.mark.parametrize("runtime", [name for name in RUNTIMES if name.startswith(EXACT)])
def test_every_operation_of_a_mixed_table_is_within_its_budget(runtime: str) -> None:
    mixed = open_bundle(MIXED)
    found = RUNTIMES[runtime](mixed)
    assert {"draw", "impute", "explain"} < mixed.operations.keys()
    assert {name.partition(".")[0] for name in found.shares} == mixed.all_forms.keys()
    assert {name: share for name, share in found.shares.items() if not share <= 1} == {}


def test_the_oldest_runtime_draws_the_bundle_s_noise(model: Bundle) -> None:
    found = RUNTIMES["oldest onnxruntime"](model)
    assert found.version == "1.15.0"
    assert len(found.noise) == 6
    assert all(found.noise.values()), found.noise


def test_openvino_takes_every_node_of_a_graph_without_float64(model: Bundle) -> None:
    placement = RUNTIMES["OpenVINO"](model).placement
    assert len(placement["score_portable.onnx"]) == 1
    for form in forms_without_float64(model).values():
        assert placement[form.graph].keys() == {"OpenVINOExecutionProvider"}, form.graph


@pytest.mark.parametrize("seed", [0, 7, MAX_SEED])
def test_a_million_values_of_noise_are_the_same_everywhere(
    sealed: Bundle, tmp_path: Path, seed: int
) -> None:
    """In WebAssembly, and in numpy of another generation."""
    assert sealed.manifest.latent_dim == 3
    eps = draw_rows(seed, 0, MILLION_ROWS, 3)
    digest = hashlib.sha256(eps.tobytes()).hexdigest()
    shutil.copy(HERE / "noise.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(WEB)
    what = (str(seed), str(MILLION_ROWS))
    drawn = run([NODE, "noise.mjs", str(sealed.path), *what], tmp_path, {})
    assert drawn.stdout.split() == [digest]
    old = run([sys.executable, "-c", DIGEST, *what], tmp_path, {"PYTHONPATH": f"{OLDEST}:{ROOT}"})
    assert old.stdout.split() == ["1.26.4", digest]
    assert np.__version__ >= "2"


def test_check_compares_a_plugin_s_device_with_torch(bundle: Bundle, tmp_path: Path) -> None:
    done = vae(tmp_path, "check", bundle.path, "--device", "webgpu")
    assert done.returncode == 0, done.stderr
    report = bundle.read_json("parity.json")
    assert (report["verdict"], report["devices"]) == ("passed", ["webgpu"])
    assert {row["provider"] for row in report["comparisons"]} == {"WebGpuExecutionProvider"}
    operations = {row["operation"] for row in report["comparisons"]}
    assert operations == forms_without_float64(bundle).keys()
    assert [row["operation"] for row in report["elbo"]] == ["score_portable"]
    assert report["placement"]["webgpu"]["WebGpuExecutionProvider"] > 50


def test_a_plugin_s_device_computes_for_every_command(sealed: Bundle, tmp_path: Path) -> None:
    library = WEBGPU / "onnxruntime_ep_webgpu" / "libonnxruntime_providers_webgpu.so"
    np.save(tmp_path / "x.npy", sealed.golden()["score.x"])
    made: dict[str, dict[str, Any]] = {}
    for name, device in (("cpu", "cpu"), ("webgpu", f"webgpu={library}")):
        use = ("--model", sealed.path, "--device", device)
        for command in (
            ("sample", "--count", "5", "--seed", "7", "--out", f"{name}.npy"),
            ("score", "x.npy", f"{name}-scores", "--num-samples", "2", "--seed", "7"),
        ):
            done = vae(tmp_path, *command, *use)
            assert done.returncode == 0, done.stderr
        made[name] = {"x_loc": np.load(tmp_path / f"{name}.npy")}
        made[name]["elbo"] = pq.read_table(tmp_path / f"{name}-scores")["elbo"].to_numpy()
    golden = sealed.golden()
    for value, key in (("x_loc", "sample.x_loc.budget"), ("elbo", "score_portable.elbo.budget")):
        difference = np.abs(made["cpu"][value] - made["webgpu"][value]).max()
        assert 0 < difference <= 2 * golden[key]


def test_the_server_computes_on_a_plugin_s_device(sealed: Bundle, tmp_path: Path) -> None:
    eps = draw_rows(7, 0, 5, sealed.manifest.latent_dim)
    with (
        serve(tmp_path, sealed.path, "--device", "webgpu", **webgpu_variables()) as running,
        Client(running.rest) as client,
    ):
        found = client.infer("sample", {"eps": eps}).outputs["x_loc"]
    budget = sealed.golden()["sample.x_loc.budget"]
    assert np.abs(found - Engine(sealed).sample(5, seed=7)).max() <= 2 * budget


def test_a_plugin_without_hardware_is_refused_with_the_next_step(
    sealed: Bundle, tmp_path: Path
) -> None:
    hidden = {"ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "0"}
    done = vae(tmp_path, "check", sealed.path, "--device", "webgpu", **hidden)
    assert done.returncode == 8
    assert "device webgpu is not available: its plugin" in done.stderr
    assert "finds no hardware here that it can use; use --device cpu" in done.stderr


def test_a_device_that_cannot_run_every_node_is_refused(tmp_path: Path) -> None:
    """WebGPU does not round, so that it cannot read codes of categories."""
    data = load(tmp_path, draw_images(400) // 40)
    checkpoint = train_checkpoint(data, tiny_config(data, likelihood="categorical", epochs=1))
    made = make_bundle(tmp_path / "bundle", (checkpoint, data))
    out = ("--out", "y.npy", "--count", "2")
    done = vae(tmp_path, "sample", "--model", made.path, "--device", "webgpu", *out)
    assert done.returncode == 8
    assert "device webgpu was asked for, but encoder.onnx runs Round on CPU" in done.stderr


def test_a_bundle_of_schema_1_is_refused_where_there_is_no_float64(tmp_path: Path) -> None:
    old = ROOT / "tests" / "serving" / "bundle_of_schema_1"
    done = vae(tmp_path, "sample", "--model", old, "--device", "webgpu", "--out", "y.npy")
    assert done.returncode == 8
    assert "score.onnx needs float64" in done.stderr
    assert "run vae migrate" in done.stderr


def test_a_report_of_a_plugin_s_device_counts_for_it_alone(bundle: Bundle, tmp_path: Path) -> None:
    assert vae(tmp_path, "check", bundle.path, "--device", "webgpu").returncode == 0
    report = json.loads((bundle.path / "parity.json").read_text())
    assert provider_fault(report) is None
    assert provider_fault({**report, "devices": ["openvino"]}) == (
        "is of openvino, but WebGpuExecutionProvider computed"
    )


def vae(folder: Path, *arguments: object, **more: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    return run(command, folder, webgpu_variables() | more, check=False)


def run(
    command: list[str], folder: Path, variables: Mapping[str, str], *, check: bool = True
) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, **variables}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done
