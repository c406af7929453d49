"""The interface of a builder of networks.

A builder takes a `NetSpec` and returns two ordinary modules. The encoder maps standardized rows
(batch, x_width) to two tensors (batch, latent_dim): `z_loc` and the log of `z_scale`. The decoder
maps latents (batch, latent_dim) to the likelihood's parameters (batch, params_width). Both treat
every row independently and draw no random numbers in evaluation mode. A decoder may have a
parameter `output_bias` (params_width,), which is initialised from the data.
"""

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
    """The sizes that the networks must have, and the settings that a builder may use."""

    x_shape: tuple[int, ...]
    """Shape of one row of data: (features,), (height, width) or (height, width, channels)."""
    x_width: int
    """Values in a standardized row; those of one pixel are adjacent."""
    params_width: int
    """Parameters of the likelihood of one row; those of one pixel are adjacent."""
    latent_dim: int
    hidden_dims: tuple[int, ...]
    activation: str

    def activate(self) -> nn.Module:
        """Return a new activation layer."""
        return ACTIVATIONS[self.activation]()


Nets = tuple[nn.Module, nn.Module]
"""Encoder and decoder."""

Builder = Callable[[NetSpec], Nets]
