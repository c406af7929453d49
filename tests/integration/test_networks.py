"""Every preset, every likelihood and a user's own nets through export, parity and the engine."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.config import Config, ModelConfig, Precision, configure
from pipeline.data.dataset import Dataset, Split
from pipeline.model.convolutional import ResidualBlock
from pipeline.model.net_spec import Nets, NetSpec
from pipeline.model.vae import VAE
from serving.engine import Engine
from serving.errors import UsageRefused
from tests.trained_models import make_bundle, train_checkpoint

SMALL = {"latent_dim": 3, "epochs": 2, "learning_rate": 5e-3, "batch_size": 50, "nll_samples": 4}
GRAY, COLOUR = (9, 6), (7, 5, 3)


def draw(shape: tuple[int, ...], kind: str) -> Dataset:
    """200 rows whose brightness differs, of one kind of values."""
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


def assert_served(
    dataset: Dataset, config: Config, folder: Path, precision: Precision = "float32"
) -> None:
    """Train a little, export, check, and serve rows together as alone."""
    bundle = make_bundle(folder / "bundle", (train_checkpoint(dataset, config), dataset), precision)
    report = bundle.read_json("parity.json")
    assert report["verdict"] == "passed", report["faults"]
    engine, x = Engine(bundle, threads=1), dataset.test.x[:40]
    together = engine.score(x, num_samples=2, seed=1)
    alone = engine.score(x[:1], num_samples=2, seed=1)
    assert all(alone[name].tobytes() == together[name][:1].tobytes() for name in together)
    assert engine.reconstruct(x).shape == x.shape


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


def test_fp16_rounds_convolutions_too(tmp_path: Path) -> None:
    assert_served(draw(COLOUR, "bytes"), small_config("conv"), tmp_path, "fp16")


class Gated(nn.Module):
    """A user's encoder, of a shape that none of ours has."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.gate = nn.Linear(spec.x_width, 2 * spec.latent_dim)
        self.value = nn.Linear(spec.x_width, 2 * spec.latent_dim)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.value(x) * self.gate(x).sigmoid()
        loc, log_scale = h.chunk(2, -1)
        return loc, log_scale


def build_wrong(spec: NetSpec) -> Nets:
    return Gated(spec), nn.Linear(spec.latent_dim, spec.params_width + 1)


def build_one(spec: NetSpec) -> nn.Module:
    return Gated(spec)


def build_no_modules(spec: NetSpec) -> tuple[nn.Module, int]:
    return Gated(spec), 3


def build_listed(spec: NetSpec) -> Nets:
    class Listed(Gated):
        def forward(self, x: torch.Tensor) -> Any:
            return [*super().forward(x)]

    return Listed(spec), nn.Linear(spec.latent_dim, spec.params_width)


def build_biased(spec: NetSpec) -> Nets:
    decoder = nn.Linear(spec.latent_dim, spec.params_width)
    decoder.output_bias = nn.Parameter(torch.zeros(1))
    return Gated(spec), decoder


NOTHING_TO_CALL = 3


@pytest.mark.parametrize(
    ("model", "message"),
    [
        pytest.param("mpl", r"mlp, conv, resnet, or package.module:function; got 'mpl'", id="name"),
        pytest.param("no.such:build", "cannot import model 'no.such:build'", id="module"),
        pytest.param(f"{__name__}:nothing", "has no attribute 'nothing'", id="function"),
        pytest.param(
            f"{__name__}:build_wrong", r"must give \[\(2, 5\)\] for two rows of 3, got", id="shape"
        ),
        pytest.param(":build", "must be package.module:function, got ':build'", id="no module"),
        pytest.param("json:", "must be package.module:function, got 'json:'", id="no function"),
        pytest.param(".a:b", "must be package.module:function, got '.a:b'", id="relative"),
        pytest.param(
            f"{__name__}:NOTHING_TO_CALL", "must name a function .*, got int$", id="no call"
        ),
        pytest.param(
            f"{__name__}:build_one", "must build two modules, .*; got Gated$", id="one module"
        ),
        pytest.param(
            f"{__name__}:build_no_modules", "two modules, .*; got Gated, int$", id="no module built"
        ),
        pytest.param(f"{__name__}:build_listed", r"rows of 5, got \['list'\]$", id="a list"),
        pytest.param(
            f"{__name__}:build_biased",
            r"output_bias of .* must be a tensor of \(5,\), got \(1,\)$",
            id="bias",
        ),
        pytest.param("conv", r"images.*got \(5,\) and 512: use --model mlp", id="table"),
    ],
)
def test_a_model_that_cannot_be_built_says_why(model: str, message: str) -> None:
    settings = ModelConfig(model=model, latent_dim=3)
    with pytest.raises(UsageRefused, match=message):
        VAE((5,), replace(settings, likelihood="gaussian"))


