"""The ELBO and the importance-weighted bound, as one value a row, in nats, larger is better.

Kingma & Welling (2014), equation 3: elbo = E_q[log p(x given z)] - KL(q(z given x), p(z)).
Burda et al. (2016), equation 8: iw_elbo = log mean_k p(x, z_k) / q(z_k given x).
Bowman et al. (2016): the weight of the KL grows from 0 while training warms up.
Kingma et al. (2016), appendix C.8: free bits, which the KL of a latent may take at no cost.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.config import TrainConfig
from pipeline.model.vae import VAE, Posterior


class Terms(NamedTuple):
    """Every quantity that a bound is made of."""

    log_likelihood: Tensor
    """log p(x given z_k), (batch, num_samples)."""
    latent_kl: Tensor
    """KL(q(z given x), p(z)) by latent, (batch, latent_dim), in closed form."""
    eps: Tensor
    """Standard normal noise, (batch, num_samples, latent_dim)."""
    z: Tensor
    """The latents z_k that it makes, like `eps`."""
    log_scale: Tensor
    """Of q(z given x), (batch, latent_dim)."""

    @property
    def kl(self) -> Tensor:
        """KL(q(z given x), p(z)), (batch,)."""
        return self.latent_kl.sum(-1)

    @property
    def log_ratio(self) -> Tensor:
        """Log p(z_k) - log q(z_k given x), (batch, num_samples); the constants cancel."""
        halves = (self.eps.square() - self.z.square()) / 2
        return (halves + self.log_scale.unsqueeze(1)).sum(-1)

    def elbo(self) -> Tensor:
        """The bound with the closed-form KL, (batch,)."""
        return self.log_likelihood.mean(-1) - self.kl

    def log_weights(self, kl_weight: float = 1.0) -> Tensor:
        """Log p(x, z_k) - log q(z_k given x), (batch, num_samples)."""
        return self.log_likelihood + kl_weight * self.log_ratio

    def iw_elbo(self, kl_weight: float = 1.0) -> Tensor:
        """The bound over all samples together, (batch,); with one sample, an ELBO."""
        weights = self.log_weights(kl_weight)
        top = weights.amax(-1, keepdim=True)
        return (weights - top).exp().mean(-1).log() + top.squeeze(-1)


def terms(model: VAE, x: Tensor, eps: Tensor, dtype: torch.dtype | None = None) -> Terms:
    """Evaluate the model on `x` (batch, *x_shape) with `eps` (batch, num_samples, latent_dim).

    What follows the networks is computed in `dtype`, by default theirs.
    """
    rows = model.px.standardize(x)
    qz = model.infer(rows)
    z = qz.loc.unsqueeze(1) + qz.scale.unsqueeze(1) * eps
    params = model.decoder(z.flatten(0, 1)).unflatten(0, (-1, eps.shape[1]))
    if dtype is not None:
        rows, z, eps, params = (tensor.to(dtype) for tensor in (rows, z, eps, params))
        qz = Posterior(*(tensor.to(dtype) for tensor in qz))
    log_likelihood = model.px.log_prob(params, rows.unsqueeze(1))
    return Terms(log_likelihood, qz.latent_kl(), eps, z, qz.log_scale)


def loss(row_terms: Terms, settings: TrainConfig, kl_weight: float) -> Tensor:
    """What training minimises: a mean over the batch, whose size then scales no gradient."""
    if settings.objective == "iwae":
        return -row_terms.iw_elbo(kl_weight).mean()
    kl = row_terms.latent_kl.mean(0)
    if settings.free_bits:
        kl = kl.clamp(min=settings.free_bits)
    return kl_weight * kl.sum() - row_terms.log_likelihood.mean()
