"""What only a GPU can show: collected where torch finds one, and nowhere else."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import dataset as parts

from pipeline.cli.devices import torch_device
from pipeline.config import configure
from pipeline.evaluation.evaluate import evaluate
from pipeline.parity.check import check_parity
from pipeline.parity.report import ParityReport
from pipeline.registry.device_checks import check_faults
from pipeline.training.loop import train
from serving import sessions
from serving.bundle import Bundle, open_bundle
from serving.client import Client
from serving.engine import Engine
from serving.mlflow_store import connect
from serving.sessions import PROVIDERS
from serving.source import fetch_version
from tests.integration.test_networks import COLOUR, GRAY, draw, small_config
from tests.pipeline.parity.mutations import MUTATIONS, corrupt
from tests.pipeline.registry.versions import register
from tests.serving.running import serve
from tests.trained_models import Trained, load, make_bundle, tiny_config, train_checkpoint

pytestmark = pytest.mark.cuda
NAMED = {mutation.name: mutation for mutation in MUTATIONS}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model whose products are large enough for tensor cores."""
    generator = np.random.default_rng(0)
    x = generator.integers(0, 40, (600, 16, 16), dtype=np.uint8)
    x[np.arange(600), generator.integers(0, 16, 600)] = 230
    rows = load(tmp_path_factory.mktemp("wide"), x)
    return train_checkpoint(rows, tiny_config(rows, hidden_dims=(128,), latent_dim=16)), rows


@pytest.fixture(scope="module")
def wide_bundle(wide: Trained, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("wide") / "bundle", wide)


def check(bundle: Bundle, trained: Trained, device: Any = "cuda") -> ParityReport:
    return check_parity(bundle, trained[0].model, trained[1].test.x, device=device)


def vae(folder: Path, *arguments: object) -> dict[str, Any]:
    """Run a command in a process of its own, which has not loaded torch's libraries."""
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return content


def test_every_node_that_computes_is_on_the_gpu_and_the_outputs_are_torch_s(
    wide_bundle: Bundle,
) -> None:
    engine = Engine(wide_bundle, device="cuda")
    engine.self_check()
    placement = engine.placement()
    assert placement[PROVIDERS["cuda"]] > 4 * placement.get(PROVIDERS["cpu"], 0)


