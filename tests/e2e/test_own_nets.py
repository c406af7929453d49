"""A user's nets go from training to serving, which needs none of their code."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests import own_nets
from tests.e2e.conftest import draw_images, run_vae

TINY = ("--epochs", "1", "--latent-dim", "3", "--nll-samples", "2", "--threads", "1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a user's working folder, with data and `nets.py`."""
    np.save(tmp_path / "x.npy", draw_images(200))
    shutil.copy(str(own_nets.__file__), tmp_path / "nets.py")
    return tmp_path


def last_line(folder: Path, *arguments: str) -> dict[str, object]:
    result = run_vae(folder, *arguments)
    assert result.returncode == 0, result.stderr
    content: dict[str, object] = json.loads(result.stdout.splitlines()[-1])
    return content


@pytest.mark.slow(40)
@pytest.mark.parametrize("net", ["gru_both_ways", "attention", "weight_normed"])
def test_a_network_goes_through_every_stage(net: str, folder: Path) -> None:
    trained = last_line(folder, "train", "--data", "x.npy", "--model", f"nets:{net}", *TINY)
    last_line(folder, "export", "--run-id", str(trained["run_id"]), "--out", "bundle")
    assert last_line(folder, "check", "bundle", "--threads", "1")["parity"] == "passed"
    assert last_line(folder, "register", "bundle")["version"] == "1"
    promote = ("promote", "1", "--threads", "1", "--min-active-units", "0")  # one epoch is few
    assert last_line(folder, *promote)["decision"] == "promoted"

    (folder / "nets.py").unlink()  # serving does not need it
    champion = ("--model", "models:/vae@champion", "--threads", "1")
    sampled = last_line(folder, "sample", *champion, "--count", "4", "--out", "grid.png")
    assert sampled["rows"] == 4
    score = ("score", "x.npy", "scores", "--model", "models:/vae@champion")
    scored = last_line(folder, *score)
    assert scored["rows"] == 200


def test_a_network_that_mixes_rows_is_refused_before_training(folder: Path) -> None:
    (folder / "mixed.py").write_text(
        "import nets\n"
        "from torch import nn\n\n\n"
        "def build(spec):\n"
        "    encoder, decoder = nets.batch_normed(spec)\n"
        "    encoder.body[-1] = nn.BatchNorm1d(nets.WIDTH, track_running_stats=False)\n"
        "    return encoder, decoder\n"
    )
    result = run_vae(folder, "train", "--data", "x.npy", "--model", "mixed:build", *TINY)
    assert result.returncode == 2
    said = "model mixed:build cannot be served: encoder.body.2 (BatchNorm1d) mixes rows"
    assert said in result.stderr
    assert "Traceback" not in result.stderr
