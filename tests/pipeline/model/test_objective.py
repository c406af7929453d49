import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence
from torch.nn import functional as F

from pipeline.config import LikelihoodName, ModelConfig, TrainConfig
from pipeline.model.gaussian import Gaussian
from pipeline.model.objective import Terms, loss, terms
from pipeline.model.vae import VAE, Posterior


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


def make_terms(log_likelihood: torch.Tensor, latent_kl: torch.Tensor) -> Terms:
    """Terms whose samples are the latents' means."""
    zeros = torch.zeros_like(latent_kl)
    return Terms(log_likelihood, latent_kl, zeros.unsqueeze(1), zeros.unsqueeze(1), zeros)


def seed_loss(
    recon: torch.Tensor, x: torch.Tensor, mu: torch.Tensor, logvar: torch.Tensor
) -> float:
    """The loss of pytorch/examples, summed over the batch."""
    bce = F.binary_cross_entropy(recon, x, reduction="sum")
    kld = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return (bce + kld).item()


def test_kl_equals_torch_and_the_textbook_formula() -> None:
    loc, log_scale = torch.randn(2, 50, 4, dtype=torch.float64)
    kl = Posterior(loc, log_scale).kl()
    standard = Normal(torch.zeros_like(loc), torch.ones_like(loc))
    expected = kl_divergence(Independent(Normal(loc, log_scale.exp()), 1), Independent(standard, 1))
    torch.testing.assert_close(kl, expected, rtol=1e-12, atol=1e-12)
    log_variance = 2 * log_scale
    textbook = -0.5 * (1 + log_variance - loc**2 - log_variance.exp()).sum(-1)
    torch.testing.assert_close(kl, textbook, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("log_scale", [1e-2, 5e-4, -1e-3], ids=str)
def test_kl_keeps_its_digits_near_the_prior(log_scale: float) -> None:
    single = Posterior(torch.zeros(1, 1), torch.tensor([[log_scale]])).kl().item()
    exact = (math.expm1(2 * log_scale) - 2 * log_scale) / 2
    assert single == pytest.approx(exact, rel=1e-3)


def test_loss_is_the_seed_loss_by_row() -> None:
    model, (x, eps) = build(), draw(samples=1)
    row_terms = terms(model, x, eps)
    qz = model.encode(x)
    recon = model.decode(qz.loc + qz.scale * eps[:, 0])
    expected = seed_loss(recon, x, qz.loc, 2 * qz.log_scale)
    assert len(x) * loss(row_terms, TrainConfig(), 1.0).item() == pytest.approx(expected, rel=1e-12)


def test_kl_weight_scales_the_kl_alone() -> None:
    row_terms = make_terms(torch.tensor([[-3.0]]), torch.tensor([[2.0]]))
    assert loss(row_terms, TrainConfig(), 0.5).item() == pytest.approx(3.0 + 0.5 * 2.0)


def test_loss_and_gradient_of_a_batch_are_means_over_its_parts() -> None:
    model, (x, eps) = build(), draw(rows=12)
    loss(terms(model, x, eps), TrainConfig(), 1.0).backward()
    whole = [
        parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None
    ]
    model.zero_grad()
    for part in (slice(0, 4), slice(4, 12)):
        share = (part.stop - part.start) / 12
        (share * loss(terms(model, x[part], eps[part]), TrainConfig(), 1.0)).backward()
    parts = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_log_ratio_equals_the_densities_of_torch() -> None:
    model, (x, eps) = build(), draw()
    qz = model.encode(x)
    z = qz.loc.unsqueeze(1) + qz.scale.unsqueeze(1) * eps
    prior = Normal(torch.zeros_like(z), torch.ones_like(z)).log_prob(z).sum(-1)
    posterior = Normal(qz.loc.unsqueeze(1), qz.scale.unsqueeze(1)).log_prob(z).sum(-1)
    torch.testing.assert_close(terms(model, x, eps).log_ratio, prior - posterior)


def test_iw_elbo_is_the_log_mean_weight() -> None:
    row_terms = terms(build(), *draw())
    weights = row_terms.log_weights()
    expected = weights.logsumexp(-1) - math.log(5)
    torch.testing.assert_close(row_terms.iw_elbo(), expected)
    assert (row_terms.iw_elbo() >= weights.mean(-1)).all()


def test_bernoulli_equals_torch_on_binary_data() -> None:
    model = build()
    params, x = torch.randn(4, 7, dtype=torch.float64), torch.ones(4, 7, dtype=torch.float64)
    expected = Bernoulli(logits=params).log_prob(x).sum(-1)
    torch.testing.assert_close(model.px.log_prob(params, x), expected)


def test_bernoulli_of_gray_values_is_the_mean_over_binary_draws() -> None:
    model = build()
    params, gray = torch.randn(1, 7, dtype=torch.float64), torch.rand(1, 7, dtype=torch.float64)
    draws = torch.bernoulli(gray.expand(200_000, 7), generator=torch.Generator().manual_seed(0))
    sampled = Bernoulli(logits=params).log_prob(draws).sum(-1)
    error = sampled.std() / len(draws) ** 0.5
    assert (sampled.mean() - model.px.log_prob(params, gray)).abs().item() < 4 * error.item()


def test_gaussian_is_the_density_in_the_units_of_the_data() -> None:
    model = build("gaussian")
    data = np.random.default_rng(0).normal(5, [1, 2, 3, 4, 5, 6, 7], (50, 7))
    model.px.fit(data)
    assert isinstance(model.likelihood, Gaussian)
    model.likelihood.x_log_scale.data.fill_(-0.3)
    x = torch.from_numpy(data[:4])
    params = torch.randn(4, 7, dtype=torch.float64)
    scale = math.exp(-0.3) * data.std(0)
    expected = stats.norm.logpdf(data[:4], model.px.mean(params).detach().numpy(), scale).sum(-1)
    got = model.px.log_prob(params, model.px.standardize(x)).detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("size", [1e4, 1e15], ids=str)
def test_extreme_parameters_give_finite_terms_and_gradients(
    likelihood: LikelihoodName, size: float
) -> None:
    model = build(likelihood, torch.float32)
    params = torch.tensor([[size, -size] * 3 + [0.0]], requires_grad=True)
    x = torch.tensor([[0.0, 1.0] * 3 + [0.5]])
    log_prob = model.px.log_prob(params, x).sum()
    log_prob.backward()
    assert params.grad is not None
    assert torch.isfinite(log_prob)
    assert torch.isfinite(params.grad).all()
    assert (params.grad[0, :6] != 0).all()


def test_extreme_log_scales_give_finite_kl() -> None:
    model = build(dtype=torch.float32)
    model.encoder.z_log_scale.bias.data.fill_(1e9)
    x, eps = draw(samples=1)
    row_terms = terms(model, x.float(), eps.float())
    assert torch.isfinite(row_terms.kl).all()
    assert torch.isfinite(row_terms.log_weights()).all()


def test_iwae_maximises_the_importance_weighted_bound() -> None:
    row_terms = terms(build(), *draw())
    settings = TrainConfig(objective="iwae")
    expected = -torch.logsumexp(row_terms.log_weights() - math.log(5), -1).mean()
    assert loss(row_terms, settings, 1.0).item() == pytest.approx(expected.item(), rel=1e-12)
    without = -torch.logsumexp(row_terms.log_likelihood - math.log(5), -1).mean()
    assert loss(row_terms, settings, 0.0).item() == pytest.approx(without.item(), rel=1e-12)


def test_free_bits_cost_nothing_and_pull_no_further() -> None:
    """Latents whose mean KL is below the limit count as the limit, and have no gradient."""
    latent_kl = torch.tensor([[0.1, 3.0], [0.3, 5.0]], requires_grad=True)
    row_terms = make_terms(torch.tensor([[-3.0], [-5.0]]), latent_kl)
    value = loss(row_terms, TrainConfig(free_bits=0.5), 1.0)
    assert value.item() == pytest.approx(4.0 + 0.5 + 4.0)
    value.backward()
    assert latent_kl.grad is not None
    assert latent_kl.grad.tolist() == [[0.0, 0.5], [0.0, 0.5]]
