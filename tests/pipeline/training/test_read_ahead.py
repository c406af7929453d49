"""Rows are read ahead in a thread, which ends with the training, and whose errors end it."""

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.dataset import Dataset
from pipeline.data.plan import Resources
from pipeline.data.streaming.loading import load_streamed
from pipeline.errors import TrainingDiverged, TrainingStopped
from pipeline.training import windows
from pipeline.training.beginning import begin_training, restore_training
from pipeline.training.feeds import open_feed
from pipeline.training.loop import TrainHooks, continue_training, train
from pipeline.training.state import read_state
from serving.errors import DataRefused
from tests.pipeline.training.streamed import (
    SMALL,
    Array,
    blocks_of,
    each_kind,
    in_blocks,
    memory_for,
    never,
    ready,
    weights,
)
from tests.trained_models import draw_images


@pytest.fixture(autouse=True)
def no_threads_are_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if "read-ahead" in thread.name] == []


def test_the_next_window_is_read_while_one_is_trained_on(images: Dataset) -> None:
    """And no more: two windows are in memory. The first of the next epoch is read as well."""
    dataset = in_blocks(images, 54, memory=memory_for(54, 30))  # 5 windows of a block each
    x = blocks_of(dataset)
    state = begin_training(dataset, ready(images, batch_size=54, epochs=2), "cpu")
    feed = open_feed(state, dataset)
    read = threading.Semaphore(0)
    x.before_read = lambda block: read.release()
    seen = 0
    for _ in feed.batches(state, never):
        seen += 1
        for _ in range(2 if seen == 1 else 1):
            assert read.acquire(timeout=60)
        assert not read.acquire(timeout=0.05)
    assert (seen, len(x.read)) == (5, 6)
    feed.close()


def test_two_windows_are_in_memory_at_most(
    images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a window begins to be read, only the one that is trained on is alive."""
    read, alive = windows._read, list[int]()
    made: list[weakref.ref[Array]] = []

    def watched(*arguments: Any) -> Array | None:
        alive.append(sum(reference() is not None for reference in made))
        x = read(*arguments)
        if x is not None:
            made.append(weakref.ref(x))
        return x

    monkeypatch.setattr(windows, "_read", watched)
    train(in_blocks(images, memory=SMALL), ready(images))
    assert len(made) == 3 * 6
    assert max(alive) == 1


@each_kind
def test_a_training_that_ends_early_leaves_no_thread(
    images: Dataset, make: Callable[[Dataset], Dataset]
) -> None:
    """The fixture counts the threads."""
    train(make(images), ready(images, max_time=1e-9))
    train(make(images), ready(images, epochs=9, patience=1, learning_rate=0.3))
    with pytest.raises(TrainingDiverged):
        train(make(images), ready(images, learning_rate=1e30))
    with pytest.raises(RuntimeError, match="in the loop"):
        train(make(images), ready(images), hooks=TrainHooks(advance=raise_in_loop))


def raise_in_loop(steps: int) -> None:
    raise RuntimeError("in the loop")


def test_a_stop_is_heeded_while_rows_are_read(images: Dataset) -> None:
    asked = threading.Event()
    dataset = in_blocks(images)
    x = blocks_of(dataset)
    x.before_read = lambda block: wait(asked, 0.5 if x.read else 60)
    state, saved = begin_training(dataset, ready(images), "cpu"), list[bytes]()

    def wait(event: threading.Event, seconds: float) -> None:
        (threading.Event() if event.is_set() else event).wait(seconds)

    def stop() -> bool:
        asked.set()
        return True

    hooks = TrainHooks(save=lambda state: saved.append(state.to_bytes()), stop=stop)
    with pytest.raises(TrainingStopped, match="stopped while rows were read"):
        continue_training(state, dataset, hooks)
    assert read_state(saved[0])["step"] == 0
    assert len(x.read) < len(x.blocks)


def test_a_file_that_changes_ends_training_with_its_name_and_a_state_to_resume_from(
    images: Dataset, tmp_path: Path
) -> None:
    """Its old content leads to the same end; other content would be refused, see `test_state`."""
    path = tmp_path / "x.npy"
    np.save(path, draw_images(400))
    before = path.stat()
    config = ready(images)

    def load() -> Dataset:
        return load_streamed(
            str(path), Resources(memory=1 << 20), valid_fraction=0.1, test_fraction=0.25
        )

    dataset = load()
    whole, saved = train(dataset, config), list[bytes]()
    hooks = TrainHooks(
        save=lambda state: saved.append(state.to_bytes()), log=lambda *_: path.touch()
    )
    with pytest.raises(DataRefused, match=r"x\.npy has changed since its rows were counted"):
        train(dataset, config, hooks=hooks)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert read_state(saved[-1])["epoch"] == 2
    result = continue_training(restore_training(read_state(saved[-1]), load()), load())
    assert weights(result) == weights(whole)


def test_a_block_that_cannot_be_read_ends_training_with_a_state_to_resume_from(
    images: Dataset,
) -> None:
    def fail(block: int) -> None:
        if len(x.read) == 17 + 9:
            raise DataRefused("part-3.parquet is gone")

    dataset = in_blocks(images, memory=SMALL)
    config, saved = ready(images), list[bytes]()
    whole = train(dataset, config)
    x = blocks_of(dataset)
    x.read.clear()
    x.before_read = fail
    with pytest.raises(DataRefused, match=r"^part-3\.parquet is gone$"):
        train(dataset, config, hooks=TrainHooks(save=lambda state: saved.append(state.to_bytes())))
    state = restore_training(read_state(saved[-1]), in_blocks(images, memory=SMALL))
    assert (state.epoch, state.position) == (2, 100)  # of three windows of 144 rows
    result = continue_training(state, in_blocks(images, memory=SMALL))
    assert result.history == whole.history
    assert weights(result) == weights(whole)
