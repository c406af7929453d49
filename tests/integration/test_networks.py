"""Presets, likelihoods and a user's own networks through export, parity and the engine."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.config import Config, Precision, configure
from pipeline.data.dataset import Dataset, Split
from pipeline.model.net_spec import Nets, NetSpec
from serving.engine import Engine
from serving.errors import UsageRefused
from tests import own_nets
from tests.trained_models import make_bundle, train_checkpoint

SMALL = {"latent_dim": 3, "epochs": 2, "learning_rate": 5e-3, "batch_size": 50, "nll_samples": 4}
GRAY, COLOUR = (9, 6), (7, 5, 3)


def draw(shape: tuple[int, ...], kind: str) -> Dataset:
    """Draw 200 rows of different brightness, with values of one kind."""
    generator = np.random.default_rng(0)
    values = generator.random((200, 1)) * generator.random((200, np.prod(shape)))
    kinds: dict[str, np.ndarray] = {
        "bytes": (values * 255).astype(np.uint8),
        "codes": (values * 5).astype(np.uint8),
        "unit": values.astype(np.float32),
        "reals": (values * 30 - 7).astype(np.float32),
    }
    parts = np.split(kinds[kind].reshape(200, *shape), [100, 150])
    return Dataset("drawn", *(Split(part, str(i)) for i, part in enumerate(parts)))


def small_config(preset: str = "default", **settings: object) -> Config:
    hidden = (8,) if preset == "resnet" else (8, 8)
    quick = {"hidden_dims": hidden, "kl_warmup_steps": 1, "binarize": "none"}
    return configure(preset, **{**SMALL, **quick, **settings})


def serve(
    dataset: Dataset, config: Config, folder: Path, precision: Precision = "float32"
) -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
    """Train briefly, export and check; return the scores of some rows, and of the first alone."""
    bundle = make_bundle(folder / "bundle", (train_checkpoint(dataset, config), dataset), precision)
    report = bundle.read_json("parity.json")
    assert report["verdict"] == "passed", report["faults"]
    engine, x = Engine(bundle, threads=1), dataset.test.x[:40]
    assert engine.reconstruct(x).shape == x.shape
    together, alone = (engine.score(rows, num_samples=2, seed=1) for rows in (x, x[:1]))
    return together, alone


def assert_served(
    dataset: Dataset, config: Config, folder: Path, precision: Precision = "float32"
) -> None:
    """Check that a row alone has the bytes that it has in a batch."""
    together, alone = serve(dataset, config, folder, precision)
    assert all(alone[name].tobytes() == together[name][:1].tobytes() for name in together)


@pytest.mark.parametrize(
    ("preset", "likelihood", "shape", "kind"),
    [
        pytest.param("default", "gaussian", (7,), "reals", id="default-gaussian"),
        pytest.param("seed", "categorical", (7,), "codes", id="seed-categorical"),
        pytest.param("example", "continuous_bernoulli", (7,), "unit", id="example-continuous"),
        pytest.param("burda", "bernoulli", GRAY, "bytes", id="burda-bernoulli"),
        pytest.param("conv", "discretized_logistic", GRAY, "bytes", id="conv-logistic"),
        pytest.param("resnet", "bernoulli", COLOUR, "bytes", id="resnet-colour"),
    ],
)
def test_every_preset_and_likelihood_is_served(
    preset: str, likelihood: str, shape: tuple[int, ...], kind: str, tmp_path: Path
) -> None:
    config = small_config(preset, likelihood=likelihood, free_bits=0.05)
    assert_served(draw(shape, kind), config, tmp_path)


def test_fp16_also_converts_convolutions(tmp_path: Path) -> None:
    assert_served(draw(COLOUR, "bytes"), small_config("conv"), tmp_path, "fp16")


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("net", [net.__name__ for net in own_nets.NETS])
def test_a_user_s_own_networks_are_served(net: str, tmp_path: Path) -> None:
    config = small_config(model=f"{own_nets.__name__}:{net}", epochs=1)
    together, alone = serve(draw(GRAY, "bytes"), config, tmp_path)
    for name, value in alone.items():
        np.testing.assert_allclose(value, together[name][:1], rtol=1e-5)


@pytest.mark.parametrize(
    ("net", "precision"),
    [
        pytest.param("lstm", "fp16", id="recurrent in fp16"),
        pytest.param("attention", "fp16", id="attention in fp16"),
        pytest.param("attention", "int8", id="attention in int8"),
        pytest.param("sequence", "int8", id="without biases in int8"),
    ],
)
def test_a_user_s_own_networks_are_served_in_reduced_precision(
    net: str, precision: Precision, tmp_path: Path
) -> None:
    config = small_config(model=f"{own_nets.__name__}:{net}", epochs=1)
    together, alone = serve(draw(GRAY, "bytes"), config, tmp_path, precision)
    for name, value in alone.items():
        np.testing.assert_allclose(value, together[name][:1], rtol=1e-5)


def test_int8_of_layers_over_steps_alone_is_refused(tmp_path: Path) -> None:
    config = small_config(model=f"{own_nets.__name__}:lstm", epochs=1)
    with pytest.raises(UsageRefused, match="int8 needs a linear hidden layer, over rows and not"):
        serve(draw(GRAY, "bytes"), config, tmp_path, "int8")


class BatchCentredEncoder(nn.Module):
    """An encoder that learns to subtract the mean of the batch, which a graph must not do."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.zeros(()))
        self.heads = nn.Linear(spec.x_width, 2 * spec.latent_dim)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loc, log_scale = self.heads(x - self.share * x.mean(0)).chunk(2, -1)
        return loc, log_scale


def build_batch_centred(spec: NetSpec) -> Nets:
    return BatchCentredEncoder(spec), nn.Linear(spec.latent_dim, spec.params_width)


def test_networks_whose_rows_depend_on_each_other_fail_parity(tmp_path: Path) -> None:
    dataset, config = draw((7,), "unit"), small_config(model=f"{__name__}:build_batch_centred")
    bundle = make_bundle(tmp_path / "bundle", (train_checkpoint(dataset, config), dataset))
    report = bundle.read_json("parity.json")
    assert report["verdict"] == "failed"
    assert any(not row["passed"] for row in report["comparisons"] if row["rule"] == "batch")
