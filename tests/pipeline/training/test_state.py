"""The state of a training, in one process; `test_resumable_run` interrupts whole processes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.data.dataset import Dataset, Split
from pipeline.errors import TrainingDiverged, TrainingStopped
from pipeline.model.net_spec import Nets, NetSpec
from pipeline.training import loop
from pipeline.training.beginning import begin_training, build_model, restore_training
from pipeline.training.loop import (
    TrainHooks,
    TrainResult,
    continue_training,
    mean_metrics,
    train,
)
from pipeline.training.schedules import total_steps
from pipeline.training.state import TrainState, read_state
from serving.errors import DataRefused, UsageRefused, VerificationFailed
from tests.trained_models import tiny_config


@pytest.fixture
def config(images: Dataset) -> Config:
    return tiny_config(images, epochs=3, binarize="dynamic")


def weights(result: TrainResult) -> dict[str, torch.Tensor]:
    return dict(result.model.state_dict())


def saved_after(steps: int, dataset: Dataset, config: Config) -> Mapping[str, Any]:
    """Return the state that a training saved when it was stopped after `steps` steps."""
    saved: list[bytes] = []
    state = begin_training(dataset, config, "cpu")
    hooks = TrainHooks(
        save=lambda state: saved.append(state.to_bytes()), stop=lambda: state.step >= steps
    )
    with pytest.raises(TrainingStopped):
        continue_training(state, dataset, hooks)
    return read_state(saved[-1])


@pytest.mark.parametrize("min_steps", [0, 30], ids=["one pass", "two passes an epoch"])
def test_a_training_stopped_after_any_step_resumes_bit_for_bit(
    images: Dataset, config: Config, min_steps: int
) -> None:
    config = replace(config, train=replace(config.train, min_steps=min_steps))
    whole = train(images, config)
    for steps in range(1, total_steps(270, config.train) + 1):
        state = restore_training(saved_after(steps, images, config), images)
        assert (state.step, state.config) == (steps, config)
        result = continue_training(state, images)
        assert result.history == whole.history
        assert result.best_epoch == whole.best_epoch
        for name, value in weights(whole).items():
            assert torch.equal(weights(result)[name], value), (steps, name)


class DropoutEncoder(nn.Module):
    """A user's encoder that draws from torch's global generator in training."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.heads = nn.Sequential(nn.Dropout(0.3), nn.Linear(spec.x_width, 2 * spec.latent_dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = self.heads(x).chunk(2, -1)
        return loc, log_scale


def build_dropout(spec: NetSpec) -> Nets:
    return DropoutEncoder(spec), nn.Linear(spec.latent_dim, spec.params_width)


def test_networks_with_dropout_follow_the_seed_and_the_saved_state(images: Dataset) -> None:
    config = tiny_config(images, epochs=2, model=f"{__name__}:build_dropout")
    whole, again = (weights(train(images, config)) for _ in range(2))
    torch.manual_seed(99)
    torch.rand(5)
    state = restore_training(saved_after(8, images, config), images)
    resumed = weights(continue_training(state, images))
    for name, value in whole.items():
        assert torch.equal(again[name], value)
        assert torch.equal(resumed[name], value)


def test_a_training_stopped_during_validation_resumes_bit_for_bit(images: Dataset) -> None:
    config = tiny_config(images, epochs=2)
    whole = train(images, config)
    asked, saved = iter([False] * 6 + [True]), list[bytes]()  # 6 steps, then validation
    hooks = TrainHooks(save=lambda state: saved.append(state.to_bytes()), stop=lambda: next(asked))
    with pytest.raises(TrainingStopped, match="stopped during validation"):
        train(images, config, hooks=hooks)
    result = continue_training(restore_training(read_state(saved[0]), images), images)
    assert result.history == whole.history
    assert all(torch.equal(weights(result)[n], value) for n, value in weights(whole).items())


