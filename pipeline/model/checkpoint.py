"""A trained model and its origin as two files: `weights.pt` and `checkpoint.json`.

A bundle holds the same content, with its manifest in place of `checkpoint.json`, so that a model
can be loaded from either.
"""

import io
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Config
from pipeline.model.parametrizations import fix_weights
from pipeline.model.vae import VAE
from serving.bundle import WEIGHTS, Bundle
from serving.errors import VerificationFailed
from serving.schema import Schema

CHECKPOINT = "checkpoint.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A trained model and its origin."""

    model: VAE
    config: Config
    x_dtype: str
    likelihood: str
    data: Mapping[str, Any]
    """What `Dataset.describe` returns: source, rows and digests."""
    git: Mapping[str, Any]
    run_id: str | None = None

    @property
    def x_shape(self) -> tuple[int, ...]:
        """The shape of a row."""
        return self.model.x_shape


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the two files into an empty `folder`."""
    (folder / WEIGHTS).write_bytes(weights_bytes(checkpoint.model))
    content = {
        "x_shape": checkpoint.model.x_shape,
        "x_dtype": checkpoint.x_dtype,
        "likelihood": checkpoint.likelihood,
        "data": checkpoint.data,
        "git": checkpoint.git,
        "run_id": checkpoint.run_id,
        "config": checkpoint.config.to_json(),
    }
    (folder / CHECKPOINT).write_text(json.dumps(content, indent=1))


def load_checkpoint(folder: Path) -> Checkpoint:
    """Load what `save_checkpoint` wrote."""
    try:
        content = json.loads((folder / CHECKPOINT).read_bytes())
        return _build(content, folder / WEIGHTS)
    except (OSError, ValueError, KeyError) as err:
        raise VerificationFailed(f"no checkpoint in {folder}: {err}") from err


def checkpoint_of(bundle: Bundle) -> Checkpoint:
    """Load the model that a bundle was exported from."""
    manifest = bundle.manifest
    content = {
        name: getattr(manifest, name)
        for name in ("x_shape", "x_dtype", "likelihood", "data", "git", "run_id", "config")
    }
    return _build(content, bundle.path / WEIGHTS)


def weights_bytes(model: VAE) -> bytes:
    """Return the state dict in torch's format; equal weights give equal bytes."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.getvalue()


def _schema_of(data: Mapping[str, Any]) -> Schema | None:
    return Schema.from_json(data["schema"]) if "schema" in data else None


def _build(content: Mapping[str, Any], weights: Path) -> Checkpoint:
    config = Config.from_json(content["config"])
    # the config in a bundle of schema 1 may still say auto, which `likelihood` never does
    settings = replace(config.model, likelihood=content["likelihood"])
    model = VAE(tuple(content["x_shape"]), settings, _schema_of(content["data"])).eval()
    fix_weights(model)
    try:
        model.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    except (RuntimeError, OSError, pickle.UnpicklingError) as err:
        raise VerificationFailed(f"{weights} does not fit the model: {err}") from err
    model.requires_grad_(False)
    return Checkpoint(
        model,
        config,
        content["x_dtype"],
        content["likelihood"],
        content["data"],
        content["git"],
        content["run_id"],
    )
