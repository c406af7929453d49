"""What is told of a training before and soon after its first step."""

import io
from contextlib import redirect_stderr
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.data.dataset import Dataset
from pipeline.tracking import TrackedRun, tracked_run
from pipeline.training.beginning import begin_training, restore_training
from pipeline.training.loop import train
from pipeline.training.resumable_run import ResumableRun, fetch_state, fit
from pipeline.training.state import TrainState
from pipeline.training.training_plan import Forecast, plan_lines, plan_params
from serving.mlflow_store import connect
from tests.pipeline.training.streamed import SMALL, BlockRows, in_blocks, mapped, ready, stream


def begin(dataset: Dataset, **settings: Any) -> tuple[TrainState, Dataset]:
    return begin_training(dataset, ready(dataset, **settings), "cpu"), dataset


def test_rows_in_memory_take_one_line_beside_that_of_the_training(images: Dataset) -> None:
    streamed = mapped(images)
    assert streamed.plan is not None
    plan = replace(streamed.plan, streamed=False)
    lines = plan_lines(*begin(replace(images, plan=plan)))
    assert lines == [
        "270 rows of 30 bytes to train on, in memory: 8.1 kB fits in the 1.07 GB of --memory",
        f"training on 270 rows of {images.source} for at most 3 epochs of 6 steps, on cpu; "
        "preset default",
    ]
    assert plan_params(*begin(replace(images, plan=plan))) == {
        "plan.rows": 270,
        "plan.bytes": 8100,
        "plan.memory": 1 << 30,
        "plan.streamed": False,
        "plan.passes_per_epoch": 1,
        "plan.steps": 18,
    }


def test_the_order_of_streamed_rows_is_told(images: Dataset) -> None:
    full = plan_lines(*begin(mapped(images)))
    assert "shuffle: each epoch in a new order of all rows" in full
    assert not any("window" in line for line in full)
    assert plan_params(*begin(mapped(images)))["plan.shuffle"] == "rows"
    lines = plan_lines(*begin(mapped(images, memory=SMALL)))
    assert (
        "shuffle: each epoch in a new order of blocks, and of the rows of several blocks" in lines
    )
    assert lines[-2] == (
        "rows are permuted in windows of at most 54, two in memory; these are fewer than 100,000 "
        "because of --memory"
    )
    params = plan_params(*begin(mapped(images, memory=SMALL), min_steps=30))
    assert (params["plan.shuffle"], params["plan.window_rows"]) == ("blocks", 54)
    assert (params["plan.passes_per_epoch"], params["plan.steps"]) == (2, 36)
    assert plan_lines(*begin(in_blocks(images)))[-2].startswith("one window holds all rows, so")


def test_only_a_window_of_fewer_than_100_000_rows_is_called_small(images: Dataset) -> None:
    many = stream(images, BlockRows(np.zeros((300_000, 1), np.uint8), 1000))
    state, _ = begin(in_blocks(images))
    for window_rows, small in ((100_000, False), (99_999, True)):
        state.window_rows = window_rows
        (line,) = [line for line in plan_lines(state, many) if "permuted in windows" in line]
        assert ("because of --memory" in line) == small


def test_a_block_that_is_larger_than_a_window_is_told(images: Dataset) -> None:
    lines = plan_lines(*begin(in_blocks(images, 100, memory=SMALL)))
    assert lines[-2] == (
        "rows are permuted in windows of at most 100, two in memory; so many are in a block, and "
        "--memory has room for only 54"
    )
    whole = plan_lines(*begin(in_blocks(images, 270, memory=SMALL)))
    assert whole[-2].startswith("one window holds all rows, so")


def test_the_time_is_foretold_once_from_the_steps_after_the_first_ten() -> None:
    clock = [0.0]
    forecast = Forecast(left=5_000, per_epoch=500, now=lambda: clock[0])
    told = []
    for step in range(1, 301):
        clock[0] += 60 if step <= 10 else 2
        told.append(forecast.advance())
    assert [(step, value) for step, value in enumerate(told, 1) if value is not None] == [(100, 2)]
    assert forecast.line(2) == (
        "a step takes 2e+03 ms: an epoch takes 16:40, and all 5,000 steps to the last epoch take "
        "2:46:40, without validation"
    )
    assert "takes 3.21 ms: an epoch takes 0:02, and" in forecast.line(0.00321)


def test_a_short_training_has_no_forecast() -> None:
    forecast = Forecast(left=99, per_epoch=9)
    assert [forecast.advance() for _ in range(99)] == [None] * 99


@pytest.mark.usefixtures("store")
def test_the_expected_time_is_said_by_each_process_and_logged_once(images: Dataset) -> None:
    """Three hundred steps; the first process is stopped after the second epoch."""
    config = ready(images, epochs=3, batch_size=3, patience=9)
    said = io.StringIO()

    def run_fit(run: TrackedRun, state: TrainState) -> None:
        with redirect_stderr(said):
            fit(ResumableRun(run, state), images)

    def params(run: TrackedRun) -> dict[str, str]:
        return dict(connect().get_run(run.run_id).data.params)

    whole = train(images, config)
    state = begin_training(images, config, "cpu")
    with pytest.MonkeyPatch.context() as patch, tracked_run() as run:
        patch.setattr(ResumableRun, "log_metrics", interrupt_at(2))
        with pytest.raises(InterruptedError):
            run_fit(run, state)
    (first,) = [line for line in said.getvalue().splitlines() if "a step takes" in line]
    logged = params(run)
    assert float(logged["plan.expected_seconds"]) >= 0
    connect().set_terminated(run.run_id, "KILLED")
    resumed = restore_training(fetch_state(run.run_id), images)
    assert resumed.epoch == 3
    with tracked_run(run_id=run.run_id) as run:
        tracked = ResumableRun(run, resumed)
        with redirect_stderr(said):
            result = fit(tracked, images)
    assert result.history == whole.history
    lines = [line for line in said.getvalue().splitlines() if "a step takes" in line]
    assert len(lines) <= 2
    assert lines[0] == first
    assert params(run) == logged


def interrupt_at(epoch: int) -> Any:
    log_metrics = ResumableRun.log_metrics

    def log(self: ResumableRun, metrics: Any, step: int = 0) -> None:
        log_metrics(self, metrics, step)
        if step == epoch:
            raise InterruptedError

    return log
