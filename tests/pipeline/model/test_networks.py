"""What `build_nets` refuses, and what it says of errors in a user's code."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.config import ModelConfig
from pipeline.model.net_spec import Nets, NetSpec
from pipeline.model.vae import VAE
from serving.errors import UsageRefused


class GatedEncoder(nn.Module):
    """A user's encoder, of an architecture that this package does not have."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.gate = nn.Linear(spec.x_width, 2 * spec.latent_dim)
        self.value = nn.Linear(spec.x_width, 2 * spec.latent_dim)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.value(x) * self.gate(x).sigmoid()
        loc, log_scale = h.chunk(2, -1)
        return loc, log_scale


def build_wrong_width(spec: NetSpec) -> Nets:
    return GatedEncoder(spec), nn.Linear(spec.latent_dim, spec.params_width + 1)


def build_one_module(spec: NetSpec) -> nn.Module:
    return GatedEncoder(spec)


def build_int_decoder(spec: NetSpec) -> tuple[nn.Module, int]:
    return GatedEncoder(spec), 3


def build_list_encoder(spec: NetSpec) -> Nets:
    class ListEncoder(GatedEncoder):
        def forward(self, x: torch.Tensor) -> Any:
            return [*super().forward(x)]

    return ListEncoder(spec), nn.Linear(spec.latent_dim, spec.params_width)


def build_wrong_bias(spec: NetSpec) -> Nets:
    decoder = nn.Linear(spec.latent_dim, spec.params_width)
    decoder.output_bias = nn.Parameter(torch.zeros(1))
    return GatedEncoder(spec), decoder


NOT_CALLABLE = 3


@pytest.mark.parametrize(
    ("model", "message"),
    [
        pytest.param("mpl", r"mlp, conv, resnet, or package.module:function; got 'mpl'", id="name"),
        pytest.param("no.such:build", "cannot import model 'no.such:build'", id="module"),
        pytest.param(f"{__name__}:nothing", "has no attribute 'nothing'", id="function"),
        pytest.param(
            f"{__name__}:build_wrong_width",
            r"must give \[\(2, 5\)\] for two rows of 3, got",
            id="shape",
        ),
        pytest.param(":build", "must be package.module:function, got ':build'", id="no module"),
        pytest.param("json:", "must be package.module:function, got 'json:'", id="no function"),
        pytest.param(".a:b", "must be package.module:function, got '.a:b'", id="relative"),
        pytest.param(f"{__name__}:NOT_CALLABLE", "must name a function .*, got int$", id="no call"),
        pytest.param(
            f"{__name__}:build_one_module",
            "must build two modules, .*; got GatedEncoder$",
            id="one module",
        ),
        pytest.param(
            f"{__name__}:build_int_decoder",
            "two modules, .*; got GatedEncoder, int$",
            id="no module built",
        ),
        pytest.param(f"{__name__}:build_list_encoder", r"rows of 5, got \['list'\]$", id="a list"),
        pytest.param(
            f"{__name__}:build_wrong_bias",
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


IMPORTS = "from torch import nn\n\n\n"


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
def test_an_error_in_a_user_s_code_is_reported_in_one_line_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    (tmp_path / "own_nets.py").write_text(IMPORTS + source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)
    with pytest.raises(UsageRefused) as caught:
        VAE((5,), ModelConfig(model="own_nets:build", latent_dim=3, likelihood="gaussian"))
    report = str(caught.value)
    assert report.startswith(message.format(own=tmp_path / "own_nets.py"))
    assert "\n" not in report
    assert caught.value.__cause__ is not None
