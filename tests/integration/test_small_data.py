"""Small real data sets by `vae run` alone, and a collapse that nobody can miss."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from sklearn.datasets import load_digits, load_iris

from pipeline.cli.main import cli
from pipeline.errors import GateRefused
from serving.bundle import CARD, SAMPLES, open_bundle
from serving.mlflow_store import connect

DIGITS = load_digits().images


def run(folder: Path, x: np.ndarray, *options: str) -> Result:
    """Run the main job in `folder` on the rows `x`; only options that a test is about are given."""
    np.save(folder / "x.npy", x)
    bundle = ("--out", str(folder / "bundle"))
    arguments = ["run", "--data", str(folder / "x.npy"), "--threads", "1", *bundle, *options]
    return CliRunner().invoke(cli, arguments)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow(30)
@pytest.mark.parametrize(
    ("x", "kind", "least"),
    [
        pytest.param(DIGITS.astype(np.uint8), "bytes that reach only 16 of 255", 4, id="digits"),
        pytest.param(
            (DIGITS / 255).astype(np.float32), "numbers that reach only 0.06", 16, id="small"
        ),
        pytest.param(load_iris().data, "reals", 1, id="iris"),
    ],
)
def test_small_real_data_train_to_a_model_that_uses_its_latents(
    tmp_path: Path, x: np.ndarray, kind: str, least: int
) -> None:
    result = run(tmp_path, x)
    assert result.exit_code == 0, result.output
    line = json.loads(result.stdout)
    assert line["decision"] == "promoted"
    assert line["active_units"] >= line["informative_units"] >= least
    assert line["warnings"] == []
    assert kind in result.stderr
    assert "these are few rows: each epoch passes over them" in result.stderr
    bundle = open_bundle(tmp_path / "bundle")
    low, high = bundle.manifest.data["range"]
    assert (low, high) == (x.astype(np.float32).min(), x.astype(np.float32).max())
    if x.ndim == 3:
        with Image.open(bundle.path / SAMPLES) as samples:
            inner = np.asarray(samples)[2:50, 2:50]  # the first sample, enlarged
        assert inner.max() > 128


def equal_rows() -> np.ndarray:
    return np.broadcast_to(np.arange(0, 250, 10, dtype=np.uint8).reshape(5, 5), (200, 5, 5))


def test_a_collapse_is_said_on_the_screen_in_the_card_and_in_mlflow_and_refused(
    tmp_path: Path,
) -> None:
    """The posterior of equal rows is the same for each: no latent can tell anything."""
    result = run(tmp_path, equal_rows(), "--epochs", "2")
    assert isinstance(result.exception, GateRefused)
    assert result.exception.exit_code == 5
    assert "0 latents are active, --min-active-units is 1" in str(result.exception)
    line: dict[str, Any] = json.loads(result.stdout)
    assert line["decision"] == "refused"
    assert line["active_units"] == 0
    (warning, *_) = line["warnings"]
    assert warning.startswith("no latent is active (posterior collapse)")
    assert result.stderr.count(f"warning: {warning}") == 2  # when it is found, and at the end
    assert f"> **Warning:** {warning}." in (tmp_path / "bundle" / CARD).read_text()
    client = connect()
    tags = client.get_run(line["run_id"]).data.tags
    assert warning in tags["warnings"]
    assert f"\n\n> **Warning:** {warning}." in tags["mlflow.note.content"]
    assert warning in client.get_model_version("vae", line["version"]).description
    assert "candidate" in client.get_registered_model("vae").aliases
    assert "champion" not in client.get_registered_model("vae").aliases


def test_a_collapsed_model_is_promoted_if_that_is_wanted(tmp_path: Path) -> None:
    result = run(tmp_path, equal_rows(), "--epochs", "2", "--min-active-units", "0")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["decision"] == "promoted"


def test_a_training_that_ends_too_early_says_so_everywhere(tmp_path: Path) -> None:
    result = run(tmp_path, DIGITS.astype(np.uint8), "--epochs", "3", "--no-promote")
    assert result.exit_code == 0, result.output
    line = json.loads(result.stdout)
    warning = next(text for text in line["warnings"] if "validation was still improving" in text)
    assert "with --epochs 500" in warning  # 8 steps in an epoch, 4,000 at least
    assert f"warning: {warning}" in result.stderr
    assert f"> **Warning:** {warning}." in (tmp_path / "bundle" / CARD).read_text()
    assert warning in connect().get_run(line["run_id"]).data.tags["warnings"]
