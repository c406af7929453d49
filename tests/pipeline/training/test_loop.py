from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from pipeline.data.dataset import Dataset, Split
from pipeline.errors import TrainingDiverged
from pipeline.training import loop
from pipeline.training.batches import Batch
from pipeline.training.beginning import begin_training, build_model
from pipeline.training.binarization import binarize_batch
from pipeline.training.loop import TrainHooks, continue_training, mean_metrics, train, train_step
from pipeline.training.schedules import total_steps
from pipeline.training.state import TrainState
from tests.trained_models import tiny_config


def weights(model: torch.nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


def test_training_raises_the_elbo(images: Dataset) -> None:
    config = tiny_config(images, epochs=8)
    before = build_model(images, config)
    result = train(images, config)
    x = torch.from_numpy(images.test.x)
    after = mean_metrics(result.model, x, seed=0)["elbo"]
    assert after > mean_metrics(before, x, seed=0)["elbo"] + 1
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


def test_every_epoch_is_logged_and_every_step_reported(images: Dataset) -> None:
    epochs: list[tuple[int, Mapping[str, float]]] = []
    steps: list[int] = []
    config = tiny_config(images, epochs=2, batch_size=64)
    hooks = TrainHooks(
        log=lambda epoch, metrics: epochs.append((epoch, metrics)), advance=steps.append
    )
    result = train(images, config, hooks=hooks)
    assert [epoch for epoch, _ in epochs] == [1, 2]
    assert tuple(metrics for _, metrics in epochs) == result.history
    assert sum(steps) == total_steps(270, config.train) == 2 * 5


def test_the_weights_of_the_best_validation_elbo_are_kept_and_patience_ends_training(
    images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    elbos = iter([-10.0, -5.0, -7.0, -6.0, -1.0])
    copies: list[bytes] = []

    def scripted(model: torch.nn.Module, *_: object, **__: object) -> dict[str, float]:
        copies.append(weights(model))
        return {"elbo": next(elbos)}

    monkeypatch.setattr(loop, "mean_metrics", scripted)
    result = train(images, tiny_config(images, epochs=5, patience=2))
    assert result.best_epoch == 2
    assert len(result.history) == 4
    assert weights(result.model) == copies[1]


def test_only_an_epoch_after_the_warm_up_can_be_the_best(
    images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """270 rows in batches of 50 make 6 steps; the epoch in which the warm-up ends counts."""
    elbos = iter([-1.0, -2.0, -9.0, -8.0, -10.0])
    monkeypatch.setattr(loop, "mean_metrics", lambda *_, **__: {"elbo": next(elbos)})
    config = tiny_config(images, epochs=5, patience=2, kl_warmup_steps=13)
    result = train(images, config)
    assert result.best_epoch == 4
    assert len(result.history) == 5


def test_iwae_draws_several_samples_and_the_best_epoch_has_the_highest_iw_elbo(
    images: Dataset,
) -> None:
    config = tiny_config(images, epochs=4, objective="iwae", train_samples=5)
    result = train(images, config)
    row = max(result.history, key=lambda row: row["valid_iw_elbo"])
    assert row is result.history[result.best_epoch - 1]
    for metrics in result.history:
        assert metrics["valid_elbo"] < metrics["valid_iw_elbo"]
        assert metrics["elbo"] < metrics["iw_elbo"]


def test_without_validation_rows_the_last_weights_are_kept(images: Dataset) -> None:
    empty = replace(images, valid=Split(images.valid.x[:0], ""))
    result = train(empty, tiny_config(images, epochs=3, patience=1))
    assert result.best_epoch == len(result.history) == 3
    assert "valid_elbo" not in result.history[0]


def test_divergence_names_the_epoch_and_a_remedy(images: Dataset) -> None:
    with pytest.raises(TrainingDiverged, match=r"epoch 1: \w+ is (nan|-?inf); try a lower"):
        train(images, tiny_config(images, learning_rate=1e30))


def test_the_time_limit_ends_the_epoch_and_keeps_its_weights(images: Dataset) -> None:
    config = tiny_config(images, max_time=1e-9, epochs=5)
    state = begin_training(images, config, "cpu")
    result = continue_training(state, images)
    assert (state.step, state.finished, state.out_of_time) == (1, True, True)
    assert result.best_epoch == len(result.history) == 1
    start = begin_training(images, config, "cpu").best_weights
    trained = result.model.state_dict()
    assert not torch.equal(trained["encoder.z_loc.weight"], start["encoder.z_loc.weight"])


def test_training_time_is_counted_over_all_processes(images: Dataset) -> None:
    config = tiny_config(images, max_time=10.0)
    state = begin_training(images, config, "cpu")
    state.seconds = 599.0
    assert not state.out_of_time
    state.seconds = 600.0
    assert continue_training(state, images).history == ()
    state = begin_training(images, tiny_config(images, epochs=1), "cpu")
    state.seconds = 600.0
    assert continue_training(state, images).seconds > 600


def test_a_pixel_s_value_is_its_probability_of_one() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = 40_000
    levels = torch.arange(256, dtype=torch.uint8)
    p = levels.double() / 255
    tolerance = 5 * (p * (1 - p) / draws).sqrt()  # so 0 and 255 must be exact
    for rows in (levels, p.float()):
        x = binarize_batch(rows.expand(draws, 256), generator)
        assert x.dtype == rows.dtype
        assert x.unique().tolist() == [0, 255 if x.dtype == torch.uint8 else 1]
        assert ((x != 0).double().mean(0) - p).abs().le(tolerance).all()


def test_batches_are_binarized_anew_and_only_with_dynamic_binarization(
    images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    def watched_step(state: TrainState, batch: Batch, steps: int) -> None:
        seen.append(batch.rows)
        train_step(state, batch, steps)

    monkeypatch.setattr(loop, "train_step", watched_step)
    for binarize, values in (("none", 200), ("dynamic", 2)):
        seen.clear()
        train(images, tiny_config(images, epochs=2, batch_size=270, binarize=binarize))
        first, second = (batch.flatten(1).sum(1, dtype=torch.int64).sort().values for batch in seen)
        assert torch.equal(first, second) == (binarize == "none")
        assert len(seen[0].unique()) <= values
        assert (len(seen[0].unique()) == 2) == (binarize == "dynamic")
