import math
from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal
from torch.nn import functional as F

from pipeline.config import LikelihoodName, ModelConfig, TrainConfig
from pipeline.model.objective import ElboTerms, elbo_terms, loss
from pipeline.model.vae import VAE


def build(likelihood: LikelihoodName = "bernoulli", dtype: torch.dtype = torch.float64) -> VAE:
    torch.manual_seed(0)
    settings = ModelConfig(hidden_dims=(16,), latent_dim=3, activation="tanh")
    settings = replace(settings, likelihood=likelihood)
    model = VAE((7,), settings)
    return model.to(dtype)


def draw(rows: int = 11, samples: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(rows, 7, generator=generator, dtype=torch.float64)
    return x, torch.randn(rows, samples, 3, generator=generator, dtype=torch.float64)


def make_terms(log_likelihood: torch.Tensor, latent_kl: torch.Tensor) -> ElboTerms:
    """Return terms whose noise and latents are zero."""
    zeros = torch.zeros_like(latent_kl)
    return ElboTerms(log_likelihood, latent_kl, zeros.unsqueeze(1), zeros.unsqueeze(1), zeros)


def seed_loss(
    recon: torch.Tensor, x: torch.Tensor, mu: torch.Tensor, logvar: torch.Tensor
) -> float:
    """Return the loss of pytorch/examples, summed over the batch."""
    bce = F.binary_cross_entropy(recon, x, reduction="sum")
    kld = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return (bce + kld).item()


def test_the_loss_equals_the_seed_loss_per_row() -> None:
    model, (x, eps) = build(), draw(samples=1)
    terms = elbo_terms(model, x, eps)
    qz = model.encode(x)
    recon = model.decode(qz.loc + qz.scale * eps[:, 0])
    expected = seed_loss(recon, x, qz.loc, 2 * qz.log_scale)
    assert len(x) * loss(terms, TrainConfig(), 1.0).item() == pytest.approx(expected, rel=1e-12)


def test_the_kl_weight_scales_only_the_kl() -> None:
    terms = make_terms(torch.tensor([[-3.0]]), torch.tensor([[2.0]]))
    assert loss(terms, TrainConfig(), 0.5).item() == pytest.approx(3.0 + 0.5 * 2.0)


def test_loss_and_gradient_of_a_batch_are_means_over_its_parts() -> None:
    model, (x, eps) = build(), draw(rows=12)
    loss(elbo_terms(model, x, eps), TrainConfig(), 1.0).backward()
    whole = [
        parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None
    ]
    model.zero_grad()
    for part in (slice(0, 4), slice(4, 12)):
        share = (part.stop - part.start) / 12
        (share * loss(elbo_terms(model, x[part], eps[part]), TrainConfig(), 1.0)).backward()
    parts = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_log_ratio_equals_the_densities_of_torch() -> None:
    model, (x, eps) = build(), draw()
    qz = model.encode(x)
    z = qz.loc.unsqueeze(1) + qz.scale.unsqueeze(1) * eps
    prior = Normal(torch.zeros_like(z), torch.ones_like(z)).log_prob(z).sum(-1)
    posterior = Normal(qz.loc.unsqueeze(1), qz.scale.unsqueeze(1)).log_prob(z).sum(-1)
    torch.testing.assert_close(elbo_terms(model, x, eps).log_ratio, prior - posterior)


def test_iw_elbo_is_the_log_mean_weight() -> None:
    terms = elbo_terms(build(), *draw())
    weights = terms.log_weights()
    expected = weights.logsumexp(-1) - math.log(5)
    torch.testing.assert_close(terms.iw_elbo(), expected)
    assert (terms.iw_elbo() >= weights.mean(-1)).all()


def test_extreme_log_scales_give_finite_terms() -> None:
    model = build(dtype=torch.float32)
    model.encoder.z_log_scale.bias.data.fill_(1e9)
    x, eps = draw(samples=1)
    terms = elbo_terms(model, x.float(), eps.float())
    assert torch.isfinite(terms.kl).all()
    assert torch.isfinite(terms.log_weights()).all()


def test_iwae_maximises_the_importance_weighted_bound() -> None:
    terms = elbo_terms(build(), *draw())
    settings = TrainConfig(objective="iwae")
    expected = -torch.logsumexp(terms.log_weights() - math.log(5), -1).mean()
    assert loss(terms, settings, 1.0).item() == pytest.approx(expected.item(), rel=1e-12)
    without = -torch.logsumexp(terms.log_likelihood - math.log(5), -1).mean()
    assert loss(terms, settings, 0.0).item() == pytest.approx(without.item(), rel=1e-12)


def test_free_bits_cost_nothing_and_have_no_gradient() -> None:
    """A latent whose mean KL is below the limit counts as the limit and has no gradient."""
    latent_kl = torch.tensor([[0.1, 3.0], [0.3, 5.0]], requires_grad=True)
    terms = make_terms(torch.tensor([[-3.0], [-5.0]]), latent_kl)
    value = loss(terms, TrainConfig(free_bits=0.5), 1.0)
    assert value.item() == pytest.approx(4.0 + 0.5 + 4.0)
    value.backward()
    assert latent_kl.grad is not None
    assert latent_kl.grad.tolist() == [[0.0, 0.5], [0.0, 0.5]]