OWN = "from torch import nn\n\n\n"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param(
            "def build():\n    pass\n",
            "model own_nets:build cannot be built, {own}:4: TypeError: build() takes 0 positional "
            "arguments but 1 was given",
            id="no argument",
        ),
        pytest.param(
            "def build(spec):\n    return dict()['hidden']\n",
            "model own_nets:build cannot be built, {own}:5: KeyError: 'hidden'",
            id="it raises",
        ),
        pytest.param(
            "def build(spec):\n    return nn.Linear(spec.x_shape, 'many')\n",
            "model own_nets:build cannot be built, {own}:5: TypeError: ",
            id="torch raises",
        ),
        pytest.param(
            "def build(spec):\n    import nosuchmod\n",
            "model own_nets:build cannot be built, {own}:5: ModuleNotFoundError: No module named "
            "'nosuchmod'",
            id="it imports",
        ),
        pytest.param(
            "import nosuchmod\n",
            "cannot import model 'own_nets:build', {own}:4: ModuleNotFoundError: No module named "
            "'nosuchmod'",
            id="import",
        ),
        pytest.param(
            "def build(spec:\n    pass\n",
            "cannot import model 'own_nets:build', {own}:4: SyntaxError: '(' was never closed",
            id="syntax",
        ),
        pytest.param(
            "NETS = 1 / 0\n",
            "cannot import model 'own_nets:build', {own}:4: ZeroDivisionError: division by zero",
            id="module",
        ),
        pytest.param(
            "def build(spec):\n    return nn.Linear(4, 3), nn.Linear(3, 5)\n",
            "Linear of model own_nets:build fails on two rows of 5: RuntimeError: mat1 and mat2 ",
            id="forward",
        ),
    ],
)
def test_what_fails_in_a_user_s_code_is_one_line_that_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    (tmp_path / "own_nets.py").write_text(OWN + source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)
    with pytest.raises(UsageRefused) as caught:
        VAE((5,), ModelConfig(model="own_nets:build", latent_dim=3, likelihood="gaussian"))
    said = str(caught.value)
    assert said.startswith(message.format(own=tmp_path / "own_nets.py"))
    assert "\n" not in said
    assert caught.value.__cause__ is not None


def test_a_conv_decoder_gives_every_size_back() -> None:
    for shape in ((1, 1), (2, 3), (9, 6), (28, 28), (5, 16, 3)):
        settings = ModelConfig(model="conv", hidden_dims=(4, 4, 4), latent_dim=2)
        model = VAE(shape, replace(settings, likelihood="discretized_logistic"))
        x = torch.zeros((2, *shape), dtype=torch.uint8)
        assert model.decode(model.encode(x).loc).shape == x.shape


def test_residual_blocks_start_as_nothing() -> None:
    settings = ModelConfig(model="resnet", likelihood="bernoulli", hidden_dims=(4,), latent_dim=2)
    model = VAE(GRAY, settings)
    blocks = [part for part in model.modules() if isinstance(part, ResidualBlock)]
    assert len(blocks) == 4
    x = torch.randn(2, 4, 5, 3)
    assert all(torch.equal(block(x), x) for block in blocks)


def test_pixels_keep_their_places_in_colour() -> None:
    """Convolutions work on channels first, the data has them last."""
    settings = ModelConfig(model="conv", hidden_dims=(4,), latent_dim=2, output_bias=True)
    model = VAE(COLOUR, replace(settings, likelihood="bernoulli"))
    nn.init.zeros_(model.decoder.hidden[-1].weight)
    nn.init.zeros_(model.decoder.hidden[-1].bias)
    logits = torch.linspace(-3, 3, model.decoder.output_bias.numel())
    model.decoder.output_bias.data.copy_(logits)
    expected = logits.sigmoid().reshape(COLOUR)
    torch.testing.assert_close(model.decode(torch.zeros(1, 2))[0], expected)
    seen = []
    model.encoder.hidden[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.rand(2, *COLOUR)
    model.encode(x)
    torch.testing.assert_close(seen[0], x.permute(0, 3, 1, 2))


class Mixing(nn.Module):
    """Standardizes by the batch at hand, as no graph that serves may."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.encoder = Gated(spec)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loc, log_scale = self.encoder(x - x.mean(0))
        return loc, log_scale


def build_mixing(spec: NetSpec) -> Nets:
    return Mixing(spec), nn.Linear(spec.latent_dim, spec.params_width)


def test_nets_that_mix_rows_fail_parity(tmp_path: Path) -> None:
    dataset, config = draw((7,), "unit"), small_config(model=f"{__name__}:build_mixing")
    bundle = make_bundle(tmp_path / "bundle", (train_checkpoint(dataset, config), dataset))
    report = bundle.read_json("parity.json")
    assert report["verdict"] == "failed"
    assert any(not row["passed"] for row in report["comparisons"] if row["rule"] == "batch")