def test_a_saved_state_holds_no_more_than_it_needs(images: Dataset, config: Config) -> None:
    sizes: list[int] = []
    state = begin_training(images, config, "cpu")
    hooks = TrainHooks(save=lambda state: sizes.append(len(state.to_bytes())))
    continue_training(state, images, hooks)
    parameters = sum(value.nbytes for value in state.model.state_dict().values())
    assert max(sizes) < 4 * parameters + 30_000  # weights, two moments, best weights; names
    assert sizes[0] == pytest.approx(sizes[-1], abs=1000)


def test_the_best_epoch_and_its_weights_are_restored(images: Dataset, config: Config) -> None:
    state = begin_training(images, config, "cpu")
    state.best_epoch, state.best_elbo = 1, 0.0  # which no later epoch will reach
    state.best_weights = {name: value + 1 for name, value in state.best_weights.items()}
    state.epoch = 2
    restored = restore_training(read_state(state.to_bytes()), images)
    result = continue_training(restored, images)
    assert result.best_epoch == 1
    for name, value in state.best_weights.items():
        assert torch.equal(weights(result)[name], value)


def test_one_process_goes_on_with_the_sums_of_two(images: Dataset, config: Config) -> None:
    saved = saved_after(8, images, config)
    (rng,) = saved["rng"]["cpu"]
    changed = {
        "processes": 2,
        "sums": torch.tensor([[1.0, 2.0, 3.0], [5.0, 7.0, 9.0]]),
        "rng": {"cpu": torch.stack([rng, rng.flip(0)])},
    }
    state = restore_training({**saved, **changed}, images)
    assert state.sums.tolist() == [[6.0, 9.0, 12.0]]
    assert torch.equal(state.rng["cpu"], rng.unsqueeze(0))


def test_a_state_from_before_several_processes_is_read(images: Dataset, config: Config) -> None:
    saved = dict(saved_after(8, images, config))
    before = {"sums": saved["sums"][0], "rng": {"cpu": saved["rng"]["cpu"][0]}}
    del saved["processes"]
    state = restore_training({**saved, **before}, images)
    assert torch.equal(state.sums, saved["sums"])
    assert torch.equal(state.rng["cpu"], saved["rng"]["cpu"])


def test_an_early_end_of_training_is_explained(images: Dataset) -> None:
    config = tiny_config(images, epochs=9, patience=2, max_time=3.0)
    state = begin_training(images, config, "cpu")
    state.epoch, state.best_epoch = 8, 5
    assert state.early_end == (
        "validation has not improved for 2 epochs: training ends, with the weights of epoch 5"
    )
    state.epoch = 10
    assert state.early_end == ""
    state.epoch, state.seconds = 3, 181.0
    assert state.early_end == "3 minutes have passed: training ends in epoch 2"


def test_the_state_between_epochs_holds_no_sums_and_no_order(images: Dataset) -> None:
    """The second epoch's sums contain no row of the first, whose order is not kept by a view."""
    saved: list[bytes] = []
    config = tiny_config(images, epochs=2, learning_rate=1e-12)
    hooks = TrainHooks(save=lambda state: saved.append(state.to_bytes()))
    result = train(images, config, hooks=hooks)
    first, second = (metrics["elbo"] for metrics in result.history)
    assert second == pytest.approx(first, rel=0.05)
    assert read_state(saved[0])["order"].untyped_storage().nbytes() == 0


