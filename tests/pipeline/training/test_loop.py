from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.data.dataset import Dataset, Split
from pipeline.errors import TrainingDiverged
from pipeline.model.likelihoods import choose_likelihood
from pipeline.training import loop as training
from pipeline.training.loop import begin_training, build_model, continue_training, elbo_terms, train
from serving.errors import DataRefused, UsageRefused
from tests.trained_models import tiny_config


def weights(model: torch.nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


def test_training_raises_the_elbo(images: Dataset) -> None:
    config = tiny_config(images, epochs=8)
    before = build_model(images, config)
    result = train(images, config)
    x = torch.from_numpy(images.test.x)
    assert elbo_terms(result.model, x, seed=0)["elbo"] > elbo_terms(before, x, seed=0)["elbo"] + 1
    assert result.history[-1]["elbo"] > result.history[0]["elbo"]


def test_same_seed_gives_the_same_weights_and_another_seed_others(images: Dataset) -> None:
    first, again, other = (
        weights(train(images, tiny_config(images, epochs=2, seed=seed)).model) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_training_leaves_the_global_generator_alone(images: Dataset) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(images, tiny_config(images, epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_logs_every_epoch_and_ticks_every_step(images: Dataset) -> None:
    epochs: list[tuple[int, Mapping[str, float]]] = []
    steps: list[int] = []
    config = tiny_config(images, epochs=2, batch_size=64)
    result = continue_training(
        begin_training(images, config, "cpu"),
        images,
        log=lambda epoch, metrics: epochs.append((epoch, metrics)),
        tick=steps.append,
    )
    assert [epoch for epoch, _ in epochs] == [1, 2]
    assert tuple(metrics for _, metrics in epochs) == result.history
    assert sum(steps) == 2 * training.steps_per_epoch(images, config) == 2 * 5  # 270 rows


def test_keeps_the_weights_of_the_best_validation_elbo_and_stops(
    images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    elbos = iter([-10.0, -5.0, -7.0, -6.0, -1.0])
    copies: list[bytes] = []

    def scripted(model: torch.nn.Module, *_: object, **__: object) -> dict[str, float]:
        copies.append(weights(model))
        return {"elbo": next(elbos)}

    monkeypatch.setattr(training, "elbo_terms", scripted)
    result = train(images, tiny_config(images, epochs=5, patience=2))
    assert result.best_epoch == 2
    assert len(result.history) == 4
    assert weights(result.model) == copies[1]


def test_the_best_epoch_is_one_after_the_warm_up(
    images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """270 rows in batches of 50 are 6 steps; the epoch in which the warm-up ends counts."""
    elbos = iter([-1.0, -2.0, -9.0, -8.0, -10.0])
    monkeypatch.setattr(training, "elbo_terms", lambda *_, **__: {"elbo": next(elbos)})
    config = tiny_config(images, epochs=5, patience=2, kl_warmup_steps=13)
    result = train(images, config)
    assert result.best_epoch == 4
    assert len(result.history) == 5


def test_a_warm_up_without_an_end_is_refused(images: Dataset) -> None:
    with pytest.raises(UsageRefused, match="12 steps, and its warm-up 12: give fewer"):
        train(images, tiny_config(images, epochs=2, kl_warmup_steps=12))


def test_iwae_draws_several_samples_and_goes_by_its_bound(images: Dataset) -> None:
    config = tiny_config(images, epochs=4, objective="iwae", train_samples=5)
    result = train(images, config)
    row = max(result.history, key=lambda row: row["valid_iw_elbo"])
    assert row is result.history[result.best_epoch - 1]
    for metrics in result.history:
        assert metrics["valid_elbo"] < metrics["valid_iw_elbo"]
        assert metrics["elbo"] < metrics["iw_elbo"]


def test_a_learned_bias_starts_at_the_data_s_own(images: Dataset) -> None:
    model = build_model(images, tiny_config(images, output_bias=True))
    x_loc = torch.sigmoid(model.decoder.output_bias).detach().numpy() * 255
    np.testing.assert_allclose(x_loc, images.train.x.reshape(270, -1).mean(0), rtol=1e-4)


def test_without_validation_rows_the_last_weights_are_kept(images: Dataset) -> None:
    empty = replace(images, valid=Split(images.valid.x[:0], ""))
    result = train(empty, tiny_config(images, epochs=3, patience=1))
    assert result.best_epoch == len(result.history) == 3
    assert "valid_elbo" not in result.history[0]


def test_divergence_names_the_epoch_and_the_way_out(images: Dataset) -> None:
    with pytest.raises(TrainingDiverged, match=r"epoch 1: \w+ is (nan|-?inf); try a lower"):
        train(images, tiny_config(images, learning_rate=1e30))


def test_data_outside_the_support_is_refused_before_training(table: Dataset) -> None:
    with pytest.raises(
        DataRefused, match=r"bernoulli likelihood needs .* use --likelihood gaussian"
    ):
        train(table, tiny_config(table, likelihood="bernoulli"))


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_one_value_outside_the_support_in_any_split_counts(images: Dataset, split: str) -> None:
    unit = {
        name: Split((getattr(images, name).x / 255).astype(np.float32), "")
        for name in ("train", "valid", "test")
    }
    unit[split].x[-1, 0, 0] = 50.0
    dataset = Dataset("unit", unit["train"], unit["valid"], unit["test"])
    with pytest.raises(DataRefused, match="got 0 to 50"):
        train(dataset, tiny_config(images, likelihood="bernoulli"))
    assert build_model(dataset, tiny_config(images)).settings.likelihood == "gaussian"


@pytest.mark.parametrize(
    ("x", "likelihood"),
    [
        pytest.param(np.array([[0, 255]], np.uint8), "bernoulli", id="bytes"),
        pytest.param(np.array([[0.0, 1.0]], np.float32), "bernoulli", id="bits"),
        pytest.param(np.array([[0.0, 0.3]], np.float32), "continuous_bernoulli", id="unit"),
        pytest.param(np.array([[-0.1, 1.0]], np.float32), "gaussian", id="reals"),
    ],
)
def test_likelihood_follows_the_data(x: np.ndarray, likelihood: str) -> None:
    assert choose_likelihood("none", x)[0] == likelihood


def test_table_is_standardized_by_column(table: Dataset) -> None:
    model = build_model(table, tiny_config(table))
    rows = model.px.standardize(torch.from_numpy(table.train.x)).numpy()
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(rows.std(0), 1, atol=1e-4)
