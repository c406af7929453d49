"""Gaps, hidden cells and scores of cells, beside closed forms of a linear-Gaussian model."""

import numpy as np
import pytest
import torch

from pipeline.config import ModelConfig, configure
from pipeline.model.explanation import explain
from pipeline.model.likelihoods import resolve_model_config
from pipeline.model.mixed import Mixed, cell_scores
from pipeline.model.objective import elbo_terms
from pipeline.model.operations import draw_inputs, run_reference
from pipeline.model.vae import VAE
from pipeline.training.loop import train
from serving.errors import DataRefused, UsageRefused
from serving.operations import operation_table
from tests.mixed_tables import SCHEMA, draw_rows, make_dataset
from tests.pipeline.model.linear_gaussian import (
    COLUMNS,
    linear_gaussian,
    marginal,
    noise,
    rows_with,
)

SOME = np.array([True, False, True, True, False])


@pytest.mark.parametrize("seen", [SOME, ~SOME, SOME | True], ids=["some", "others", "all"])
def test_a_row_with_gaps_has_the_density_of_what_was_seen(seen: np.ndarray) -> None:
    x = rows_with(seen)
    terms = elbo_terms(linear_gaussian(seen), x, noise(len(x), 3))
    exact = marginal(seen).logpdf(x[:, seen].numpy())
    np.testing.assert_allclose(terms.iw_elbo().numpy(), exact, atol=1e-4)


def test_the_lift_of_a_cell_is_its_density_given_the_others() -> None:
    seen = SOME
    x, model = rows_with(seen), linear_gaussian(seen)
    assert model.mixed is not None
    model.mixed.reference.fit(np.random.default_rng(2).normal(size=(500, COLUMNS)),
                              np.ones((500, COLUMNS), bool))  # fmt: skip
    terms = elbo_terms(model, x, noise(len(x), 20_000))
    assert terms.cells is not None
    assert terms.rows is not None
    scores = cell_scores(model.mixed, terms.cells, terms.rows)
    reference = model.mixed.cell_reference(terms.rows).numpy()
    joint = marginal(seen).logpdf(x[:, seen].numpy())
    expected = np.zeros((len(x), COLUMNS))
    for index in np.flatnonzero(seen):
        others = seen & (np.arange(COLUMNS) != index)
        expected[:, index] = joint - marginal(others).logpdf(x[:, others].numpy())
    expected = np.where(seen, expected - reference, 0)
    np.testing.assert_allclose(scores.column_lift.numpy(), expected, atol=0.05)
    odds = np.exp(-scores.column_lift.numpy()[:, seen]).mean(1)
    np.testing.assert_allclose(scores.consistency.numpy(), -np.log(odds), atol=1e-9)


@pytest.mark.parametrize("index", [0, 1, 3])
def test_an_explanation_judges_a_cell_by_the_others_alone(index: int) -> None:
    others = np.arange(COLUMNS) != index
    model, x = linear_gaussian(others), rows_with(SOME | True)
    assert model.mixed is not None
    lift = explain(model, x, noise(len(x), 4000), torch.float64)
    reference = model.mixed.cell_reference(model.px.standardize(x)).numpy()[:, index]
    values = x.numpy()
    joint, rest = marginal(SOME | True), marginal(others)
    expected = joint.logpdf(values) - rest.logpdf(values[:, others]) - reference
    np.testing.assert_allclose(lift[:, index].numpy(), expected, atol=0.05)


def test_an_explanation_does_not_let_a_cell_speak_for_itself() -> None:
    model, x = make_model(), torch.from_numpy(draw_rows(40, gaps=0.1))
    eps = torch.randn(40, 3, model.latent_dim)
    lift = explain(model, x, eps, torch.float64)
    assert (lift[x.isnan()] == 0).all()
    for index in range(x.shape[1]):
        rest = x.clone()
        rest[:, index] = torch.nan
        params, px = elbo_terms(model, rest, eps, torch.float64).params, mixed_of(model)
        assert params is not None
        rows = px.standardize(x.double())
        cells = px.cell_log_prob(params.float(), rows.unsqueeze(1))
        given = px.in_order(cells.exp().mean(1).log() - px.cell_reference(rows))
        seen = ~x[:, index].isnan()
        torch.testing.assert_close(lift[seen, index], given[seen, index])


def test_the_cells_sum_to_the_log_likelihood() -> None:
    model, x = make_model(), torch.from_numpy(draw_rows(50))
    eps = torch.randn(50, 4, model.latent_dim)
    terms = elbo_terms(model, x, eps)
    assert terms.cells is not None
    assert terms.rows is not None
    scores = cell_scores(mixed_of(model), terms.cells, terms.rows)
    total = scores.column_log_likelihood.sum(-1)
    torch.testing.assert_close(total, terms.log_likelihood.mean(-1))
    gaps = x.isnan()
    assert gaps.any()
    assert (scores.column_log_likelihood[gaps] == 0).all()
    assert (scores.column_lift[gaps] == 0).all()


