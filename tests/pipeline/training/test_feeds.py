"""Training on rows outside memory equals training on the same rows in memory."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.dataset import Dataset, Split
from pipeline.data.plan import Resources
from pipeline.data.streaming.loading import load_streamed
from pipeline.errors import TrainingDiverged, TrainingStopped
from pipeline.training import loop
from pipeline.training.batches import Batch
from pipeline.training.beginning import begin_training, restore_training
from pipeline.training.feeds import open_feed
from pipeline.training.loop import TrainHooks, continue_training, train
from pipeline.training.processes import Processes
from pipeline.training.schedules import total_steps
from pipeline.training.state import TrainState, read_state
from pipeline.training.windows import read_windows
from serving.errors import DataRefused
from tests.pipeline.training.streamed import (
    KINDS,
    SMALL,
    Array,
    BlockRows,
    each_kind,
    in_blocks,
    mapped,
    never,
    ready,
    weights,
)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"binarize": "none", "objective": "iwae", "train_samples": 3},
        {"min_steps": 30},
        {"batch_size": 1000},
        {"seed": 5, "batch_size": 7},
    ],
    ids=["bits", "iwae", "two passes", "one batch", "small batches"],
)
def test_mapped_rows_give_the_same_weights_as_rows_in_memory(
    images: Dataset, settings: dict[str, Any]
) -> None:
    config = ready(images, **settings)
    memory, streamed = train(images, config), train(mapped(images), config)
    assert streamed.history == memory.history
    assert weights(streamed) == weights(memory)


def test_a_mapped_file_gives_the_same_weights_as_the_same_file_in_memory(
    images: Dataset,
) -> None:
    config = ready(images)
    data = config.data
    streamed = load_streamed(
        images.source,
        Resources(memory=1 << 20),
        valid_fraction=data.valid_fraction,
        test_fraction=data.test_fraction,
    )
    assert begin_training(streamed, config, "cpu").window_rows == 0
    assert weights(train(streamed, config)) == weights(train(images, config))


def test_rows_that_are_read_in_several_reads_are_in_order(
    images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.training.feeds._READ_BYTES", 3 * 50 * 30)
    config = ready(images)
    assert weights(train(mapped(images), config)) == weights(train(images, config))


def keep(saved: list[bytes]) -> Callable[[TrainState], None]:
    return lambda state: saved.append(state.to_bytes())


def reached(state: TrainState, steps: int) -> bool:
    return state.step >= steps


def watch(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Return a list to which the batches of every step will be added."""
    seen: list[torch.Tensor] = []
    step = loop.train_step

    def watched(state: Any, batch: Batch, steps: int) -> None:
        seen.append(batch.rows)
        step(state, batch, steps)

    monkeypatch.setattr(loop, "train_step", watched)
    return seen


