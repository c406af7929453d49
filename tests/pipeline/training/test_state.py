"""The state of a training in one process; `test_resume` breaks real ones off."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.data.dataset import Dataset, Split
from pipeline.errors import TrainingDiverged, TrainingStopped
from pipeline.model.net_spec import Nets, NetSpec
from pipeline.training import loop as training
from pipeline.training.loop import (
    TrainResult,
    begin_training,
    continue_training,
    draw_batch,
    restore_training,
    steps_per_epoch,
    train,
)
from pipeline.training.state import TrainState, read_state
from serving.errors import DataRefused, VerificationFailed
from tests.trained_models import tiny_config


@pytest.fixture
def config(images: Dataset) -> Config:
    return tiny_config(images, epochs=3, binarize="dynamic")


def weights(result: TrainResult) -> dict[str, torch.Tensor]:
    return dict(result.model.state_dict())


def saved_after(steps: int, dataset: Dataset, config: Config) -> Mapping[str, Any]:
    """The state that a training saved which was stopped."""
    kept: list[bytes] = []
    state = begin_training(dataset, config, "cpu")
    with pytest.raises(TrainingStopped):
        continue_training(
            state,
            dataset,
            save=lambda state: kept.append(state.to_bytes()),
            stop=lambda: state.step >= steps,
        )
    return read_state(kept[-1])


def test_a_training_stopped_after_any_step_goes_on_bit_by_bit(
    images: Dataset, config: Config
) -> None:
    whole = train(images, config)
    last = 3 * steps_per_epoch(images, config)
    for steps in range(1, last + 1):
        state = restore_training(saved_after(steps, images, config), images)
        assert (state.step, state.config) == (steps, config)
        result = continue_training(state, images)
        assert result.history == whole.history
        assert result.best_epoch == whole.best_epoch
        for name, value in weights(whole).items():
            assert torch.equal(weights(result)[name], value), (steps, name)


class Dropping(nn.Module):
    """A user's encoder that draws from torch's own generator while it trains."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.heads = nn.Sequential(nn.Dropout(0.3), nn.Linear(spec.x_width, 2 * spec.latent_dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = self.heads(x).chunk(2, -1)
        return loc, log_scale


def build_dropping(spec: NetSpec) -> Nets:
    return Dropping(spec), nn.Linear(spec.latent_dim, spec.params_width)


def test_nets_that_draw_in_training_follow_the_seed_and_the_state(images: Dataset) -> None:
    config = tiny_config(images, epochs=2, model=f"{__name__}:build_dropping")
    whole, again = (weights(train(images, config)) for _ in range(2))
    torch.manual_seed(99)
    torch.rand(5)
    state = restore_training(saved_after(8, images, config), images)
    resumed = weights(continue_training(state, images))
    for name, value in whole.items():
        assert torch.equal(again[name], value)
        assert torch.equal(resumed[name], value)


def test_a_training_stopped_while_it_is_validated_goes_on_the_same(images: Dataset) -> None:
    config = tiny_config(images, epochs=2)
    whole = train(images, config)
    asked, saved = iter([False] * 6 + [True]), list[bytes]()  # 6 steps, then validation
    with pytest.raises(TrainingStopped, match="validated"):
        continue_training(
            begin_training(images, config, "cpu"),
            images,
            save=lambda state: saved.append(state.to_bytes()),
            stop=lambda: next(asked),
        )
    result = continue_training(restore_training(read_state(saved[0]), images), images)
    assert result.history == whole.history
    assert all(torch.equal(weights(result)[n], value) for n, value in weights(whole).items())


def test_a_state_holds_nothing_that_it_does_not_need(images: Dataset, config: Config) -> None:
    sizes: list[int] = []
    state = begin_training(images, config, "cpu")
    continue_training(state, images, save=lambda state: sizes.append(len(state.to_bytes())))
    parameters = sum(value.nbytes for value in state.model.state_dict().values())
    assert max(sizes) < 4 * parameters + 30_000  # weights, two moments, best weights; names
    assert sizes[0] == pytest.approx(sizes[-1], abs=1000)


def test_the_best_epoch_is_remembered(images: Dataset, config: Config) -> None:
    state = begin_training(images, config, "cpu")
    state.best_epoch, state.best_elbo = 1, 0.0  # which no later epoch will reach
    state.best_weights = {name: value + 1 for name, value in state.best_weights.items()}
    state.epoch = 2
    restored = restore_training(read_state(state.to_bytes()), images)
    result = continue_training(restored, images)
    assert result.best_epoch == 1
    for name, value in state.best_weights.items():
        assert torch.equal(weights(result)[name], value)


