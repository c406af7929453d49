"""A training logged to an MLflow run, which another process can resume after an interruption.

The state is saved alternately to two files of the run, so that a kill during a write leaves the
other file intact. It is saved before its metrics are logged, so that the process that resumes knows
all of them and logs those that the run lacks.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.data.dataset import Dataset
from pipeline.errors import TrainingDiverged
from pipeline.tracking import RESUME, TrackedRun
from pipeline.training.loop import TrainHooks, TrainResult, continue_training
from pipeline.training.schedules import passes_per_epoch, total_steps
from pipeline.training.state import TrainState, read_state
from serving.console import progress, say
from serving.errors import UsageRefused, VaeError, VerificationFailed
from serving.mlflow_store import check_run, connect, store_errors
from serving.signals import deferred_signals

STATE_FILES = ("a.pt", "b.pt")
"""Files in the run's folder `resume`."""


class ResumableRun:
    """A run to which a training logs everything once, over any number of processes.

    Args:
        run: the open run.
        state: the training's state; metrics that it already holds may be in the run.
    """

    def __init__(self, run: TrackedRun, state: TrainState) -> None:
        self.run = run
        self.state = state
        self._logged = run.logged_steps() if state.saves else frozenset[tuple[str, int]]()

    def save(self, state: TrainState) -> None:
        """Write the state over the older of the two files, and count it once it is written.

        Raises:
            VaeError: it cannot be written, for example because the disk is full.
        """
        saves = state.saves + 1
        content = replace(state, saves=saves).to_bytes()
        try:
            with store_errors(), tempfile.TemporaryDirectory() as temporary:
                path = Path(temporary, STATE_FILES[saves % 2])
                path.write_bytes(content)
                self.run.log_file(path, RESUME)
        except VaeError as err:
            raise VaeError(f"cannot save the state of run {self.run.run_id}: {err}") from err
        state.saves = saves

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log the metrics of a step, except those that an earlier process has logged."""
        new = {name: value for name, value in metrics.items() if (name, step) not in self._logged}
        if new:
            self.run.log_metrics(new, step)

    @contextmanager
    def advise_resume(self) -> Iterator[None]:
        """Tell the user how to resume if the block raises and a state has been saved."""
        resume = f"vae train --resume {self.run.run_id}"
        try:
            yield
        except BaseException as err:
            if self.state.saves and isinstance(err, TrainingDiverged):
                say(f"the last good state is saved; resume with: {resume} --learning-rate RATE")
            elif self.state.saves:
                say(f"the state is saved; resume with: {resume}")
            raise


def fit(resumable: ResumableRun, dataset: Dataset) -> TrainResult:
    """Train to the end with progress on stderr; a signal stops training after the current step."""
    state = resumable.state
    settings = state.settings
    world = state.processes.world
    where = f"in {world} processes on {state.device}" if world > 1 else f"on {state.device}"
    say(
        f"training on {len(dataset.train.x):,} rows of {state.config.data.data} for at most "
        f"{settings.epochs} epochs, {where}; preset {state.config.preset}"
    )
    if state.step:
        say(f"resuming in epoch {state.epoch}, after {state.step:,} steps")
    for epoch, metrics in enumerate(state.history, start=1):
        resumable.log_metrics(metrics, step=epoch)
    passes = passes_per_epoch(len(dataset.train.x), settings)
    if passes > 1:
        say(f"these are few rows: each epoch passes over them {passes} times; see --min-steps")
    steps = total_steps(len(dataset.train.x), settings)
    with progress(steps, "steps") as bar, deferred_signals() as stop:
        bar.skip(state.step)

        def log(epoch: int, metrics: Mapping[str, float]) -> None:
            resumable.log_metrics(metrics, step=epoch)
            valid = f"  valid {metrics['valid_elbo']:.2f}" if "valid_elbo" in metrics else ""
            bar.say(
                f"epoch {epoch}/{settings.epochs}  elbo {metrics['elbo']:.2f}{valid}  "
                f"kl {metrics['kl']:.2f}  {state.seconds:.0f} s"
            )

        result = continue_training(
            state, dataset, TrainHooks(log, bar.advance, resumable.save, stop)
        )
    if state.early_end:
        say(state.early_end)
    resumable.log_metrics({"best_epoch": result.best_epoch, "train_seconds": result.seconds})
    return result


def fetch_state(run_id: str) -> Mapping[str, Any]:
    """Return the newest undamaged state that a run holds.

    Raises:
        UsageRefused: there is no such run, it has finished, or it holds no state.
        VerificationFailed: every state that it holds is damaged.
    """
    run = TrackedRun(connect(), run_id)
    check_run(run.client, run_id)
    if run.status() == "FINISHED":
        raise UsageRefused(f"run {run_id} has finished: there is nothing to resume")
    with tempfile.TemporaryDirectory() as temporary:
        contents = [path.read_bytes() for path in run.fetch_folder(RESUME, Path(temporary))]
    if not contents:
        raise UsageRefused(
            f"run {run_id} holds no state to resume from: it ended before the end of its first "
            "epoch, or after its training; start a new run with vae train"
        )
    states, damage = [], None
    for content in contents:
        try:
            states.append(read_state(content))
        except VerificationFailed as err:
            damage = err
    if not states:
        raise VerificationFailed(f"run {run_id} cannot be resumed: {damage}") from damage
    return max(states, key=lambda state: int(state["saves"]))
