import json
from pathlib import Path

import pytest
import torch

from pipeline.model.checkpoint import (
    checkpoint_of,
    load_checkpoint,
    save_checkpoint,
    weights_bytes,
)
from serving.bundle import WEIGHTS, Bundle, open_bundle
from serving.errors import VerificationFailed
from tests.serving.conftest import SCHEMA_1
from tests.trained_models import Trained


def test_the_files_and_the_bundle_give_the_same_model(
    trained: Trained, sealed: Bundle, tmp_path: Path
) -> None:
    checkpoint = trained[0]
    save_checkpoint(tmp_path, checkpoint)
    for loaded in (load_checkpoint(tmp_path), checkpoint_of(sealed)):
        assert weights_bytes(loaded.model) == weights_bytes(checkpoint.model)
        assert loaded.config == checkpoint.config
        assert loaded.data == checkpoint.data
        assert not loaded.model.training


def test_weights_of_another_model_are_refused(trained: Trained, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, trained[0])
    content = json.loads((tmp_path / "checkpoint.json").read_text())
    content["config"]["model"]["latent_dim"] = 4
    (tmp_path / "checkpoint.json").write_text(json.dumps(content))
    with pytest.raises(VerificationFailed, match="does not fit the model"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_that_would_run_code_is_not_loaded(trained: Trained, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, trained[0])
    torch.save({"weight": print}, tmp_path / WEIGHTS)
    with pytest.raises(
        VerificationFailed, match="does not fit the model: Weights only load failed"
    ):
        load_checkpoint(tmp_path)


def test_a_bundle_of_schema_1_whose_config_says_auto_is_loaded() -> None:
    bundle = open_bundle(SCHEMA_1)
    assert bundle.manifest.config["model"]["likelihood"] == "auto"
    assert checkpoint_of(bundle).model.settings.likelihood == "bernoulli"
