"""A graph keeps the weights of the state dict whatever ONNX needs them as; failures say why."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import ModelConfig
from pipeline.errors import ParityFailed
from pipeline.export import graph_export
from pipeline.export.graph_export import SMALL_CONSTANT, save_graph
from pipeline.model.net_spec import Nets, NetSpec
from pipeline.model.vae import VAE
from serving.operations import operation_table
from serving.sessions import open_session
from tests import own_nets

ENCODE = operation_table((6, 5), "uint8", 3)["encode"]


def make(model: str) -> VAE:
    torch.manual_seed(0)
    settings = ModelConfig(model=model, latent_dim=3, likelihood="bernoulli")
    return VAE((6, 5), settings).eval().requires_grad_(False)


@pytest.mark.parametrize("net", ["lstm", "attention", "sequence", "transposed"])
def test_every_weight_is_an_initializer_with_its_name_and_bytes(net: str, tmp_path: Path) -> None:
    model = make(f"{own_nets.__name__}:{net}")
    save_graph(tmp_path / "encoder.onnx", model, ENCODE, {})
    items = onnx.load(tmp_path / "encoder.onnx").graph.initializer
    arrays = {item.name: numpy_helper.to_array(item) for item in items}
    for name, value in model.encoder.named_parameters(prefix="encoder"):
        assert arrays.pop(name).tobytes() == value.numpy().tobytes()
    buffers = dict(model.named_buffers())
    assert all(name in buffers or v.size <= SMALL_CONSTANT for name, v in arrays.items())


def test_the_exporter_reads_its_translations_once(tmp_path: Path) -> None:
    model = make("mlp")
    graph_export._read_operators.cache_clear()
    for name in ("first", "second"):
        save_graph(tmp_path / name, model, ENCODE, {})
    found = graph_export._read_operators.cache_info()
    assert (found.misses, found.hits) == (1, 1)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


class Attention(nn.Module):
    """Attention without an axis of heads, which the exporter does not translate by itself."""

    def __init__(self, mask: Tensor | None) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        mask = None if self.mask is None else self.mask.expand(x.shape[0], -1, -1)
        return F.scaled_dot_product_attention(query=x, key=x, value=x, attn_mask=mask)


def build_plain(spec: NetSpec) -> Nets:
    return own_nets.Encoder(spec, own_nets.Mean(Attention(None))), own_nets.dense(spec)


def build_masked(spec: NetSpec) -> Nets:
    mask = torch.ones(1, 6, 6, dtype=torch.bool).tril()
    return own_nets.Encoder(spec, own_nets.Mean(Attention(mask))), own_nets.dense(spec)


@pytest.mark.parametrize("build", ["build_plain", "build_masked"])
def test_attention_without_heads_is_exported(build: str, tmp_path: Path) -> None:
    model, x = make(f"{__name__}:{build}"), np.arange(90, dtype=np.uint8).reshape(3, 6, 5)
    save_graph(tmp_path / "encoder.onnx", model, ENCODE, {})
    content = (tmp_path / "encoder.onnx").read_bytes()
    (z_loc,) = open_session(content, "cpu").run(["z_loc"], {"x": x})
    expected = model.encode(torch.from_numpy(x)).loc
    np.testing.assert_allclose(z_loc, expected, rtol=1e-4, atol=1e-6)


class Exponential(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        square = x[:, :4, :4] / 100
        return torch.matrix_exp(square).flatten(1)


class Choice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1) if x.sum() > 0 else x.mean(1) * 2


class Counted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1) + torch.zeros(len(x), 1)


def build_exponential(spec: NetSpec) -> Nets:
    return own_nets.Encoder(spec, Exponential()), own_nets.dense(spec)


def build_choice(spec: NetSpec) -> Nets:
    return own_nets.Encoder(spec, Choice()), own_nets.dense(spec)


def build_counted(spec: NetSpec) -> Nets:
    return own_nets.Encoder(spec, Counted()), own_nets.dense(spec)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(
            "build_exponential",
            r"^encoder\.onnx cannot be exported: encoder\.body \(Exponential\): "
            r"aten\.linalg_matrix_exp\.default: No ONNX function found ",
            id="an operator that ONNX lacks",
        ),
        pytest.param(
            "build_choice",
            r"^encoder\.onnx cannot be exported: encoder\.body \(Choice\): a choice in Python by "
            r"values of a tensor: use torch\.where$",
            id="a branch",
        ),
        pytest.param(
            "build_counted",
            r"^encoder\.onnx cannot be exported: a network fixes the number of rows: take it from "
            r"x\.shape\[0\], not from len\(x\)$",
            id="a fixed number of rows",
        ),
    ],
)
def test_a_failed_export_says_why_in_one_line(
    build: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ParityFailed, match=message) as caught:
        save_graph(tmp_path / "encoder.onnx", make(f"{__name__}:{build}"), ENCODE, {})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert "def forward" not in capfd.readouterr().err
    assert not list(tmp_path.iterdir())
