"""Weights that torch computes from others become plain weights with the same values."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from pipeline.config import Config
from pipeline.data.dataset import Dataset
from pipeline.model.checkpoint import load_checkpoint, save_checkpoint
from pipeline.model.parametrizations import fix_weights
from tests import own_nets
from tests.trained_models import tiny_config, train_checkpoint

WRAPPERS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "two in a row": lambda layer: parametrizations.spectral_norm(
        parametrizations.weight_norm(layer)
    ),
    "weight norm by a hook": weight_norm,
    "spectral norm by a hook": spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.3),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
def test_the_outputs_keep_their_bytes(wrapper: Callable[[nn.Linear], nn.Module]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(wrapper(nn.Linear(6, 4)), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(7, 6)
    for _ in range(3):  # a spectral norm moves while it trains
        net(x).sum().backward()
    net.eval()
    before = net(x)
    fix_weights(net)
    assert set(dict(net.named_parameters())) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert not dict(net.named_buffers())
    assert torch.equal(net(x), before)
    assert torch.equal(net(x), before)  # no hook computes it again


def test_a_recurrent_layer_takes_the_fixed_weight() -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(3, 4, batch_first=True)
    parametrizations.weight_norm(layer, "weight_hh_l0")
    x = torch.randn(5, 6, 3)
    before = layer.eval()(x)[0]
    fix_weights(layer)
    assert not parametrize.is_parametrized(layer)
    assert torch.equal(layer(x)[0], before)


@pytest.mark.parametrize("net", ["weight_normed", "orthogonal"])
def test_a_checkpoint_has_plain_weights_and_gives_the_model_back(
    net: str, images: Dataset, tmp_path: Path
) -> None:
    config: Config = tiny_config(images, epochs=1, model=f"{own_nets.__name__}:{net}")
    checkpoint = train_checkpoint(images, config)
    save_checkpoint(tmp_path, checkpoint)
    loaded = load_checkpoint(tmp_path).model
    state: dict[str, Tensor] = checkpoint.model.state_dict()
    assert not any("parametrizations" in name for name in state)
    assert list(loaded.state_dict()) == list(state)
    x = torch.from_numpy(images.test.x[:9])
    assert torch.equal(loaded.encode(x).loc, checkpoint.model.encode(x).loc)
