import math

import numpy as np
import pytest
import torch

from pipeline.cli.results import metrics_summary
from pipeline.data.dataset import Dataset
from pipeline.errors import TrainingDiverged
from pipeline.evaluation import evaluate as evaluation
from pipeline.evaluation.evaluate import ROWS_PER_CHUNK, SAMPLES_PER_CHUNK, evaluate
from pipeline.model.objective import elbo_terms
from pipeline.training.beginning import build_model
from serving.errors import DataRefused
from tests.trained_models import Trained, tiny_config


def test_chunks_give_the_values_of_one_pass_over_all_samples(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same noise drawn at once gives the values that chunks of rows and samples give."""
    model, x = trained[0].model, trained[1].test.x[:5]
    monkeypatch.setattr(evaluation, "SAMPLES_PER_CHUNK", 8)
    metrics = evaluate(model, x, nll_samples=20, seed=3)
    generator = torch.Generator().manual_seed(3)
    eps = torch.cat([torch.randn(5, n, 3, generator=generator) for n in (8, 8, 4)], 1)
    terms = elbo_terms(model.double(), torch.from_numpy(x), eps.double())
    model.float()
    log_weights = terms.log_weights()
    assert metrics.elbo == pytest.approx(terms.elbo().mean().item(), rel=1e-5)
    expected = -(log_weights.logsumexp(-1) - math.log(20)).mean().item()
    assert metrics.nll == pytest.approx(expected, rel=1e-5)
    assert metrics.elbo == pytest.approx(metrics.log_likelihood - metrics.kl, rel=1e-6)
    rows = {
        "elbo_se": terms.elbo(),
        "log_likelihood_se": terms.log_likelihood.mean(-1),
        "kl_se": terms.kl,
    }
    for name, values in rows.items():
        expected = values.std(correction=0).item() / math.sqrt(5)
        assert getattr(metrics, name) == pytest.approx(expected, rel=1e-4), name


def test_a_smaller_last_chunk_is_weighted_by_its_rows(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = trained[0].model, trained[1].test.x[:7]
    monkeypatch.setattr(evaluation, "ROWS_PER_CHUNK", 3)
    metrics = evaluate(model, x, nll_samples=1, seed=0)
    kl = model.encode(torch.from_numpy(x)).kl()
    assert metrics.kl == pytest.approx(kl.mean().item(), rel=1e-5)
    assert metrics.rows == 7


def test_wide_rows_are_decoded_few_at_a_time_with_the_same_noise(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = trained[0].model, trained[1].test.x
    whole = evaluate(model, x, nll_samples=20, seed=0)
    most = 5 * x[0].size * SAMPLES_PER_CHUNK
    monkeypatch.setattr(evaluation, "MOST_VALUES", most)
    sizes: list[int] = []
    handle = model.decoder.register_forward_pre_hook(lambda _, z: sizes.append(len(z[0])))
    parts = evaluate(model, x, nll_samples=20, seed=0)
    handle.remove()
    assert SAMPLES_PER_CHUNK * 5 in sizes
    assert max(sizes) * x[0].size <= most
    for name, value in whole.numbers("").items():
        assert parts.numbers("")[name] == pytest.approx(value, rel=1e-5), name


def test_more_samples_tighten_the_nll(trained: Trained) -> None:
    model, x = trained[0].model, trained[1].test.x
    nll = [evaluate(model, x, nll_samples=n, seed=0).nll for n in (1, 10, 300)]
    assert nll == sorted(nll, reverse=True)


def test_active_units_are_the_latents_whose_posterior_mean_varies(trained: Trained) -> None:
    model, x = trained[0].model, trained[1].test.x
    z_loc = model.encode(torch.from_numpy(x)).loc.numpy()
    with torch.no_grad():
        rows = model.encoder.z_loc.weight[0].clone()
        model.encoder.z_loc.weight[0] = 0
        silenced = evaluate(model, x, nll_samples=1, seed=0).active_units
        model.encoder.z_loc.weight[0] = rows
    assert silenced == int((np.var(z_loc, 0)[1:] > 0.01).sum())


def test_a_metric_that_is_not_finite_is_refused(trained: Trained) -> None:
    model, x = trained[0].model, trained[1].test.x
    with torch.no_grad():
        weight = model.decoder.x_params.bias.clone()
        model.decoder.x_params.bias[0] = torch.nan
        with pytest.raises(TrainingDiverged, match="not finite"):
            evaluate(model, x, nll_samples=1, seed=0)
        model.decoder.x_params.bias.copy_(weight)


def test_rows_that_are_the_cause_are_named(trained_table: Trained) -> None:
    model, x = trained_table[0].model, trained_table[1].test.x.copy()
    x[7, 2] = 1e30
    with pytest.raises(DataRefused) as caught:
        evaluate(model, x, nll_samples=1, seed=0)
    message = str(caught.value)
    assert "not finite on 1 of 100 held-out rows; the first is held-out row 7" in message
    assert "to 1e+30" in message
    assert len(message) < 300


def test_the_active_latents_of_an_untrained_model_tell_little(table: Dataset) -> None:
    """Random weights let its means vary, but its scales stay near the prior's."""
    model = build_model(table, tiny_config(table)).eval()
    metrics = evaluate(model, table.test.x, nll_samples=1, seed=0)
    assert metrics.active_units == 3
    assert metrics.informative_units == 1


def test_information_is_that_of_a_normal_channel(trained: Trained) -> None:
    """With z_loc of variance v and z_scale s it is log(1 + v / s²) / 2."""
    z_loc = torch.randn(100_000, 3, generator=torch.Generator().manual_seed(0)).double()
    z_loc = (z_loc - z_loc.mean(0)) / z_loc.std(0, correction=0)
    z_loc = z_loc * torch.tensor([2.0, 0.3, 0.0]) + torch.tensor([0.0, 1.0, 5.0])
    log_scale = torch.tensor([0.5, 0.5, 0.1]).double().log().expand_as(z_loc)
    found = evaluation._information(z_loc, log_scale)
    expected = [math.log(1 + 16) / 2, math.log(1 + 0.36) / 2, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


def test_a_collapsed_model_is_warned_of(trained: Trained) -> None:
    model, x = trained[0].model, trained[1].test.x
    with torch.no_grad():
        kept = model.encoder.z_loc.weight.clone()
        model.encoder.z_loc.weight.zero_()
        metrics = evaluate(model, x, nll_samples=1, seed=0)
        assert evaluate(model, x[:1], nll_samples=1, seed=0).warnings == ()  # it cannot vary
        model.encoder.z_loc.weight.copy_(kept)
    assert metrics.active_units == 0
    (warning,) = metrics.warnings
    assert warning.startswith("no latent is active (posterior collapse)")
    assert metrics_summary("id", metrics, 0.0)["warnings"] == [warning]
    assert "test_warnings" not in metrics.numbers("test_")


def test_reconstruction_error_and_bits_per_dimension_follow_from_the_rows(trained: Trained) -> None:
    model, x = trained[0].model, trained[1].test.x
    advances: list[int] = []
    metrics = evaluate(model, x, nll_samples=2, seed=0, advance=advances.append)
    x_loc = model.decode(model.encode(torch.from_numpy(x)).loc).numpy().astype(float)
    expected = math.sqrt(((x - x_loc) ** 2).mean())
    assert metrics.reconstruction_error == pytest.approx(expected, rel=1e-5)
    assert metrics.bits_per_dim == pytest.approx(metrics.nll / (30 * math.log(2)), rel=1e-12)
    assert sum(advances) == 2 * len(x)


def test_progress_counts_samples_and_comes_often(trained: Trained) -> None:
    model, x = trained[0].model, trained[1].test.x
    advances: list[int] = []
    evaluate(model, x, nll_samples=100, seed=0, advance=advances.append)
    assert sum(advances) == 100 * len(x)
    assert max(advances) <= ROWS_PER_CHUNK * SAMPLES_PER_CHUNK


def test_a_table_has_no_bits_per_dimension(trained_table: Trained) -> None:
    metrics = evaluate(trained_table[0].model, trained_table[1].test.x, nll_samples=2, seed=0)
    assert metrics.bits_per_dim is None
    assert "test_bits_per_dim" not in metrics.numbers("test_")
    assert "test_reconstruction_error" in metrics.numbers("test_")


def test_the_json_line_holds_the_number_of_rows_and_the_standard_error(trained: Trained) -> None:
    metrics = evaluate(trained[0].model, trained[1].test.x[:7], nll_samples=2, seed=0)
    line = metrics_summary("id", metrics, 0.0)
    assert (line["rows"], line["nll_se"]) == (7, metrics.nll_se)
    assert metrics.nll_se > 0