def test_what_an_epoch_leaves_behind_is_empty(images: Dataset) -> None:
    """No row of the first counts in the second, and its order is not kept in a view."""
    kept: list[bytes] = []
    config = tiny_config(images, epochs=2, learning_rate=1e-12)
    state = begin_training(images, config, "cpu")
    result = continue_training(state, images, save=lambda state: kept.append(state.to_bytes()))
    first, second = (metrics["elbo"] for metrics in result.history)
    assert second == pytest.approx(first, rel=0.05)
    assert read_state(kept[0])["order"].untyped_storage().nbytes() == 0


def test_a_changed_byte_anywhere_is_seen(images: Dataset, config: Config) -> None:
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
def test_other_data_is_refused_whichever_split_it_is_in(
    images: Dataset, config: Config, split: str
) -> None:
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
    state.sums[1] = math.nan


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        pytest.param(spoil_weights, r"decoder\.hidden\.0\.weight is not finite", id="weight"),
        pytest.param(spoil_moment, r"Adam's exp_avg_sq of \S+ is not finite", id="moment"),
        pytest.param(spoil_sums, "the sum of the KL is not finite", id="sum"),
    ],
)
def test_a_state_that_is_not_finite_is_not_saved_where_training_is_stopped(
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
        continue_training(state, images, save=save, stop=stop)
    assert saves == 1


def test_weights_that_are_not_finite_end_an_epoch_though_its_metrics_are(
    images: Dataset, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = begin_training(images, config, "cpu")
    real = training.elbo_terms

    def spoiling(*arguments: Any, **named: Any) -> dict[str, float]:
        metrics = real(*arguments, **named)
        spoil_weights(state)
        return metrics

    monkeypatch.setattr(training, "elbo_terms", spoiling)
    with pytest.raises(TrainingDiverged, match=r"epoch 1: decoder\.hidden\.0\.weight is not fin"):
        continue_training(state, images)
    assert state.history == []


def test_time_that_is_over_ends_the_epoch_and_keeps_its_weights(images: Dataset) -> None:
    config = tiny_config(images, max_time=1e-9, epochs=5)
    state = begin_training(images, config, "cpu")
    result = continue_training(state, images)
    assert (state.step, state.finished, state.out_of_time) == (1, True, True)
    assert result.best_epoch == len(result.history) == 1
    start = begin_training(images, config, "cpu").best_weights
    assert not torch.equal(weights(result)["encoder.z_loc.weight"], start["encoder.z_loc.weight"])


def test_time_is_counted_over_all_processes(images: Dataset) -> None:
    config = tiny_config(images, max_time=10.0)
    state = begin_training(images, config, "cpu")
    state.seconds = 599.0
    assert not state.out_of_time
    state.seconds = 600.0
    assert continue_training(state, images).history == ()
    state = begin_training(images, tiny_config(images, epochs=1), "cpu")
    state.seconds = 600.0
    assert continue_training(state, images).seconds > 600


def test_pixels_are_one_with_their_own_probability() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = 40_000
    levels = torch.arange(256, dtype=torch.uint8)
    p = levels.double() / 255
    tolerance = 5 * (p * (1 - p) / draws).sqrt()  # so 0 and 255 must be exact
    for rows in (levels, p.float()):
        x = draw_batch(rows.expand(draws, 256), generator)
        assert x.dtype == rows.dtype
        assert x.unique().tolist() == [0, 255 if x.dtype == torch.uint8 else 1]
        assert ((x != 0).double().mean(0) - p).abs().le(tolerance).all()


def test_every_batch_is_drawn_anew_and_only_where_it_is_asked_for(
    images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    real = training._make_step

    def watching(state: TrainState, rows: torch.Tensor, steps_per_epoch: int) -> None:
        seen.append(rows)
        real(state, rows, steps_per_epoch)

    monkeypatch.setattr(training, "_make_step", watching)
    for binarize, values in (("none", 200), ("dynamic", 2)):
        seen.clear()
        train(images, tiny_config(images, epochs=2, batch_size=270, binarize=binarize))
        first, second = (batch.flatten(1).sum(1, dtype=torch.int64).sort().values for batch in seen)
        assert torch.equal(first, second) == (binarize == "none")
        assert len(seen[0].unique()) <= values
        assert (len(seen[0].unique()) == 2) == (binarize == "dynamic")
