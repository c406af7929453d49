"""The model: q(z given x), p(x given z), and the VAE that joins them (Kingma & Welling, 2014)."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from pipeline.likelihoods import LIKELIHOODS, Likelihood

ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
LOG_SCALE_RANGE = (-15.0, 10.0)
"""Bounds of log z_scale, so that no exponential overflows (diffusers bounds it alike)."""


class Posterior(NamedTuple):
    """q(z given x): a normal with independent coordinates, (batch, latent_dim)."""

    loc: Tensor
    log_scale: Tensor

    @property
    def scale(self) -> Tensor:
        """Standard deviation."""
        return self.log_scale.exp()

    def kl(self) -> Tensor:
        """KL(q, N(0, 1)) in nats, (batch,): Kingma & Welling, appendix B, without cancellation."""
        # tanh(a)·(exp(2a) + 1) is expm1(2a), which ONNX does not have
        expm1 = self.log_scale.tanh() * ((2 * self.log_scale).exp() + 1)
        return (self.loc.square() + expm1 - 2 * self.log_scale).sum(-1) / 2


class Encoder(nn.Module):
    """Standardized rows (batch, features) to the posterior q(z given x)."""

    def __init__(
        self, features: int, hidden_dims: Sequence[int], latent_dim: int, activation: str
    ) -> None:
        super().__init__()
        self.hidden = _layers((features, *hidden_dims), activation)
        width = (features, *hidden_dims)[-1]
        self.z_loc = nn.Linear(width, latent_dim)
        self.z_log_scale = nn.Linear(width, latent_dim)

    def forward(self, x: Tensor) -> Posterior:
        """Encode `x`."""
        h = self.hidden(x)
        return Posterior(self.z_loc(h), self.z_log_scale(h).clamp(*LOG_SCALE_RANGE))


class Decoder(nn.Module):
    """Latents (batch, latent_dim) to the likelihood's parameters (batch, features)."""

    def __init__(
        self, features: int, hidden_dims: Sequence[int], latent_dim: int, activation: str
    ) -> None:
        super().__init__()
        widths = (latent_dim, *reversed(hidden_dims))
        self.hidden = _layers(widths, activation)
        self.x_params = nn.Linear(widths[-1], features)

    def forward(self, z: Tensor) -> Tensor:
        """Decode `z`."""
        return cast(Tensor, self.x_params(self.hidden(z)))


class VAE(nn.Module):
    """Encoder, decoder and likelihood over data of `x_shape`."""

    def __init__(
        self,
        x_shape: tuple[int, ...],
        *,
        likelihood: str,
        hidden_dims: Sequence[int],
        latent_dim: int,
        activation: str,
    ) -> None:
        super().__init__()
        features = torch.Size(x_shape).numel()
        self.x_shape = x_shape
        self.latent_dim = latent_dim
        self.encoder = Encoder(features, hidden_dims, latent_dim, activation)
        self.decoder = Decoder(features, hidden_dims, latent_dim, activation)
        self.likelihood = LIKELIHOODS[likelihood](features)

    def encode(self, x: Tensor) -> Posterior:
        """q(z given x) of data (batch, *x_shape) in its own units."""
        return cast(Posterior, self.encoder(self.px.standardize(x)))

    def decode(self, z: Tensor) -> Tensor:
        """E[x given z] in the data's units, (batch, *x_shape)."""
        return self.px.mean(self.decoder(z)).reshape(-1, *self.x_shape)

    @property
    def px(self) -> Likelihood:
        """The likelihood p(x given z)."""
        return self.likelihood


def _layers(widths: Sequence[int], activation: str) -> nn.Sequential:
    act = ACTIVATIONS[activation]
    return nn.Sequential(
        *(layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), act()))
    )
