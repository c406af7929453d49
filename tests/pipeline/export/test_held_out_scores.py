"""The scores of held-out rows in a bundle, from which `vae score` finds p-values."""

import numpy as np
import pytest

from pipeline.config import Precision
from pipeline.export import held_out_scores
from pipeline.export.held_out_scores import score_held_out
from serving.bundle import CARD, HELD_OUT, Bundle
from serving.engine import Engine
from serving.operations import operation_table
from serving.p_values import read_held_out_scores
from tests.mixed_tables import draw_rows, make_dataset
from tests.trained_models import PRECISIONS, Trained, tiny_config, train_checkpoint


def test_they_are_the_engine_s_scores_of_the_held_out_rows(
    sealed: Bundle, trained: Trained
) -> None:
    held_out = read_held_out_scores(sealed)
    assert held_out is not None
    found = Engine(sealed).score(trained[1].test.x, held_out.num_samples, held_out.seed)
    assert held_out.scores.keys() == found.keys()
    for name, values in found.items():
        assert held_out.scores[name].dtype == np.float32
        assert held_out.scores[name] == pytest.approx(values, rel=1e-5, abs=1e-4)
    assert HELD_OUT in (sealed.path / CARD).read_text()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_they_are_those_of_the_graphs_in_a_reduced_precision(
    reduced: dict[str, Bundle], sealed: Bundle, trained: Trained, precision: Precision
) -> None:
    held_out, exact = read_held_out_scores(reduced[precision]), read_held_out_scores(sealed)
    assert held_out is not None
    assert exact is not None
    found = Engine(reduced[precision]).score(trained[1].test.x, 1, 0)["elbo"]
    error = np.abs(held_out.scores["elbo"] - found).mean()
    assert error < np.abs(held_out.scores["elbo"] - exact.scores["elbo"]).mean() / 2


@pytest.mark.parametrize("most", [30, 100])
def test_of_many_rows_a_fixed_choice_is_scored(
    trained: Trained, sealed: Bundle, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(held_out_scores, "MOST_ROWS", most)
    checkpoint, dataset = trained
    rows = min(most, len(dataset.test.x))
    first, second = (
        score_held_out(checkpoint.model, sealed.operations["score"], dataset.test.x)
        for _ in range(2)
    )
    assert first.scores["elbo"].shape == (rows,)
    assert np.array_equal(first.scores["elbo"], second.scores["elbo"])
    whole = read_held_out_scores(sealed)
    assert whole is not None
    assert np.isin(np.round(first.scores["elbo"], 2), np.round(whole.scores["elbo"], 2)).all()


def test_rows_without_a_finite_score_are_left_out(trained: Trained, sealed: Bundle) -> None:
    checkpoint, dataset = trained
    x = dataset.test.x[:20].astype(np.float32)
    x[3] = np.nan
    found = score_held_out(checkpoint.model, sealed.operations["score"], x)
    assert found.scores["elbo"].shape == (19,)


def test_of_a_table_the_cells_of_some_rows_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_dataset(300)
    config = tiny_config(data, likelihood="mixed", epochs=1, fit_sizes=False)
    model, x = train_checkpoint(data, config).model, draw_rows(90, seed=1)
    operation = operation_table((x.shape[1],), "float32", model.latent_dim, mixed=True)["score"]
    whole = score_held_out(model, operation, x)
    cells = whole.scores["column_log_likelihood"]
    assert cells.shape == x.shape
    assert (cells[np.isnan(x)] == 0).all()
    monkeypatch.setattr(held_out_scores, "LEAST_ROWS", 10)
    monkeypatch.setattr(held_out_scores, "MOST_CELLS", 20 * cells.shape[1])
    fewer = score_held_out(model, operation, x)
    kept = fewer.scores["column_log_likelihood"]
    places = [int(np.flatnonzero((cells == row).all(1))[0]) for row in kept]
    assert len(places) == 20
    assert places == sorted(places)
    assert places != list(range(20))
    assert fewer.scores["elbo"].shape == whole.scores["elbo"].shape