def make_model() -> VAE:
    dataset = make_dataset(300)
    settings = resolve_model_config(configure(), *dataset.rows, schema=SCHEMA)
    torch.manual_seed(0)
    model = VAE(dataset.x_shape, settings, SCHEMA)
    model.px.fit(dataset.sample)
    return model.eval().requires_grad_(False)


def mixed_of(model: VAE) -> Mixed:
    assert model.mixed is not None
    return model.mixed


def test_what_stands_in_a_gap_changes_no_byte() -> None:
    model, x = make_model(), draw_rows(60)
    other = x.copy()
    bits = other.view(np.uint32)
    bits[np.isnan(x)] = 0xFFC12345  # a NaN with a sign and a payload
    eps = torch.randn(60, 2, model.latent_dim)
    first, second = (
        elbo_terms(model, torch.from_numpy(rows), eps, torch.float64) for rows in (x, other)
    )
    assert first.iw_elbo().numpy().tobytes() == second.iw_elbo().numpy().tobytes()
    assert first.z.numpy().tobytes() == second.z.numpy().tobytes()


def test_a_row_of_gaps_alone_has_scores() -> None:
    model = make_model()
    x = torch.full((2, len(SCHEMA.columns)), torch.nan)
    terms = elbo_terms(model, x, torch.randn(2, 3, model.latent_dim), torch.float64)
    assert terms.cells is not None
    assert terms.rows is not None
    scores = cell_scores(mixed_of(model), terms.cells, terms.rows)
    assert (terms.log_likelihood == 0).all()
    assert (scores.consistency == 0).all()
    assert terms.iw_elbo().isfinite().all()


def test_the_mean_has_the_units_of_the_data() -> None:
    x = draw_rows(4000, gaps=0)
    model = make_model()
    bias = mixed_of(model).output_bias(x)
    found = mixed_of(model).mean(bias[None])[0]
    assert found[0].item() == pytest.approx(x[:, 0].mean(), abs=0.5)
    assert found[1].item() == np.bincount(x[:, 1].astype(int)).argmax()
    assert found[2].item() == pytest.approx(x[:, 2].mean(), rel=0.01)
    assert found[3].item() == pytest.approx(np.median(x[:, 3]), rel=0.2)


def test_a_mixed_likelihood_needs_a_schema_and_finite_values() -> None:
    with pytest.raises(UsageRefused, match="for a table with a column for each feature"):
        VAE((3,), ModelConfig(likelihood="mixed"))
    with pytest.raises(DataRefused, match="infinite"):
        Mixed(SCHEMA).check(np.array([[np.inf]]))


def test_a_cell_that_does_not_fit_is_found_after_training() -> None:
    dataset = make_dataset(1500)
    model = train(dataset, configure(epochs=60, hidden_dims=(32,), latent_dim=2)).model
    x = draw_rows(400, seed=9, gaps=0)
    order = np.argsort(x[:, 0])
    x[order[-50:], 0] = x[order[:50], 0]  # the largest become the smallest, beside large others
    eps = torch.randn(400, 16, 2, generator=torch.Generator().manual_seed(0))
    terms = elbo_terms(model, torch.from_numpy(x), eps, torch.float64)
    assert terms.cells is not None
    assert terms.rows is not None
    scores = cell_scores(mixed_of(model), terms.cells, terms.rows)
    changed = order[-50:]
    others = np.setdiff1d(np.arange(400), changed)
    assert scores.consistency[changed].max() < scores.consistency[others].quantile(0.1)
    named = scores.column_lift[changed].argmin(-1)
    assert (named == 0).float().mean() > 0.9


def test_an_explanation_of_many_rows_is_computed_a_part_at_a_time() -> None:
    model, rows = make_model(), 400
    operation = operation_table(model.x_shape, "float32", model.latent_dim, mixed=True)["explain"]
    inputs = draw_inputs(operation, draw_rows(rows), num_samples=2, seed=3)
    sizes = []
    model.decoder.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    (lift,) = run_reference(model, operation, inputs, torch.float64).values()
    assert max(sizes) <= 2 * 1024
    assert sum(sizes) == rows * operation.copies * 2
    x, eps = (torch.from_numpy(inputs[name]).double() for name in ("x", "eps"))
    whole = explain(model.double(), x, eps)
    np.testing.assert_allclose(lift, whole.numpy(), atol=1e-9)
