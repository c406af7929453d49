"""A linear Gaussian VAE is probabilistic PCA (Tipping & Bishop, 1999), whose values are exact."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from pipeline.config import ModelConfig, configure
from pipeline.data.dataset import Dataset, Split
from pipeline.evaluation.evaluate import Metrics, evaluate
from pipeline.model.objective import elbo_terms
from pipeline.model.vae import VAE
from pipeline.training.loop import train

FEATURES, LATENTS = 6, 2
SIGMA = 0.4


def orthogonal_loadings() -> NDArray[np.float64]:
    """Return orthogonal loadings, so that the exact posterior has independent coordinates."""
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((FEATURES, LATENTS)))[0]
    loadings: NDArray[np.float64] = basis * [2.0, 0.7]
    return loadings


def exact_model(loadings: NDArray[np.float64]) -> VAE:
    """Return the VAE whose posterior is exact for x = W z + offset + sigma noise."""
    settings = ModelConfig(likelihood="gaussian", hidden_dims=(), latent_dim=LATENTS)
    model = VAE((FEATURES,), settings).double()
    weights = torch.from_numpy(loadings)
    offset = torch.arange(FEATURES, dtype=torch.float64) / 3
    precision = torch.diagonal(weights.T @ weights) + SIGMA**2
    with torch.no_grad():
        model.decoder.x_params.weight.copy_(weights)
        model.decoder.x_params.bias.copy_(offset)
        model.encoder.z_loc.weight.copy_(weights.T / precision[:, None])
        model.encoder.z_loc.bias.copy_(-(weights.T @ offset) / precision)
        model.encoder.z_log_scale.weight.zero_()
        model.encoder.z_log_scale.bias.copy_((SIGMA**2 / precision).log() / 2)
        for parameter in model.likelihood.parameters():
            parameter.fill_(np.log(SIGMA))
    return model


def draw_rows(loadings: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    generator = np.random.default_rng(1)
    z = generator.standard_normal((rows, LATENTS))
    noise = SIGMA * generator.standard_normal((rows, FEATURES))
    x: NDArray[np.float64] = z @ loadings.T + np.arange(FEATURES) / 3 + noise
    return x


def exact_log_p(loadings: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    covariance = loadings @ loadings.T + SIGMA**2 * np.eye(FEATURES)
    log_p: NDArray[np.float64] = stats.multivariate_normal(
        np.arange(FEATURES) / 3, covariance
    ).logpdf(x)
    return log_p


def evaluate_exact(model: VAE, samples: int, rows: int = 200) -> tuple[Metrics, float]:
    loadings = orthogonal_loadings()
    x = draw_rows(loadings, rows)
    return evaluate(model, x, nll_samples=samples, seed=0), float(exact_log_p(loadings, x).mean())


@pytest.mark.parametrize("samples", [1, 10], ids=str)
def test_nll_is_exact_for_any_number_of_samples_under_the_exact_posterior(samples: int) -> None:
    metrics, log_p = evaluate_exact(exact_model(orthogonal_loadings()), samples)
    assert metrics.nll == pytest.approx(-log_p, abs=1e-4)


def test_elbo_converges_to_log_p_under_the_exact_posterior() -> None:
    metrics, log_p = evaluate_exact(exact_model(orthogonal_loadings()), 40_000, rows=40)
    loose, _ = evaluate_exact(exact_model(orthogonal_loadings()), 1, rows=40)
    assert metrics.elbo == pytest.approx(log_p, abs=5e-3)
    assert abs(loose.elbo - log_p) > abs(metrics.elbo - log_p)


def test_elbo_is_exact_in_closed_form() -> None:
    """E_q[log p(x given z)] of a linear decoder is known, so the bound needs no samples."""
    loadings = orthogonal_loadings()
    model, x = exact_model(loadings), draw_rows(loadings, 200)
    with torch.no_grad():
        qz = model.encode(torch.from_numpy(x))
        at_mean = model.px.log_prob(
            model.decoder(qz.loc), model.px.standardize(torch.from_numpy(x))
        )
        spread = (qz.scale.square() @ torch.from_numpy(loadings**2).T).sum(-1) / (2 * SIGMA**2)
        elbo = (at_mean - spread - qz.kl()).numpy()
    np.testing.assert_allclose(elbo, exact_log_p(loadings, x), rtol=0, atol=1e-4)


def test_bounds_are_ordered_under_a_wrong_posterior() -> None:
    model = exact_model(orthogonal_loadings())
    with torch.no_grad():
        model.encoder.z_log_scale.bias.add_(0.5)
    one, log_p = evaluate_exact(model, 1)
    many, _ = evaluate_exact(model, 2000)
    assert many.elbo < -many.nll <= log_p + 1e-2
    assert -one.nll < -many.nll
    assert many.nll == pytest.approx(-log_p, abs=1e-2)


def test_more_samples_raise_the_importance_weighted_bound_towards_log_p() -> None:
    """Burda et al. (2016), theorem 1: elbo <= iw_elbo(k) <= iw_elbo(k + 1) <= log p."""
    loadings = orthogonal_loadings()
    model, x = exact_model(loadings), draw_rows(loadings, 4000)
    with torch.no_grad():
        model.encoder.z_log_scale.bias.add_(0.5)
        generator = torch.Generator().manual_seed(0)
        eps = torch.randn(len(x), 50, LATENTS, generator=generator, dtype=torch.float64)
        terms = [elbo_terms(model, torch.from_numpy(x), eps[:, :k]) for k in (1, 5, 50)]
    bounds = [terms[-1].elbo().mean(), *(term.iw_elbo().mean() for term in terms[1:])]
    log_p = exact_log_p(loadings, x).mean()
    assert bounds[0] < bounds[1] < bounds[2] < log_p + 1e-3
    assert bounds[2] == pytest.approx(log_p, abs=5e-3)


def test_training_reaches_the_maximum_likelihood_of_pca() -> None:
    x = draw_rows(orthogonal_loadings(), 3000).astype(np.float32)
    parts = [Split(part, "") for part in np.split(x, [2000, 2500])]
    config = configure(
        "default",
        hidden_dims=(),
        latent_dim=LATENTS,
        likelihood="gaussian",
        epochs=60,
        learning_rate=1e-2,
        patience=60,
    )
    result = train(Dataset("table", *parts), config)
    metrics = evaluate(result.model, x[2500:], nll_samples=200, seed=0)
    assert metrics.nll == pytest.approx(-fitted_log_p(x[:2000], x[2500:]), abs=0.03)
    assert metrics.active_units == LATENTS


def fitted_log_p(train: NDArray[np.float32], test: NDArray[np.float32]) -> float:
    """Return the mean log-density under the maximum-likelihood PCA of standardized columns."""
    shift, unit = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    values, vectors = np.linalg.eigh(np.cov((train - shift) / unit, rowvar=False))
    noise = values[:-LATENTS].mean()
    top = vectors[:, -LATENTS:]
    covariance = top @ np.diag(values[-LATENTS:] - noise) @ top.T + noise * np.eye(FEATURES)
    log_p = stats.multivariate_normal(np.zeros(FEATURES), covariance).logpdf((test - shift) / unit)
    return float(log_p.mean() - np.log(unit).sum())
