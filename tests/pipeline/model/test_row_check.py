"""A network that mixes rows, or is random in evaluation, is refused before it is trained."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import ModelConfig
from pipeline.model.net_spec import Nets, NetSpec
from pipeline.model.row_check import find_row_fault
from pipeline.model.vae import VAE
from serving.errors import UsageRefused

MIXES = "mixes rows in evaluation: the result of a row depends on the other rows"
RANDOM = "is random in evaluation: the same rows give other values"


class AlwaysDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)


class Centred(nn.Module):
    """The mean is taken in the network's own code, not in a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x - x.mean(0))


class Steps(nn.Module):
    """A recurrent layer over two steps, with time or with rows as the first axis."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer = nn.LSTM(3, 6, **options)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (2, 3))
        if not self.layer.batch_first:
            x = x.transpose(0, 1)
        return self.layer(x)[1][0][0]


@pytest.mark.parametrize(
    ("layer", "fault"),
    [
        pytest.param(nn.BatchNorm1d(6), None, id="batch norm with running statistics"),
        pytest.param(nn.Dropout(0.5), None, id="dropout"),
        pytest.param(nn.LayerNorm(6), None, id="layer norm"),
        pytest.param(Steps(batch_first=True), None, id="recurrent"),
        pytest.param(Steps(), None, id="recurrent with time first"),
        pytest.param(
            nn.BatchNorm1d(6, track_running_stats=False),
            f"net.1 (BatchNorm1d) {MIXES}",
            id="batch norm without running statistics",
        ),
        pytest.param(Centred(), f"net.1 (Centred) {MIXES}", id="code of its own"),
        pytest.param(AlwaysDropout(), f"net.1 (AlwaysDropout) {RANDOM}", id="dropout that stays"),
        pytest.param(
            Steps(batch_first=True, proj_size=2),
            "net.1.layer (LSTM) has proj_size, which ONNX's LSTM lacks",
            id="projection",
        ),
    ],
)
def test_the_layer_that_cannot_be_served_is_named(layer: nn.Module, fault: str | None) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), layer)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert find_row_fault("net", net, 5) == fault
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training


class Heads(nn.Sequential):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return super().forward(x).chunk(2, -1)


def build_mixed(spec: NetSpec) -> Nets:
    heads = nn.Linear(spec.x_width, 2 * spec.latent_dim)
    norm = nn.BatchNorm1d(2 * spec.latent_dim, track_running_stats=False)
    return Heads(heads, norm), nn.Linear(spec.latent_dim, spec.params_width)


def build_single_precision(spec: NetSpec) -> Nets:
    class Narrow(nn.Sequential):
        def forward(self, z: Tensor) -> Tensor:
            return super().forward(z.float())

    heads = nn.Linear(spec.x_width, 2 * spec.latent_dim)
    return Heads(heads), Narrow(nn.Linear(spec.latent_dim, spec.params_width))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(
            "build_mixed",
            rf"^model .*:build_mixed cannot be served: encoder\.1 \(BatchNorm1d\) {MIXES}$",
            id="mixed",
        ),
        pytest.param(
            "build_single_precision",
            r"^Narrow of model .* fails on one row or in float64, with which parity compares, "
            r".*test_row_check\.py:\d+: RuntimeError: ",
            id="float32 alone",
        ),
    ],
)
def test_a_model_that_cannot_be_served_is_refused(build: str, message: str) -> None:
    settings = ModelConfig(model=f"{__name__}:{build}", latent_dim=3, likelihood="gaussian")
    with pytest.raises(UsageRefused, match=message):
        VAE((5,), settings)
