"""The anchor that many have published: pytorch/examples' VAE, ten epochs, test loss 105.6."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_example_preset_reaches_the_published_test_loss(tmp_path: Path) -> None:
    command = ["train", "--preset", "example", "--epochs", "10", "--nll-samples", "4"]
    env = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}"}
    result = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *command],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert 105.0 <= -json.loads(result.stdout)["elbo"] <= 106.0
    assert "training on 60,000 rows of mnist" in result.stderr
    assert "test loss 105." in result.stderr
