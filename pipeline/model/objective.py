"""The ELBO and the importance-weighted bound: one value per row, in nats, larger is better.

Kingma & Welling (2014), equation 3: elbo = E_q[log p(x given z)] - KL(q(z given x), p(z)).
Burda et al. (2016), equation 8: iw_elbo = log mean_k p(x, z_k) / q(z_k given x).
Bowman et al. (2016): the weight of the KL grows from 0 during a warm-up.
Kingma et al. (2016), appendix C.8: free bits, an amount of KL per latent that costs nothing.
Mattei & Frellsen (2019), section 3.2: the weights of that bound predict what is missing.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.config import TrainConfig
from pipeline.model.filling import fill
from pipeline.model.inversion import Drawn
from pipeline.model.network_precision import run_network
from pipeline.model.vae import VAE, Posterior
from serving.errors import UsageRefused

LEAST_DRAWS = 32
"""The effective number of draws by which a gap is filled, if there are twice as many."""


class ElboTerms(NamedTuple):
    """The quantities from which the bounds are computed."""

    log_likelihood: Tensor
    """log p(x given z_k), (batch, num_samples)."""
    latent_kl: Tensor
    """KL(q(z given x), p(z)) of each latent, (batch, latent_dim), in closed form."""
    eps: Tensor
    """Standard normal noise, (batch, num_samples, latent_dim)."""
    z: Tensor
    """The latents z_k, of the shape of `eps`."""
    log_scale: Tensor
    """Log of the scale of q(z given x), (batch, latent_dim)."""
    cells: Tensor | None = None
    """log p of each cell of a mixed table, (batch, num_samples, columns)."""
    rows: Tensor | None = None
    """The rows of a mixed table in network units."""
    params: Tensor | None = None
    """What the decoder gives for each z_k of a mixed table, (batch, num_samples, params_width)."""

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
        """Return the bound with the closed-form KL, (batch,)."""
        return self.log_likelihood.mean(-1) - self.kl

    def log_weights(self, kl_weight: float | Tensor = 1.0) -> Tensor:
        """Return log p(x, z_k) - log q(z_k given x), (batch, num_samples)."""
        return self.log_likelihood + kl_weight * self.log_ratio

    def iw_elbo(self, kl_weight: float | Tensor = 1.0) -> Tensor:
        """Return the importance-weighted bound, (batch,); with one sample it is an ELBO."""
        weights = self.log_weights(kl_weight)
        top = weights.amax(-1, keepdim=True)
        return (weights - top).exp().mean(-1).log() + top.squeeze(-1)


def elbo_terms(
    model: VAE,
    x: Tensor,
    eps: Tensor,
    dtype: torch.dtype | None = None,
    *,
    bf16: bool = False,
) -> ElboTerms:
    """Evaluate the model on `x` (batch, *x_shape) with `eps` (batch, num_samples, latent_dim).

    Everything after the networks is computed in `dtype`, by default that of their outputs, and for
    a mixed table everything before them. With `bf16` the networks compute in bfloat16, and nothing
    else does.
    """
    rows = model.px.standardize(x.to(dtype) if model.mixed and dtype is not None else x)
    qz = model.infer(rows, bf16=bf16)
    z = qz.loc.unsqueeze(1) + qz.scale.unsqueeze(1) * eps
    decoded = run_network(model.decoder, z.flatten(0, 1), bf16=bf16)
    params = given = decoded.unflatten(0, (-1, eps.shape[1]))
    if dtype is not None:
        rows, z, eps, params = (tensor.to(dtype) for tensor in (rows, z, eps, params))
        qz = Posterior(*(tensor.to(dtype) for tensor in qz))
    if model.mixed is None:
        log_likelihood = model.px.log_prob(params, rows.unsqueeze(1))
        return ElboTerms(log_likelihood, qz.latent_kl(), eps, z, qz.log_scale)
    cells = model.mixed.cell_log_prob(given, rows.unsqueeze(1))
    return ElboTerms(cells.sum(-1), qz.latent_kl(), eps, z, qz.log_scale, cells, rows, params)


def impute(
    model: VAE, x: Tensor, eps: Tensor, dtype: torch.dtype | None = None
) -> tuple[Drawn, Tensor, Tensor]:
    """Return every cell as the seen ones predict it, log-weights and latents of the draws.

    With z_k ~ q(z given seen), the expectation of a missing cell is approximated by
    sum_k w_k E[cell given z_k], where w_k is proportional to p(seen given z_k) p(z_k) /
    q(z_k given seen), and sums to 1 (equations 10 and 11: single imputation). To pick a z_k with
    the probability w_k and draw the cell from p(x given z_k) is multiple imputation. Where few
    draws would have all of the weight, the mean is over more even ones, see `even_weights`.
    """
    terms = elbo_terms(model, x, eps, dtype)
    if model.mixed is None or terms.params is None:
        raise UsageRefused("impute needs a model of a table with --likelihood mixed")
    log_weights = terms.log_weights()
    log_weights = log_weights - log_weights.amax(-1, keepdim=True)
    log_weights = log_weights - log_weights.exp().sum(-1, keepdim=True).log()
    filled = fill(model.mixed, terms.params, even_weights(log_weights.exp()), x)
    return filled, log_weights, terms.z


def even_weights(weights: Tensor) -> Tensor:
    """Mix weights (batch, num_samples) that sum to 1 with equal ones, as far as they need it.

    Kish's effective number of draws, 1 / sum w², becomes at least `LEAST_DRAWS`, or half of the
    draws if that is less. A wide row would otherwise be filled from one or two of them. Weights
    that are even enough stay as they are, so that the limit of many draws is the same.
    """
    even = 1 / torch.ones_like(weights).sum(-1, keepdim=True)
    allowed = (2 * even).clamp(min=1 / LEAST_DRAWS) - even
    excess = (weights.square().sum(-1, keepdim=True) - even).clamp(min=1e-9)
    share = (allowed / excess).sqrt().clamp(max=1)
    return share * weights + (1 - share) * even


def loss(
    terms: ElboTerms,
    settings: TrainConfig,
    kl_weight: float | Tensor,
    batch_mean: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return the loss: a mean over the batch, so that its size does not scale the gradients.

    If the rows are a part of the batch, `batch_mean` turns a mean over them into that of all.
    """
    if settings.objective == "iwae":
        return -terms.iw_elbo(kl_weight).mean()
    kl = terms.latent_kl.mean(0)
    if settings.free_bits:
        if batch_mean is not None:  # the mean of the batch decides, and the rows give the gradient
            kl = kl + (batch_mean(kl.detach()) - kl.detach())
        kl = kl.clamp(min=settings.free_bits)
    return kl_weight * kl.sum() - terms.log_likelihood.mean()