@pytest.mark.parametrize("precision", ["float32", "fp16", "int8"])
def test_parity_passes_on_both_devices(precision: Any, wide: Trained, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", wide, precision)
    report = check(bundle, wide, "all")
    assert report.faults() == []
    assert report.passed
    assert report.environment["gpu"] != "none"
    assert {(row.provider, row.tf32) for row in report.comparisons} == {
        (PROVIDERS["cpu"], False),
        (PROVIDERS["cuda"], False),
        (PROVIDERS["cuda"], True),
    }


def test_parity_of_a_table_passes(trained_table: Trained, tmp_path: Path) -> None:
    report = check(make_bundle(tmp_path / "bundle", trained_table), trained_table)
    assert report.faults() == []


@pytest.fixture(scope="module")
def convolved() -> Trained:
    """A convolutional model with channels enough for tensor cores."""
    rows = draw((16, 16), "bytes")
    settings = {"hidden_dims": (32, 64), "latent_dim": 16, "epochs": 2, "batch_size": 50}
    return train_checkpoint(rows, configure("conv", kl_warmup_steps=1, **settings)), rows


def test_convolutions_are_in_float32_and_tf32_is_caught(
    convolved: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "bundle", convolved)
    assert check(bundle, convolved).faults() == []
    monkeypatch.setattr(sessions, "provider", lambda device, *, tf32: (PROVIDERS[device], {}))
    assert "values" in {fault.rule for fault in check(bundle, convolved).faults()}


@pytest.mark.parametrize(
    ("preset", "likelihood", "shape", "kind"),
    [
        ("default", "gaussian", (7,), "reals"),
        ("seed", "categorical", (7,), "codes"),
        ("example", "continuous_bernoulli", (7,), "unit"),
        ("burda", "bernoulli", GRAY, "bytes"),
        ("conv", "discretized_logistic", GRAY, "bytes"),
        ("resnet", "bernoulli", COLOUR, "bytes"),
    ],
)
def test_parity_of_every_preset_and_likelihood_passes(
    preset: str, likelihood: str, shape: tuple[int, ...], kind: str, tmp_path: Path
) -> None:
    rows = draw(shape, kind)
    trained = train_checkpoint(rows, small_config(preset, likelihood=likelihood)), rows
    report = check(make_bundle(tmp_path / "bundle", trained), trained)
    assert report.faults() == []


@pytest.mark.parametrize("name", ["one weight's sign", "heads swapped, by wires"])
def test_a_corruption_is_caught_on_the_gpu_too(name: str, wide: Trained, tmp_path: Path) -> None:
    bundle = corrupt(make_bundle(tmp_path / "bundle", wide), NAMED[name], wide[0].model)
    assert "values" in {fault.rule for fault in check(bundle, wide).faults()}


def test_tf32_where_float32_is_claimed_is_caught(
    wide: Trained, wide_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime's default: a provider whose options do not say otherwise rounds to ten bits."""
    monkeypatch.setattr(sessions, "provider", lambda device, *, tf32: (PROVIDERS[device], {}))
    report = check(wide_bundle, wide)
    assert {fault.rule for fault in report.faults()} >= {"values", "elbo"}
    assert all(row.passed for row in report.comparisons if row.tf32)


def test_tf32_is_tf32_where_it_is_asked_for(wide: Trained, wide_bundle: Bundle) -> None:
    rows = [
        row
        for row in check(wide_bundle, wide).comparisons
        if (row.rule, row.output, row.rows, row.batch) == ("values", "z_loc", "held-out", 1000)
    ]
    (rounded,), strict = [r for r in rows if r.tf32], [r for r in rows if not r.tf32]
    assert all(rounded.rms_error > 20 * row.rms_error for row in strict)


def test_a_check_on_the_gpu_is_what_the_gate_asks_for(
    wide: Trained, wide_bundle: Bundle, store: Path, tmp_path: Path
) -> None:
    assert register(wide_bundle) == "1"
    said = vae(tmp_path, "check", "models:/vae/1", "--device", "cuda")
    assert said["parity"] == "passed"
    version = fetch_version(connect(), "vae", "1", tmp_path)
    assert [*check_faults(version, ("cpu", "cuda"))] == []


def test_training_on_the_gpu_learns_as_it_does_on_the_cpu(wide: Trained) -> None:
    assert torch_device("auto", 1) == "cuda"
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    there = train(wide[1], wide[0].config, device="cuda")
    assert {value.device.type for value in there.model.state_dict().values()} == {"cpu"}
    x = wide[1].test.x
    elbos = [
        evaluate(model, x, nll_samples=4, seed=0).elbo for model in (wide[0].model, there.model)
    ]
    assert elbos[1] == pytest.approx(elbos[0], rel=0.02)


def test_evaluation_gives_the_same_figures_on_either_device(wide: Trained) -> None:
    x = wide[1].test.x
    here, there = (
        evaluate(wide[0].model, x, nll_samples=500, seed=0, device=device)
        for device in ("cpu", "cuda")
    )
    assert here.held_out is not None
    assert there.held_out is not None
    assert there.held_out.elbo_mean == pytest.approx(here.held_out.elbo_mean, rel=1e-6)
    assert there.nll == pytest.approx(here.nll, abs=0.1)  # other noise
    assert there.active_units == here.active_units


def test_commands_give_on_the_gpu_what_they_give_on_the_cpu(
    wide: Trained, wide_bundle: Bundle, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", wide[1].test.x)
    model = ("--model", wide_bundle.path)
    samples: dict[str, Any] = {}
    scores: dict[str, Any] = {}
    for device in ("cpu", "cuda"):
        vae(tmp_path, "sample", "--seed", 7, *model, "--device", device, "--out", f"{device}.npy")
        vae(tmp_path, "score", "x.npy", device, *model, "--device", device)
        samples[device] = np.load(tmp_path / f"{device}.npy")
        scores[device] = parts.dataset(tmp_path / device).to_table()["elbo"].to_numpy()
    np.testing.assert_allclose(samples["cuda"], samples["cpu"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(scores["cuda"], scores["cpu"], rtol=1e-6)


def test_a_server_computes_on_the_gpu(wide: Trained, wide_bundle: Bundle, tmp_path: Path) -> None:
    x = wide[1].test.x[:100]
    with serve(tmp_path, wide_bundle.path, "--device", "cuda") as running:
        with Client(running.rest) as client:
            found = client.encode(x)
        pids = (running.process.pid, *running.children())
        loaded = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in pids)
    expected = Engine(open_bundle(wide_bundle.path)).encode(x)
    np.testing.assert_allclose(found["z_loc"], expected["z_loc"], rtol=0, atol=1e-5)
    assert "libonnxruntime_providers_cuda" in loaded
