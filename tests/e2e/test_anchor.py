"""The example preset reaches the loss that others have published for the same model.

pytorch/examples' VAE is widely reported to have a test loss of 105.6 after ten epochs.
"""

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import run_vae


@pytest.mark.slow(50)
def test_example_preset_reaches_the_published_test_loss(tmp_path: Path) -> None:
    # one thread: two would wait for each other where two processes of tests share two cores
    arguments = ("--preset", "example", "--epochs", "10", "--nll-samples", "4", "--threads", "1")
    result = run_vae(tmp_path, "train", *arguments)
    assert result.returncode == 0, result.stderr
    assert 105.0 <= -json.loads(result.stdout)["elbo"] <= 106.0
    assert "training on 60,000 rows of mnist" in result.stderr
    assert "test loss 105." in result.stderr
