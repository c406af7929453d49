"""Take part in a training that has begun: one that was interrupted, or that of another process.

Slow imports are inside the functions.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.cli.data_loading import load_data
from pipeline.cli.devices import missing_cuda, torch_device
from pipeline.config import Config
from serving.console import say, warn
from serving.errors import DeviceUnavailable, UsageRefused

if TYPE_CHECKING:
    from pipeline.data.dataset import Dataset
    from pipeline.training.processes import Processes
    from pipeline.training.state import TrainState


def prepare_resume(
    run_id: str,
    device: str | None,
    threads: int | None,
    learning_rate: float | None = None,
    processes: "Processes | None" = None,
) -> "tuple[TrainState, Dataset]":
    """Read the state of an interrupted run; a setting of None keeps its value from that run.

    Another number of processes have as many threads together.

    Raises:
        UsageRefused: `device` is not the one that the run was training on.
        DeviceUnavailable: this machine does not have the run's device.
    """
    say("loading torch and MLflow")
    from pipeline.training.beginning import restore_training, saved_processes
    from pipeline.training.failures import wait_for_all
    from pipeline.training.processes import ALONE
    from pipeline.training.resumable_run import fetch_state

    processes = processes or ALONE
    saved, world = fetch_state(run_id), processes.world
    if (before := saved_processes(saved)) != world:
        saved = {**saved, "threads": max(1, saved["threads"] * before // world)}
        warn(
            f"run {run_id} was training in {before} process{'es' if before > 1 else ''}, and goes "
            f"on in {world}: what it computes differs from an uninterrupted training by rounding"
        )
    if device not in (None, "auto", saved["device"]):
        raise UsageRefused(
            f"run {run_id} was training on {saved['device']}, so it can only continue there; "
            f"got --device {device}"
        )
    if saved["device"] == "cuda" and (missing := missing_cuda()):
        raise DeviceUnavailable(
            f"run {run_id} was training on cuda, which this machine lacks: {missing}; continue it "
            "on a machine with a GPU, or start again with vae train"
        )
    torch_device(saved["device"], threads or saved["threads"], processes.local_rank)
    dataset = load_data(Config.from_json(saved["config"]), streamed="streamed" in saved)
    wait_for_all(processes)
    state = restore_training(saved, dataset, processes)
    if learning_rate is not None:
        rate = replace(state.config.train, learning_rate=learning_rate)
        state.config = replace(state.config, train=rate)
    state.check_processes()
    return state, dataset


def train_along(state: "TrainState", dataset: "Dataset") -> None:
    """Train as a process that neither speaks, logs nor saves."""
    from pipeline.training.loop import TrainHooks, continue_training
    from serving.signals import deferred_signals

    with deferred_signals() as stop:
        continue_training(state, dataset, TrainHooks(stop=stop))
