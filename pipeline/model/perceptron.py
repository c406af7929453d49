"""Encoders and decoders that are multilayer perceptrons."""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from pipeline.model.net_spec import Nets, NetSpec


class MlpEncoder(nn.Module):
    """Hidden layers, then one linear layer for each parameter of the posterior."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        widths = (spec.x_width, *spec.hidden_dims)
        self.hidden = _layers(widths, spec)
        self.z_loc = nn.Linear(widths[-1], spec.latent_dim)
        self.z_log_scale = nn.Linear(widths[-1], spec.latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encode `x`."""
        h = self.hidden(x)
        return self.z_loc(h), self.z_log_scale(h)


class MlpDecoder(nn.Module):
    """The encoder's hidden layers in reverse order, then a linear layer to the parameters of x."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        widths = (spec.latent_dim, *reversed(spec.hidden_dims))
        self.hidden = _layers(widths, spec)
        self.x_params = nn.Linear(widths[-1], spec.params_width)

    @property
    def output_bias(self) -> Tensor:
        """The bias of the last layer."""
        return self.x_params.bias

    def forward(self, z: Tensor) -> Tensor:
        """Decode `z`."""
        return cast(Tensor, self.x_params(self.hidden(z)))


def build_mlp(spec: NetSpec) -> Nets:
    """Build two perceptrons."""
    return MlpEncoder(spec), MlpDecoder(spec)


def _layers(widths: Sequence[int], spec: NetSpec) -> nn.Sequential:
    return nn.Sequential(
        *(layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), spec.activate()))
    )