def test_windows_give_the_batches_that_an_epoch_of_them_is_divided_into(
    images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch may have rows of two windows; only the last one of a pass is smaller."""
    seen = watch(monkeypatch)
    config = ready(images, binarize="none", min_steps=30)
    dataset = in_blocks(images, memory=SMALL)
    train(dataset, config)
    assert [len(rows) for rows in seen] == [50, 50, 50, 50, 50, 20] * 6  # 3 epochs of 2 passes
    expected = [
        window.x[window.order]
        for epoch in (1, 2, 3)
        for window in read_windows(BlockRows(images.sample, 16), 54, seed=0, epoch=epoch, passes=2)
    ]
    assert len(expected) == 6 * 6
    assert max(map(len, expected)) == 48  # of blocks of 16, no more fit into 54
    np.testing.assert_array_equal(torch.cat(seen).numpy(), np.concatenate(expected))
    one_pass = np.concatenate(expected[:6]).reshape(270, -1)
    every_row = images.sample.reshape(270, -1)
    np.testing.assert_array_equal(np.unique(one_pass, axis=0), np.unique(every_row, axis=0))


@each_kind
def test_a_training_resumed_after_any_of_its_steps_equals_one_that_was_not_stopped(
    images: Dataset, make: Callable[[Dataset], Dataset]
) -> None:
    config = ready(images, min_steps=30)
    whole = train(make(images), config)
    total = total_steps(270, config.train)
    for steps in np.random.default_rng(1).choice(np.arange(1, total + 1), 10, replace=False):
        saved: list[bytes] = []
        state = begin_training(make(images), config, "cpu")
        hooks = TrainHooks(save=keep(saved), stop=partial(reached, state, steps))
        with pytest.raises(TrainingStopped):
            continue_training(state, make(images), hooks)
        restored = restore_training(read_state(saved[-1]), make(images))
        assert restored.step == steps
        result = continue_training(restored, make(images))
        assert result.history == whole.history, steps
        assert weights(result) == weights(whole), steps


@each_kind
def test_any_state_that_is_saved_within_an_epoch_leads_to_the_same_end(
    images: Dataset, make: Callable[[Dataset], Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `kill -9`: it resumes from the last state that was saved."""
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    config, saved = ready(images), list[bytes]()
    epochs: list[int] = []
    hooks = TrainHooks(
        save=lambda state: saved.append(state.to_bytes()),
        log=lambda epoch, metrics: epochs.append(epoch),
    )
    whole = train(make(images), config, hooks=hooks)
    assert len(saved) == 3 * (6 + 1)
    assert epochs == [1, 2, 3]
    for number in np.random.default_rng(2).choice(20, 10, replace=False):
        restored = restore_training(read_state(saved[number]), make(images))
        result = continue_training(restored, make(images))
        assert result.history == whole.history, number
        assert weights(result) == weights(whole), number


def test_a_state_is_saved_within_an_epoch_only_after_ten_minutes(images: Dataset) -> None:
    assert loop.SAVE_EVERY_S == 600
    saves: list[int] = []
    train(images, ready(images), hooks=TrainHooks(save=lambda state: saves.append(state.position)))
    assert saves == [0, 0, 0]


def test_a_training_that_diverges_within_an_epoch_saves_nothing(
    images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    saves: list[int] = []
    hooks = TrainHooks(save=lambda state: saves.append(state.step))
    config = ready(images, learning_rate=1e30)
    with pytest.raises(TrainingDiverged, match=r"epoch 1: .* is not finite; try a lower"):
        train(in_blocks(images, memory=SMALL), config, hooks=hooks)
    assert len(saves) < 6


@each_kind
def test_a_saved_state_does_not_hold_the_order_of_the_rows(
    images: Dataset, make: Callable[[Dataset], Dataset]
) -> None:
    many = replace(images, train=Split(np.tile(images.sample, (100, 1, 1)), images.train.sha256))
    saved: list[bytes] = []
    state = begin_training(make(many), ready(many, epochs=1), "cpu")
    hooks = TrainHooks(
        save=lambda state: saved.append(state.to_bytes()), stop=lambda: state.step == 2
    )
    with pytest.raises(TrainingStopped):
        continue_training(state, make(many), hooks)
    parameters = sum(value.nbytes for value in state.model.state_dict().values())
    assert len(saved[0]) < 4 * parameters + 40_000 < 27_000 * 8


def test_a_resumed_training_keeps_its_windows_if_the_memory_is_another(images: Dataset) -> None:
    state = begin_training(in_blocks(images, memory=SMALL), ready(images), "cpu")
    saved = read_state(state.to_bytes())
    assert restore_training(saved, in_blocks(images)).window_rows == 54
    assert restore_training(saved, mapped(images)).window_rows == 54
    assert begin_training(mapped(images), ready(images), "cpu").window_rows == 0
    windows = [
        begin_training(make(images), ready(images), "cpu").window_rows for make in KINDS.values()
    ]
    assert windows == [0, 54, 54, (1 << 30) // 8 // (30 + 8)]
    assert "window_rows" not in read_state(begin_training(images, ready(images), "cpu").to_bytes())


def test_an_order_of_all_rows_is_refused_where_rows_can_only_be_read_in_blocks(
    images: Dataset,
) -> None:
    saved = read_state(begin_training(mapped(images), ready(images), "cpu").to_bytes())
    state = restore_training(saved, in_blocks(images))
    with pytest.raises(DataRefused, match="can only be read in blocks"):
        open_feed(state, in_blocks(images))


@pytest.mark.parametrize("world", [2, 3, 8])
@pytest.mark.parametrize("make", [lambda dataset: dataset, *KINDS.values()], ids=["memory", *KINDS])
def test_processes_share_each_batch(
    images: Dataset, make: Callable[[Dataset], Dataset], world: int
) -> None:
    """Rank r takes the rows r, r + world, ... of each batch; the last batch has 20 rows."""
    config = ready(images, min_steps=30, batch_size=50)

    def batches(rank: int, world: int) -> list[tuple[Array, int]]:
        dataset = make(images)
        state = begin_training(dataset, config, "cpu")
        state.processes = Processes(rank, world)
        feed = open_feed(state, dataset)
        got = []
        for state.epoch in (1, 2):
            got += [(b.rows.numpy().copy(), b.size) for b in feed.batches(state, never)]
            state.drawn_from = state.drawn_from.new_empty(0)
        feed.close()
        return got

    whole = batches(0, 1)
    assert len(whole) == 2 * 2 * 6
    for rank in range(world):
        for (rows, size), (every, same) in zip(batches(rank, world), whole, strict=True):
            assert size == same == len(every)
            np.testing.assert_array_equal(rows, every[rank::world])


@pytest.mark.cuda
def test_mapped_rows_come_in_the_order_that_they_have_in_the_memory_of_a_gpu(
    images: Dataset,
) -> None:
    batches = []
    for dataset in (images, mapped(images)):
        state = begin_training(dataset, ready(images, min_steps=30), "cuda")
        feed = open_feed(state, dataset)
        batches.append(list(feed.batches(state, never)))
        feed.close()
    for memory, streamed in zip(*batches, strict=True):
        assert streamed.rows.is_cuda
        assert torch.equal(memory.rows, streamed.rows)


def test_a_process_may_have_no_row_of_a_small_batch(images: Dataset) -> None:
    dataset = in_blocks(images, memory=SMALL)
    state = begin_training(dataset, ready(images, batch_size=67), "cpu")  # 270 = 4 * 67 + 2
    state.processes = Processes(rank=2, world=3)
    feed = open_feed(state, dataset)
    counts = []
    for state.epoch in (1, 2):
        counts += [len(batch.rows) for batch in feed.batches(state, never)]
    feed.close()
    assert counts == [22, 22, 22, 22, 0] * 2


def test_a_part_of_an_epoch_is_not_gone_on_with_in_other_blocks(images: Dataset) -> None:
    """The same rows have the same digests in whatever blocks, but another order."""
    state = begin_training(in_blocks(images, memory=SMALL), ready(images), "cpu")
    state.position = 50
    saved = read_state(state.to_bytes())
    assert restore_training(saved, in_blocks(images, memory=SMALL)).position == 50
    others = in_blocks(images, block_rows=17, memory=SMALL)
    with pytest.raises(DataRefused, match=r"the rows of the training in other blocks .* epoch 1"):
        restore_training(saved, others)
    state.position = 0
    fresh = restore_training(read_state(state.to_bytes()), others)
    assert fresh.blocks == begin_training(others, ready(images), "cpu").blocks != state.blocks
