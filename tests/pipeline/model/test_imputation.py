"""The gaps of a linear-Gaussian model beside their distribution given what is seen."""

import numpy as np
import pytest
import torch
from scipy import stats

from pipeline.config import ModelConfig
from pipeline.model.objective import impute
from pipeline.model.operations import FUNCTIONS
from pipeline.model.vae import VAE
from serving.batch.imputer import choose_draws
from serving.errors import UsageRefused
from tests.mixed_tables import SCHEMA, draw_rows
from tests.pipeline.model.linear_gaussian import (
    BIAS,
    COLUMNS,
    SCALE,
    W,
    linear_gaussian,
    noise,
    rows_with,
)
from tests.pipeline.model.test_mixed import make_model

SEEN = np.array([True, False, True, True, False])
MISSING = np.flatnonzero(~SEEN)


def conditional(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean (rows, missing) and covariance of the missing cells given the seen ones."""
    covariance = np.outer(W, W) + np.diag(SCALE**2)
    inverse = np.linalg.inv(covariance[np.ix_(SEEN, SEEN)])
    gain = covariance[np.ix_(~SEEN, SEEN)] @ inverse
    mean = BIAS[~SEEN] + (x[:, SEEN] - BIAS[SEEN]) @ gain.T
    return mean, covariance[np.ix_(~SEEN, ~SEEN)] - gain @ covariance[np.ix_(SEEN, ~SEEN)]


def widened() -> VAE:
    """Return the model with a q that is too wide and off its place: the weights have to mend it."""
    model = linear_gaussian(SEEN)
    model.encoder.z_loc.bias.add_(0.4)
    model.encoder.z_log_scale.bias.add_(0.5)
    return model


@pytest.mark.parametrize("exact", [True, False], ids=["exact q", "another q"])
def test_the_mean_of_a_gap_is_that_of_its_distribution_given_the_rest(exact: bool) -> None:
    x = rows_with(SEEN)
    model = linear_gaussian(SEEN) if exact else widened()
    filled, log_weights, _ = impute(model, x, noise(len(x), 40_000))
    mean, _ = conditional(x.numpy())
    np.testing.assert_allclose(filled.x[:, MISSING].numpy(), mean, atol=0.01)
    np.testing.assert_allclose(log_weights.exp().sum(-1).numpy(), 1, rtol=1e-9)
    if exact:  # all draws weigh the same
        np.testing.assert_allclose(log_weights.numpy(), -np.log(40_000), atol=1e-9)


def test_without_the_weights_another_q_would_be_seen() -> None:
    """The test above can fail: the plain mean over the draws of that q is off."""
    x = rows_with(SEEN)
    model = widened()
    _, _, z = impute(model, x, noise(len(x), 40_000))
    plain = BIAS[MISSING] + z.mean(1).numpy() * W[MISSING]
    mean, _ = conditional(x.numpy())
    assert np.abs(plain - mean).max() > 0.1


def test_completed_copies_have_the_distribution_of_the_gaps_given_the_rest() -> None:
    """Mean, variance and correlation of two gaps of a row, and the shape of each."""
    x, times = rows_with(SEEN, 3), 20_000
    model = widened()
    _, log_weights, z = impute(model, x, noise(len(x), 30_000))
    generator = np.random.default_rng(0)
    chosen = choose_draws(log_weights.numpy(), generator.random((len(x), times)))
    latents = np.take_along_axis(z.numpy(), chosen[:, :, None], 1).reshape(-1, 1)
    normal = torch.from_numpy(generator.standard_normal((len(latents), COLUMNS)))
    (drawn,) = FUNCTIONS["draw"](model, torch.from_numpy(latents), normal)
    copies = drawn.numpy().reshape(len(x), times, COLUMNS)[:, :, MISSING]
    mean, covariance = conditional(x.numpy())
    for row, own in enumerate(copies):
        np.testing.assert_allclose(np.cov(own.T), covariance, atol=0.03)
        for place in range(len(MISSING)):
            exact = stats.norm(mean[row, place], np.sqrt(covariance[place, place]))
            assert stats.kstest(own[::10, place], exact.cdf).pvalue > 1e-3


def test_draws_are_chosen_in_proportion_to_their_weights() -> None:
    weights = np.array([[0.5, 0.0, 0.2, 0.3], [0.0, 0.0, 0.0, 1.0]])
    with np.errstate(divide="ignore"):
        logs = np.log(weights)
    chosen = choose_draws(logs, np.random.default_rng(0).random((2, 20_000)))
    counts = np.bincount(chosen[0], minlength=4)
    assert counts[1] == 0
    assert stats.chisquare(counts[[0, 2, 3]], 20_000 * weights[0, [0, 2, 3]]).pvalue > 1e-3
    assert (chosen[1] == 3).all()
    assert choose_draws(logs, np.array([[0.0], [1.0]])).tolist() == [[0], [3]]


def test_cells_that_are_seen_pass_through_bit_for_bit() -> None:
    model = make_model()
    x = draw_rows(200)
    x[:4, 0] = [-0.0, 1e-42, 3e30, -1e-30]
    x[5] = np.nan
    eps = torch.randn(len(x), 4, model.latent_dim, generator=torch.Generator().manual_seed(0))
    filled, log_weights, z = (
        y.numpy() for y in FUNCTIONS["impute"](model, torch.from_numpy(x), eps)
    )
    seen = ~np.isnan(x)
    assert filled[seen].tobytes() == x[seen].tobytes()
    assert np.isfinite(filled).all()
    assert (log_weights.shape, z.shape) == (eps.shape[:2], eps.shape)


def test_gaps_get_words_and_numbers_that_their_columns_can_hold() -> None:
    model = make_model()
    x = np.full((50, len(SCHEMA.columns)), np.nan, np.float32)
    eps = torch.randn(50, 8, model.latent_dim, generator=torch.Generator().manual_seed(0))
    filled = FUNCTIONS["impute"](model, torch.from_numpy(x), eps)[0].numpy()
    for place, column in enumerate(SCHEMA.columns):
        values = filled[:, place]
        if column.words:
            assert set(values) <= set(range(len(column.words)))
        elif column.kind in ("positive", "count"):
            assert (values >= 0).all()


def test_a_model_of_plain_numbers_fills_no_gaps() -> None:
    model = VAE((4,), ModelConfig(likelihood="gaussian", hidden_dims=(8,), latent_dim=2))
    with pytest.raises(UsageRefused, match="needs a model of a table with --likelihood mixed"):
        impute(model, torch.zeros(3, 4), torch.zeros(3, 2, 2))
