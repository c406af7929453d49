"""Few rows get as many steps as many rows do, unless the epochs are given."""

import math
from dataclasses import replace

import numpy as np
import pytest

from pipeline.config import TrainConfig, configure
from pipeline.data.dataset import Dataset, Split
from pipeline.presets import PRESETS
from pipeline.training import loop
from pipeline.training.batches import Batch
from pipeline.training.loop import train, train_step
from pipeline.training.schedules import passes_per_epoch, total_steps
from pipeline.training.state import TrainState
from tests.trained_models import tiny_config

MNIST_ROWS = 60_000


@pytest.mark.parametrize("preset", PRESETS)
def test_mnist_is_passed_over_once_in_an_epoch(preset: str) -> None:
    config = configure(preset)
    rows = round(MNIST_ROWS * (1 - config.data.valid_fraction))
    assert passes_per_epoch(rows, config.train) == 1


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("rows", [20, 1455, 20_000])
def test_the_steps_after_the_warm_up_are_at_least_the_least(preset: str, rows: int) -> None:
    settings = configure(preset).train
    steps = total_steps(rows, settings) - settings.kl_warmup_steps
    assert steps >= settings.min_steps
    fewer = replace(settings, min_steps=0)
    shorter = total_steps(rows, fewer) * (passes_per_epoch(rows, settings) - 1)
    assert shorter - settings.kl_warmup_steps < settings.min_steps  # one pass less is too few


def test_given_epochs_are_passes() -> None:
    settings = configure(epochs=300).train
    assert (passes_per_epoch(1455, settings), total_steps(1455, settings)) == (1, 300 * 8)


def test_each_pass_holds_every_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.repeat(np.arange(10, dtype=np.float32)[:, None], 2, axis=1) / 10
    dataset = Dataset("few", *(Split(part, "") for part in (rows, rows[:0], rows)))
    seen: list[list[float]] = []

    def watched_step(state: TrainState, batch: Batch, steps: int) -> None:
        seen.append((10 * batch.rows[:, 0]).round().tolist())
        train_step(state, batch, steps)

    monkeypatch.setattr(loop, "train_step", watched_step)
    config = tiny_config(dataset, epochs=2, min_steps=16, batch_size=4)
    history = train(dataset, config).history
    assert [len(batch) for batch in seen] == [4, 4, 2] * 6  # 2 epochs of 3 passes of 3 steps
    passes = [[*seen[start], *seen[start + 1], *seen[start + 2]] for start in range(0, 18, 3)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert len({tuple(one) for one in passes}) == 6
    assert len(history) == 2


def test_a_longer_training_is_advised_only_while_it_would_help(images: Dataset) -> None:
    short = train(images, tiny_config(images, epochs=3, learning_rate=1e-3))
    assert short.best_epoch == 3
    assert short.longer == math.ceil(TrainConfig().min_steps / 6)  # six steps in an epoch
    enough = tiny_config(images, epochs=3, learning_rate=1e-3, kl_warmup_steps=2)
    assert train(images, enough).longer == math.ceil((TrainConfig().min_steps + 2) / 6)
    over = train(images, tiny_config(images, epochs=40, learning_rate=0.2, patience=3))
    assert over.best_epoch < len(over.history)
    assert over.longer is None
    none_held_out = replace(images, valid=Split(images.valid.x[:0], ""))
    assert train(none_held_out, tiny_config(images, epochs=2)).longer is None


def test_a_training_of_enough_steps_is_not_told_to_go_on(
    images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "TrainConfig", lambda: TrainConfig(min_steps=18))
    result = train(images, tiny_config(images, epochs=3, learning_rate=1e-3))
    assert result.best_epoch == 3
    assert result.longer is None


def test_rows_of_levels_train_in_their_own_unit() -> None:
    x = np.random.default_rng(0).integers(0, 17, (60, 4), dtype=np.uint8)
    x[0, 0] = 16
    dataset = Dataset("levels", *(Split(x, "") for _ in range(3)))
    model = train(dataset, tiny_config(dataset, epochs=1)).model
    assert model.state_dict()["likelihood.x_unit"].item() == 16
