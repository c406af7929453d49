"""Training as a command runs it: prepare or resume it, train in an MLflow run, and evaluate."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.data_loading import load_data
from pipeline.cli.devices import missing_cuda, torch_device
from pipeline.cli.stages import evaluate
from pipeline.config import Config
from serving.console import say
from serving.errors import DeviceUnavailable, UsageRefused

if TYPE_CHECKING:
    from pipeline.data.dataset import Dataset
    from pipeline.evaluation.evaluate import Metrics
    from pipeline.model.checkpoint import Checkpoint
    from pipeline.tracking import TrackedRun
    from pipeline.training.state import TrainState

EVALUATION_SEED = 0
"""The same for every training, so that models are compared on the same noise."""


def prepare(config: Config, device: str, threads: int) -> "tuple[TrainState, Dataset]":
    """Load the data and begin the training, so that an error comes before a run is opened."""
    from pipeline.training.loop import begin_training

    device = torch_device(device, threads)
    dataset = load_data(config)
    return begin_training(dataset, _resolve_config(config, dataset), device), dataset


def _resolve_config(config: Config, dataset: "Dataset") -> Config:
    """Return the config with the settings that follow from the data, and print the likelihood."""
    from pipeline.model.likelihoods import choose_likelihood, settle

    reason = ""
    if config.model.likelihood == "auto":
        name, kind = choose_likelihood(config.data.binarize, *dataset.rows)
        config = replace(config, model=replace(config.model, likelihood=name))
        reason = f", for {kind}"
    model = settle(config, *dataset.rows)
    say(f"likelihood {model.likelihood}{reason}; rows of {dataset.train.x.dtype} {dataset.x_shape}")
    return replace(config, model=model)


def prepare_resume(
    run_id: str, device: str | None, threads: int | None, learning_rate: float | None = None
) -> "tuple[TrainState, Dataset]":
    """Read the state of a run that broke off; a setting of None stays what it was in that run.

    Raises:
        UsageRefused: `device` is not the one that the run was training on.
        DeviceUnavailable: this machine does not have the run's device.
    """
    from pipeline.training.loop import restore_training
    from pipeline.training.resumable_run import fetch_state

    saved = fetch_state(run_id)
    if device not in (None, "auto", saved["device"]):
        raise UsageRefused(
            f"run {run_id} was training on {saved['device']}, and goes on nowhere else; "
            f"got --device {device}"
        )
    if saved["device"] == "cuda" and (missing := missing_cuda()):
        raise DeviceUnavailable(
            f"run {run_id} was training on cuda, which is not here: {missing}; go on with it where "
            "there is a GPU, or begin anew with vae train"
        )
    torch_device(saved["device"], threads or saved["threads"])
    dataset = load_data(Config.from_json(saved["config"]))
    state = restore_training(saved, dataset)
    if learning_rate is not None:
        rate = replace(state.config.train, learning_rate=learning_rate)
        state.config = replace(state.config, train=rate)
    return state, dataset


def train(
    run: "TrackedRun", state: "TrainState", dataset: "Dataset"
) -> "tuple[Checkpoint, Metrics]":
    """Train, evaluate and draw figures, and log all of it to the run."""
    import torch

    from pipeline.evaluation.figures import draw_figures
    from pipeline.model.checkpoint import Checkpoint, save_checkpoint
    from pipeline.tracking import CHECKPOINT, FIGURES, describe_system, git_state
    from pipeline.training.resumable_run import TrainingRun, fit

    config, device, threads = state.config, state.device, torch.get_num_threads()
    git = git_state()
    run.log_params(config.flat())
    run.set_tags(
        {
            **{f"git.{key}": value for key, value in git.items()},
            **describe_system(device, threads),
            **{f"data.{split}.sha256": value for split, value in dataset.digests().items()},
        }
    )
    run.log_dataset(dataset.describe())
    run.log_json("config.json", config.to_json())
    tracked = TrainingRun(run, state)
    with tracked.kept():
        result = fit(tracked, state, dataset)
        checkpoint = Checkpoint(
            model=result.model,
            config=config,
            x_dtype=str(dataset.train.x.dtype),
            likelihood=config.model.likelihood,
            data=dataset.describe(),
            git=git,
            run_id=run.run_id,
        )
        samples = config.evaluate.nll_samples
        metrics = evaluate(result.model, dataset.test, samples, EVALUATION_SEED, device, threads)
        tracked.log_metrics(metrics.numbers("test_"), step=result.best_epoch)
        run.log_json("metrics.json", metrics.to_json())
        with tempfile.TemporaryDirectory() as temporary:
            save_checkpoint(Path(temporary), checkpoint)
            run.log_folder(Path(temporary), CHECKPOINT)
        with tempfile.TemporaryDirectory() as temporary:
            figures = Path(temporary)
            draw_figures(figures, result.model, result.history, dataset.test, metrics.held_out)
            run.log_folder(Path(temporary), FIGURES)
    return checkpoint, metrics