def test_a_changed_byte_anywhere_is_detected(images: Dataset, config: Config) -> None:
    content = begin_training(images, config, "cpu").to_bytes()
    assert read_state(content)["step"] == 0
    for place in (0, 31, 32, len(content) // 2, len(content) - 1):
        damaged = bytearray(content)
        damaged[place] ^= 1
        with pytest.raises(VerificationFailed, match="is damaged: its digest differs"):
            read_state(bytes(damaged))
    for cut in (0, 16, len(content) - 1):
        with pytest.raises(VerificationFailed, match="digest differs"):
            read_state(content[:cut])


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_other_data_in_any_split_is_refused(images: Dataset, config: Config, split: str) -> None:
    saved = saved_after(1, images, config)
    other: dict[str, Any] = {split: Split(getattr(images, split).x, "0" * 64)}
    changed = replace(images, **other)
    with pytest.raises(DataRefused, match=f"its {split} split is 000000000000, the training's"):
        restore_training(saved, changed)


def spoil_weights(state: TrainState) -> None:
    with torch.no_grad():
        state.model.get_parameter("decoder.hidden.0.weight")[0, 0] = math.nan


def spoil_moment(state: TrainState) -> None:
    state.optimizer.state[next(state.model.parameters())]["exp_avg_sq"].fill_(math.inf)


def spoil_sums(state: TrainState) -> None:
    state.sums[0, 1] = math.nan


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        pytest.param(spoil_weights, r"decoder\.hidden\.0\.weight is not finite", id="weight"),
        pytest.param(spoil_moment, r"Adam's exp_avg_sq of \S+ is not finite", id="moment"),
        pytest.param(spoil_sums, "the sum of the KL is not finite", id="sum"),
    ],
)
def test_a_state_that_is_not_finite_is_not_saved_when_training_is_stopped(
    images: Dataset, config: Config, spoil: Callable[[TrainState], None], named: str
) -> None:
    state, saves = begin_training(images, config, "cpu"), 0

    def save(state: TrainState) -> None:
        nonlocal saves
        saves += 1

    def stop() -> bool:
        if state.step < 8:  # in the second epoch
            return False
        spoil(state)
        return True

    with pytest.raises(TrainingDiverged, match=f"in epoch 2: {named}; try a lower --learning-rate"):
        continue_training(state, images, TrainHooks(save=save, stop=stop))
    assert saves == 1


def test_weights_that_are_not_finite_end_training_even_if_the_metrics_are_finite(
    images: Dataset, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = begin_training(images, config, "cpu")

    def spoiling(*arguments: Any, **named: Any) -> dict[str, float]:
        metrics = mean_metrics(*arguments, **named)
        spoil_weights(state)
        return metrics

    monkeypatch.setattr(loop, "mean_metrics", spoiling)
    with pytest.raises(TrainingDiverged, match=r"epoch 1: decoder\.hidden\.0\.weight is not fin"):
        continue_training(state, images)
    assert state.history == []


def test_a_warm_up_that_does_not_end_in_training_is_refused(images: Dataset) -> None:
    with pytest.raises(UsageRefused, match="12 steps, and its warm-up 12: give fewer"):
        train(images, tiny_config(images, epochs=2, kl_warmup_steps=12))


def test_data_outside_the_support_is_refused_before_training(table: Dataset) -> None:
    with pytest.raises(
        DataRefused, match=r"bernoulli likelihood needs .* use --likelihood gaussian"
    ):
        train(table, tiny_config(table, likelihood="bernoulli"))


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_one_value_outside_the_support_in_any_split_is_refused(images: Dataset, split: str) -> None:
    unit = {
        name: Split((getattr(images, name).x / 255).astype(np.float32), "")
        for name in ("train", "valid", "test")
    }
    unit[split].x[-1, 0, 0] = 50.0
    dataset = Dataset("unit", unit["train"], unit["valid"], unit["test"])
    with pytest.raises(DataRefused, match="got 0 to 50"):
        train(dataset, tiny_config(images, likelihood="bernoulli"))
    assert build_model(dataset, tiny_config(images)).settings.likelihood == "gaussian"


def test_the_output_bias_starts_at_the_means_of_the_data(images: Dataset) -> None:
    model = build_model(images, tiny_config(images, output_bias=True))
    x_loc = torch.sigmoid(model.decoder.output_bias).detach().numpy() * 255
    np.testing.assert_allclose(x_loc, images.sample.reshape(270, -1).mean(0), rtol=1e-4)


def test_a_table_is_standardized_by_column(table: Dataset) -> None:
    model = build_model(table, tiny_config(table))
    rows = model.px.standardize(torch.from_numpy(table.train.x)).numpy()
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(rows.std(0), 1, atol=1e-4)
