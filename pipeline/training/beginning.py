"""Begin a training, or take one up where its saved state left it.

In: a `Dataset` and a `Config`, or what `read_state` read. Out: a `TrainState`. Changed data raises
`DataRefused`.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config import Config
from pipeline.data.plan import process_memory
from pipeline.data.splits import Dataset, StreamedSplit
from pipeline.model.likelihoods import resolve_model_config
from pipeline.model.vae import VAE
from pipeline.training.batch_loss import BatchLoss
from pipeline.training.cuda_graph import StepGraph, check_gpu_settings
from pipeline.training.processes import ALONE, Processes
from pipeline.training.schedules import passes_per_epoch, total_steps
from pipeline.training.state import SAVED_FIELDS, STREAMED_FIELDS, TrainState
from pipeline.training.windows import choose_window
from serving.errors import DataRefused, UsageRefused


def build_model(dataset: Dataset, config: Config) -> VAE:
    """Build the model with its initial weights, its scaling fitted to the training rows.

    If the rows are streamed, it is fitted to the fixed sample of them.

    Raises:
        DataRefused: the data does not fit the likelihood.
    """
    settings = resolve_model_config(config, *dataset.rows, schema=dataset.schema)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        model = VAE(dataset.x_shape, settings, dataset.schema)
    model.px.fit(dataset.sample, dataset.max_byte)
    for x in dataset.rows:
        model.px.check(x)
    bias = getattr(model.decoder, "output_bias", None)
    if (settings.output_bias or model.mixed) and bias is not None:
        bias.data.copy_(model.px.output_bias(dataset.sample))
    return model


def begin_training(
    dataset: Dataset, config: Config, device: str, processes: Processes = ALONE
) -> TrainState:
    """Return the state before the first step, of a training that several processes may share.

    Raises:
        DataRefused: the data does not fit the likelihood.
        DeviceUnavailable: the device lacks what the settings ask for.
        UsageRefused: the warm-up is not shorter than the training, or a setting does not fit the
            networks.
    """
    steps = total_steps(dataset.train_rows, config.train)
    if config.train.kl_warmup_steps >= steps:
        raise UsageRefused(
            f"the training has {steps:,} steps, and its warm-up {config.train.kl_warmup_steps:,}: "
            "give fewer --kl-warmup-steps, or more --epochs"
        )
    return _initial_state(dataset, config, device, processes)


def restore_training(
    saved: Mapping[str, Any], dataset: Dataset, processes: Processes = ALONE
) -> TrainState:
    """Return the state whose content `read_state` read.

    Of as many processes as it was saved by, each goes on with what it had of its own. Of another
    number, the first takes the sums of all.

    Raises:
        DataRefused: the training used other data, or has read a part of other blocks.
        DeviceUnavailable: the device lacks what the settings ask for.
    """
    for split, digest in dataset.digests().items():
        if digest != saved["data"][split]:
            raise DataRefused(
                f"{dataset.source} has changed since the training began: its {split} split is "
                f"{digest[:12]}, the training's {saved['data'][split][:12]}"
            )
    device = saved["device"]
    state = _initial_state(dataset, Config.from_json(saved["config"]), device, processes)
    state.model.load_state_dict(saved["model"])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.generator.set_state(saved["generator"])
    for name in SAVED_FIELDS:
        setattr(state, name, _move(saved[name], device))
    if state.streamed:
        blocks = state.blocks
        for name in STREAMED_FIELDS:
            setattr(state, name, saved[name])
        if state.window_rows and state.position and blocks != state.blocks:
            raise DataRefused(
                f"{dataset.source} has the rows of the training in other blocks than when it was "
                f"interrupted, in epoch {state.epoch}: its files were written again, and the order "
                "of that epoch cannot be found; bring the files back, or train anew"
            )
        state.blocks = blocks
    before, world = saved_processes(saved), processes.world
    # one process saved them without their first axis before there could be several
    state.rng = {name: value.reshape(before, -1) for name, value in saved["rng"].items()}
    state.sums = state.sums.reshape(before, 3)
    if before != world:
        state.rng = {name: _repeat(value, world) for name, value in state.rng.items()}
        total = state.sums.sum(0)
        state.sums = total.new_zeros(world, 3)
        state.sums[0] = total
    return state


def saved_processes(saved: Mapping[str, Any]) -> int:
    """Return how many processes saved a state."""
    return int(saved.get("processes", 1))


def _initial_state(
    dataset: Dataset, config: Config, device: str, processes: Processes
) -> TrainState:
    check_gpu_settings(config, device)
    model = build_model(dataset, config).to(device)
    any_row = torch.from_numpy(dataset.sample[:1]).to(device)
    state = TrainState(
        config=config,
        data=dataset.digests(),
        streamed=dataset.streamed,
        device=device,
        model=model,
        batch_loss=processes.parallel(BatchLoss(model, config.train, processes, any_row)),
        optimizer=torch.optim.Adam(model.parameters(), lr=config.train.learning_rate, fused=True),
        generator=torch.Generator(device).manual_seed(config.train.seed),
        rng={},
        best_weights={},
        order=torch.empty(0, dtype=torch.int64, device=device),
        sums=torch.zeros(processes.world, 3, device=device),
        history=[],
        processes=processes,
    )
    state.best_weights = state.copy_weights()
    if config.train.cuda_graph:
        state.graph = StepGraph(state.optimizer)
    if isinstance(dataset.train, StreamedSplit):
        passes = passes_per_epoch(dataset.train_rows, config.train)
        memory = dataset.plan.memory if dataset.plan else process_memory()
        state.window_rows = choose_window(dataset.train.x, passes, memory)
        sizes = np.array([len(block) for block in dataset.train.x.blocks], np.int64)
        state.blocks = hashlib.sha256(sizes.tobytes()).hexdigest()
    return state


def _repeat(values: Tensor, count: int) -> Tensor:
    """Return `count` rows of a tensor, from its first one again if it has fewer."""
    return values[torch.arange(count) % len(values)]


def _move(value: Any, device: str) -> Any:
    if isinstance(value, dict):
        return {name: _move(item, device) for name, item in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value
