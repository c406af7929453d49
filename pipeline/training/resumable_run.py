"""A training as an MLflow run, which another process can take up where this one broke off.

The state lies in two files of the run, written in turn: a kill while one is written leaves the
other. It is saved before the metrics that it holds are logged, so that the process that goes on
knows all of them, and logs those that the run lacks.
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
from pipeline.training.loop import TrainResult, continue_training, steps_per_epoch
from pipeline.training.state import TrainState, read_state
from serving.console import progress, say
from serving.errors import UsageRefused, VaeError, VerificationFailed
from serving.mlflow_store import check_run, connect, store_errors
from serving.signals import deferred_signals

SLOTS = ("a.pt", "b.pt")
"""Files in the run's folder `resume`."""


class TrainingRun:
    """A run that a training is logged to, each thing once, over any number of processes.

    Args:
        run: the open run.
        state: the training's; what it holds already, the run may have.
    """

    def __init__(self, run: TrackedRun, state: TrainState) -> None:
        self._run = run
        self._state = state
        self._known = run.logged_steps() if state.saves else frozenset[tuple[str, int]]()

    def save(self, state: TrainState) -> None:
        """Write the state into the older of the two files; it counts once it is written.

        Raises:
            VaeError: it cannot be written, to a full disk for example.
        """
        saves = state.saves + 1
        content = replace(state, saves=saves).to_bytes()
        try:
            with store_errors(), tempfile.TemporaryDirectory() as temporary:
                path = Path(temporary, SLOTS[saves % 2])
                path.write_bytes(content)
                self._run.log_file(path, RESUME)
        except VaeError as err:
            raise VaeError(f"cannot keep the state of run {self._run.run_id}: {err}") from err
        state.saves = saves

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log those metrics of a step that an earlier process has not logged."""
        new = {name: value for name, value in metrics.items() if (name, step) not in self._known}
        if new:
            self._run.log_metrics(new, step)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Where the block breaks off, say how to go on."""
        run_id = self._run.run_id
        try:
            yield
        except TrainingDiverged:
            if self._state.saves:
                say(
                    "the last good state is kept; go on with: "
                    f"vae train --resume {run_id} --learning-rate RATE"
                )
            raise
        except BaseException:
            if self._state.saves:
                say(f"the state is saved; go on with: vae train --resume {run_id}")
            raise


def fit(tracked: TrainingRun, state: TrainState, dataset: Dataset) -> TrainResult:
    """Train to the end, with a bar or a line an epoch; a signal stops it after the step."""
    settings = state.settings
    say(
        f"training on {len(dataset.train.x):,} rows of {state.config.data.data} for at most "
        f"{settings.epochs} epochs, on {state.device}; preset {state.config.preset}"
    )
    if state.step:
        say(f"going on in epoch {state.epoch}, after {state.step:,} steps")
    for epoch, metrics in enumerate(state.history, start=1):
        tracked.log_metrics(metrics, step=epoch)
    steps = settings.epochs * steps_per_epoch(dataset, state.config)
    with progress(steps, "steps") as bar, deferred_signals() as stop:
        bar.skip(state.step)

        def log(epoch: int, metrics: Mapping[str, float]) -> None:
            tracked.log_metrics(metrics, step=epoch)
            held = f"  valid {metrics['valid_elbo']:.2f}" if "valid_elbo" in metrics else ""
            bar.say(
                f"epoch {epoch}/{settings.epochs}  elbo {metrics['elbo']:.2f}{held}  "
                f"kl {metrics['kl']:.2f}  {state.seconds:.0f} s"
            )

        result = continue_training(
            state, dataset, log=log, tick=bar.advance, save=tracked.save, stop=stop
        )
    if state.out_of_time:
        say(f"{settings.max_time:g} minutes are over: training ends in epoch {len(state.history)}")
    tracked.log_metrics({"best_epoch": result.best_epoch, "train_seconds": result.seconds})
    return result


def fetch_state(run_id: str) -> Mapping[str, Any]:
    """The newest state that a run holds whole.

    Raises:
        UsageRefused: there is no such run, it has finished, or holds no state.
        VerificationFailed: every state that it holds is damaged.
    """
    run = TrackedRun(connect(), run_id)
    check_run(run.client, run_id)
    if run.status() == "FINISHED":
        raise UsageRefused(f"run {run_id} has finished: there is nothing to go on with")
    with tempfile.TemporaryDirectory() as temporary:
        contents = [path.read_bytes() for path in run.fetch_folder(RESUME, Path(temporary))]
    if not contents:
        raise UsageRefused(
            f"run {run_id} holds no state to go on from: it ended before its first epoch did, or "
            "after its training; begin anew with vae train"
        )
    states, damage = [], None
    for content in contents:
        try:
            states.append(read_state(content))
        except VerificationFailed as err:
            damage = err
    if not states:
        raise VerificationFailed(f"run {run_id} cannot go on: {damage}") from damage
    return max(states, key=lambda state: int(state["saves"]))
