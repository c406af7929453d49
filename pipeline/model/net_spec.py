"""What a builder of networks takes and gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NetSpec:
    """Sizes that a builder has to keep, and the settings it may use."""

    x_shape: tuple[int, ...]
    """Shape of one row of data: (features,), (height, width) or (height, width, channels)."""
    x_width: int
    """Numbers in a standardized row, those of one pixel side by side."""
    params_width: int
    """Parameters of a row's likelihood, those of one pixel side by side."""
    latent_dim: int
    hidden_dims: tuple[int, ...]
    activation: str

    def activate(self) -> nn.Module:
        """A new activation layer."""
        return ACTIVATIONS[self.activation]()


Nets = tuple[nn.Module, nn.Module]
"""Encoder and decoder."""

Builder = Callable[[NetSpec], Nets]
