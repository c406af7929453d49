"""The model: q(z given x), p(x given z), and the VAE of both (Kingma & Welling, 2014)."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from pipeline.config import ModelConfig
from pipeline.model.likelihoods import Likelihood, make_likelihood
from pipeline.model.mixed import Mixed
from pipeline.model.net_spec import NetSpec
from pipeline.model.network_precision import run_network
from pipeline.model.networks import build_nets
from serving.schema import Schema

LOG_SCALE_RANGE = (-15.0, 10.0)
"""Bounds of log z_scale, so that no exponential overflows (diffusers has similar bounds)."""


class Posterior(NamedTuple):
    """q(z given x): a normal with independent coordinates, (batch, latent_dim)."""

    loc: Tensor
    log_scale: Tensor

    @property
    def scale(self) -> Tensor:
        """Standard deviation."""
        return self.log_scale.exp()

    def kl(self) -> Tensor:
        """Return KL(q, N(0, 1)) in nats, (batch,): Kingma & Welling, appendix B."""
        return self.latent_kl().sum(-1)

    def latent_kl(self) -> Tensor:
        """Return the KL of each latent, (batch, latent_dim), without cancellation."""
        # tanh(a)·(exp(2a) + 1) is expm1(2a), which ONNX lacks
        expm1 = self.log_scale.tanh() * ((2 * self.log_scale).exp() + 1)
        return (self.loc.square() + expm1 - 2 * self.log_scale) / 2


class VAE(nn.Module):
    """An encoder, a decoder and a likelihood for data of shape `x_shape`, or for a `schema`."""

    # these may be a user's modules; `pipeline.model.net_spec` defines what they take and return
    encoder: Any
    decoder: Any

    def __init__(
        self, x_shape: tuple[int, ...], settings: ModelConfig, schema: Schema | None = None
    ) -> None:
        super().__init__()
        features = torch.Size(x_shape).numel()
        self.x_shape = x_shape
        self.settings = settings
        self.latent_dim = settings.latent_dim
        likelihood = make_likelihood(features, settings, schema)
        spec = NetSpec(
            x_shape=x_shape,
            x_width=likelihood.x_width,
            params_width=likelihood.params_width,
            latent_dim=settings.latent_dim,
            hidden_dims=settings.hidden_dims,
            activation=settings.activation,
        )
        self.encoder, self.decoder = build_nets(spec, settings.model)
        self.likelihood = likelihood

    def encode(self, x: Tensor) -> Posterior:
        """Return q(z given x) for data (batch, *x_shape) in its own units."""
        return self.infer(self.px.standardize(x))

    def infer(self, rows: Tensor, *, bf16: bool = False) -> Posterior:
        """Return q(z given x) for rows in network units, of a mixed table in any precision."""
        if self.mixed:
            rows = self.mixed.inputs(rows).to(self.mixed.gap.dtype)
        loc, log_scale = run_network(self.encoder, rows, bf16=bf16)
        return Posterior(loc, log_scale.clamp(*LOG_SCALE_RANGE))

    def decode(self, z: Tensor) -> Tensor:
        """Return E[x given z] in the data's units, (batch, *x_shape)."""
        return self.px.mean(self.decoder(z)).reshape(-1, *self.x_shape)

    @property
    def mixed(self) -> Mixed | None:
        """The likelihood, if it is one of columns of several kinds."""
        return self.likelihood if isinstance(self.likelihood, Mixed) else None

    @property
    def px(self) -> Likelihood:
        """The likelihood p(x given z)."""
        return cast(Likelihood, self.likelihood)
