"""What the means leave over: sums of columns, models from before, and tables that are too wide."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.config import ModelConfig, configure
from pipeline.data.dataset import Dataset, Split, digest
from pipeline.model.checkpoint import Checkpoint
from pipeline.model.objective import impute
from pipeline.model.vae import VAE
from pipeline.training.beginning import begin_training
from pipeline.training.loop import train
from pipeline.training.remainder import fit_ridge
from pipeline.training.warm_start import InitialModel, warm_start
from serving.noise import draw_eps
from serving.schema import Column, Schema
from tests.mixed_tables import make_dataset

SCHEMA = Schema(columns=tuple(Column(name=name, kind="real") for name in "abcdef"))
LOADINGS = np.random.default_rng(5).standard_normal((6, 3))
COVARIANCE = LOADINGS @ LOADINGS.T + 0.05 * np.eye(6)


def draw_rows(rows: int, seed: int) -> NDArray[np.float32]:
    generator = np.random.default_rng(seed)
    return generator.multivariate_normal(np.zeros(6), COVARIANCE, rows).astype(np.float32)


def fill(model: VAE, x: NDArray[np.float32]) -> NDArray[np.float64]:
    eps = draw_eps(x, 0, 64, model.latent_dim)
    with torch.no_grad():
        filled = impute(model, torch.from_numpy(x), torch.from_numpy(eps), torch.float64)[0].x
    return np.asarray(filled.numpy(), np.float64)


def exact_means(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return E[gap given the seen cells] of a normal distribution."""
    filled = x.astype(np.float64)
    for row in filled:
        gap = np.isnan(row)
        gain = np.linalg.solve(COVARIANCE[np.ix_(~gap, ~gap)], COVARIANCE[np.ix_(~gap, gap)])
        row[gap] = row[~gap] @ gain
    return filled


def test_a_normal_table_is_filled_almost_as_well_as_by_its_exact_conditional_means() -> None:
    splits = [Split(x, digest(x)) for x in (draw_rows(2000, 0), draw_rows(200, 1), draw_rows(9, 2))]
    dataset = Dataset("table", *splits, columns=tuple("abcdef"), schema=SCHEMA)
    model = train(dataset, configure(epochs=40, likelihood="mixed", latent_dim=2)).model
    truth = draw_rows(1000, 3)
    gaps = np.random.default_rng(4).random(truth.shape) < 0.2
    x = np.where(gaps, np.float32(np.nan), truth)

    def error(filled: NDArray[np.float64]) -> float:
        return float(np.sqrt(np.mean((filled - truth)[gaps] ** 2)))

    exact, found = error(exact_means(x)), error(fill(model, x))
    assert model.mixed is not None
    assert model.mixed.remainder is not None
    for part in (model.mixed.remainder.weight, model.mixed.remainder.bias):
        part.zero_()
    alone = error(fill(model, x))
    assert exact < found < 1.25 * exact
    assert alone > 1.1 * found  # two latents cannot hold three factors


def test_a_ridge_finds_slopes_and_leaves_noise_alone() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((4000, 5)) + 3
    truth = generator.standard_normal((5, 2))
    slopes, start = fit_ridge(x, x @ truth + [1, -2])
    np.testing.assert_allclose(slopes, truth, atol=2e-3)
    np.testing.assert_allclose(start, [1, -2], atol=2e-2)
    slopes, start = fit_ridge(x[:200], generator.standard_normal((200, 1)))
    assert np.abs(slopes).max() < 0.1


def test_a_model_from_before_there_was_one_is_loaded_and_fills_as_it_did() -> None:
    settings = ModelConfig(likelihood="mixed", hidden_dims=(8,), latent_dim=2)
    old = VAE((6,), settings, SCHEMA).eval()
    state = {k: v for k, v in old.state_dict().items() if "remainder" not in k}
    new = VAE((6,), settings, SCHEMA).eval()
    assert len(state) < len(new.state_dict())
    new.load_state_dict(state)
    x = draw_rows(20, 0)
    x[:, ::2] = np.nan
    assert fill(new, x).tobytes() == fill(old, x).tobytes()


def test_a_training_may_start_from_a_model_that_has_one() -> None:
    dataset = make_dataset(200)
    config = configure(epochs=1, likelihood="mixed", latent_dim=2, hidden_dims=(8,))
    model = train(dataset, config).model
    earlier = Checkpoint(model, config, "float32", "mixed", dataset.describe(), {})
    state = begin_training(dataset, config, "cpu")
    warm_start(state, "float32", InitialModel(earlier, {"from": "models:/vae/3"}))
    found, expected = (m.state_dict()["likelihood.remainder.weight"] for m in (state.model, model))
    assert torch.equal(found, expected)
    assert found.abs().max() > 0


@pytest.mark.parametrize(("columns", "has_one"), [(500, True), (501, False)], ids=["500", "501"])
def test_a_wide_table_has_no_regression(columns: int, has_one: bool) -> None:
    schema = Schema(columns=tuple(Column(name=f"c{i}", kind="real") for i in range(columns)))
    settings = ModelConfig(likelihood="mixed", hidden_dims=(8,), latent_dim=2)
    mixed = VAE((columns,), settings, schema).mixed
    assert mixed is not None
    assert (mixed.remainder is not None) == has_one
