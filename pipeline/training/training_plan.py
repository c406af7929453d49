"""What a training will do, told before it begins, and how long it will take, told once it runs.

In: the state of a training, and its data. Out: lines for a person, and params for MLflow.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.data.plan import DataPlan
from pipeline.data.splits import Dataset, StreamedSplit
from pipeline.data.streamed_rows import StreamedRows
from pipeline.training.schedules import passes_per_epoch, total_steps
from pipeline.training.state import TrainState
from pipeline.training.windows import largest_window

FORECAST_STEPS = 100
"""Steps after which the time of all is foretold."""
_FIRST_STEPS = 10
"""Steps that are not timed: they wait for the first rows and for memory."""
_FEW_ROWS = 100_000
"""A window of fewer rows is said to be small."""


def plan_lines(state: TrainState, dataset: Dataset) -> list[str]:
    """Return what a person should know before the first step."""
    settings, rows = state.settings, dataset.train_rows
    passes = passes_per_epoch(rows, settings)
    steps = total_steps(rows, settings) // settings.epochs
    lines = [] if dataset.plan is None else _order_of(dataset.plan, state).lines()
    if state.window_rows and isinstance(dataset.train, StreamedSplit):
        lines.append(_tell_windows(state.window_rows, dataset.train.x))
    world = state.processes.world
    where = f"in {world} processes on {state.device}" if world > 1 else f"on {state.device}"
    lines.append(
        f"training on {rows:,} rows of {state.config.data.data} for at most {settings.epochs} "
        f"epochs of {steps:,} steps, {where}; preset {state.config.preset}"
    )
    if state.step:
        lines.append(f"resuming in epoch {state.epoch}, after {state.step:,} steps")
    if passes > 1:
        lines.append(
            f"these are few rows: each epoch passes over them {passes} times; see --min-steps"
        )
    return lines


def plan_params(state: TrainState, dataset: Dataset) -> Mapping[str, Any]:
    """Return what MLflow keeps of the plan."""
    rows, settings = dataset.train_rows, state.settings
    return {
        **({} if dataset.plan is None else _order_of(dataset.plan, state).params()),
        **({"plan.window_rows": state.window_rows} if state.window_rows else {}),
        "plan.passes_per_epoch": passes_per_epoch(rows, settings),
        "plan.steps": total_steps(rows, settings),
    }


def _order_of(plan: DataPlan, state: TrainState) -> DataPlan:
    """Return the plan of the data with the order that the training has chosen for its rows."""
    return replace(plan, shuffle="blocks" if state.window_rows else "rows")


def _tell_windows(window_rows: int, x: StreamedRows) -> str:
    most = largest_window(x, window_rows)
    if most >= x.shape[0]:
        return "one window holds all rows, so that they come in a new order of all in each epoch"
    note = ""
    if most > window_rows:
        note = f"; so many are in a block, and --memory has room for only {window_rows:,}"
    elif most < _FEW_ROWS:
        note = f"; these are fewer than {_FEW_ROWS:,} because of --memory"
    return f"rows are permuted in windows of at most {most:,}, two in memory{note}"


@dataclass(slots=True)
class Forecast:
    """Foretells the time of a training from the first steps of this process."""

    left: int
    """Steps that are left of all epochs."""
    per_epoch: int
    now: Callable[[], float] = time.monotonic
    _done: int = field(init=False, default=0)
    _since: float = field(init=False, default=0.0)

    def advance(self) -> float | None:
        """Count a step; return the expected seconds of a step once that is known, then None."""
        self._done += 1
        if self._done == _FIRST_STEPS:
            self._since = self.now()
        if self._done != FORECAST_STEPS or self.left < FORECAST_STEPS:
            return None
        return (self.now() - self._since) / (FORECAST_STEPS - _FIRST_STEPS)

    def line(self, step_s: float) -> str:
        """Return for a person how long a training with such steps takes from its start here."""
        epoch, left = (_format_time(count * step_s) for count in (self.per_epoch, self.left))
        return (
            f"a step takes {step_s * 1e3:.3g} ms: an epoch takes {epoch}, and all {self.left:,} "
            f"steps to the last epoch take {left}, without validation"
        )


def _format_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
