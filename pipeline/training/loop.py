"""Train a VAE on a dataset held in memory.

In: a `Dataset` and a `Config`, or the state of a training that broke off. Out: a `TrainResult` with
the best weights. Raises `TrainingDiverged` when a number is not finite, `DataRefused` when the data
does not fit the likelihood or is not that of the state.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config import Config
from pipeline.data.dataset import Dataset
from pipeline.errors import TrainingDiverged, TrainingStopped
from pipeline.model.likelihoods import settle
from pipeline.model.objective import Terms, loss, terms
from pipeline.model.vae import VAE
from pipeline.training.schedules import kl_weight_at, learning_rate_at, warm_up_over
from pipeline.training.state import TrainState, begin, restore
from serving.errors import UsageRefused

EVAL_VALUES = 1 << 20
"""Decoded values at a time in validation, which bounds memory."""

Log = Callable[[int, Mapping[str, float]], None]
"""Takes the epoch, from 1, and its metrics."""
Tick = Callable[[int], None]
"""Takes the number of steps made since the last call."""
Save = Callable[[TrainState], None]
"""Keeps a state that is finite."""
Stop = Callable[[], bool]
"""Whether to stop after this step."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A trained model in evaluation mode, and how it got there."""

    model: VAE
    history: tuple[Mapping[str, float], ...]
    """Metrics by epoch."""
    best_epoch: int
    seconds: float


def build_model(dataset: Dataset, config: Config) -> VAE:
    """Build the model with its initial weights, its scaling fitted to the training rows."""
    settings = settle(config, *dataset.rows)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        model = VAE(dataset.x_shape, settings)
    for x in dataset.rows:
        model.px.check(x)
    model.px.fit(dataset.train.x)
    bias = getattr(model.decoder, "output_bias", None)
    if settings.output_bias and bias is not None:
        bias.data.copy_(model.px.output_bias(dataset.train.x))
    return model


def begin_training(dataset: Dataset, config: Config, device: str) -> TrainState:
    """The state before the first step; raises `DataRefused` as `build_model` does.

    Raises:
        UsageRefused: the warm-up would not end.
    """
    steps = config.train.epochs * steps_per_epoch(dataset, config)
    if config.train.kl_warmup_steps >= steps:
        raise UsageRefused(
            f"the training has {steps:,} steps, and its warm-up {config.train.kl_warmup_steps:,}: "
            "give fewer --kl-warmup-steps, or more --epochs"
        )
    return begin(dataset, config, device, build_model(dataset, config))


def restore_training(saved: Mapping[str, Any], dataset: Dataset) -> TrainState:
    """The state that `read_state` read; raises `DataRefused` where the data is not the same."""
    return restore(saved, dataset, build_model(dataset, Config.from_json(saved["config"])))


def train(
    dataset: Dataset,
    config: Config,
    *,
    device: str = "cpu",
    log: Log = lambda epoch, metrics: None,
) -> TrainResult:
    """Train from the first step to the end."""
    return continue_training(begin_training(dataset, config, device), dataset, log=log)


def continue_training(
    state: TrainState,
    dataset: Dataset,
    *,
    log: Log = lambda epoch, metrics: None,
    tick: Tick = lambda steps: None,
    save: Save = lambda state: None,
    stop: Stop = lambda: False,
) -> TrainResult:
    """Minimise the loss with Adam from `state` to the end; keep the weights of the best epoch.

    The best epoch is that of the highest validation ELBO after the warm-up (with the objective
    iwae, of its bound). Without validation rows there is no early
    stopping, and the last weights are kept. A state is saved before the metrics it holds are
    logged, and only if all of it is finite.

    Raises:
        TrainingDiverged: a metric, a weight or a moment is not finite.
        TrainingStopped: `stop` said so after a step; the state has been saved.
    """
    x_train, x_valid = (
        torch.from_numpy(split.x).to(state.device) for split in (dataset.train, dataset.valid)
    )
    with state.own_generators():
        _run_epochs(state, dataset, x_train, x_valid, log=log, tick=tick, save=save, stop=stop)
    return _result(state, dataset)


def _run_epochs(
    state: TrainState,
    dataset: Dataset,
    x_train: Tensor,
    x_valid: Tensor,
    *,
    log: Log,
    tick: Tick,
    save: Save,
    stop: Stop,
) -> None:
    steps = steps_per_epoch(dataset, state.config)
    clock = time.perf_counter() - state.seconds
    state.model.train()
    while not state.finished:
        try:
            for rows in _batches(state, x_train):
                _make_step(state, rows, steps)
                tick(1)
                state.seconds = time.perf_counter() - clock
                if stop():
                    raise TrainingStopped(f"training was stopped in epoch {state.epoch}")
                if state.out_of_time:
                    break
            _end_epoch(state, x_valid, stop)
        except TrainingStopped:
            state.check_finite()
            state.keep_generators()
            save(state)
            raise
        state.seconds = time.perf_counter() - clock
        state.keep_generators()
        save(state)
        log(state.epoch - 1, state.history[-1])


def steps_per_epoch(dataset: Dataset, config: Config) -> int:
    """Number of optimiser steps in one epoch, the last one on what is left."""
    return math.ceil(len(dataset.train.x) / config.train.batch_size)


@torch.no_grad()
def elbo_terms(
    model: VAE, x: Tensor, *, seed: int, num_samples: int = 1, stop: Stop = lambda: False
) -> dict[str, float]:
    """Mean `elbo`, `log_likelihood` and `kl` over rows; of several samples also `iw_elbo`.

    Raises:
        TrainingStopped: `stop` said so on the way.
    """
    generator = torch.Generator(x.device).manual_seed(seed)
    sums = torch.zeros(3, device=x.device)
    for rows in torch.split(x, max(1, EVAL_VALUES // (x[0].numel() * num_samples))):
        if stop():
            raise TrainingStopped("training was stopped while it was validated")
        eps = _draw_eps(len(rows), num_samples, model.latent_dim, generator)
        sums += _sums(terms(model, rows, eps))
    return _means(sums, len(x), num_samples)


def draw_batch(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Flip a coin for every pixel: bytes become 0 or 255, floats 0 or 1, ones with P = pixel.

    The probability of a byte is exact, byte / 255; that of a float is so to 2⁻²⁴.
    """
    if rows.dtype == torch.uint8:
        ones = _draw_bytes(rows, generator) < rows
        return ones.view(torch.uint8).mul_(255)
    noise = torch.rand(rows.shape, generator=generator, device=rows.device)
    return (noise < rows).to(rows.dtype)


def _draw_bytes(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Bytes of the shape of `rows`, uniform from 0 to 254."""
    if rows.is_cuda:
        return torch.empty_like(rows).random_(0, 255, generator=generator)
    # Eight at a time, and those that are 255 again, in a third of the time
    words = torch.empty(-(-rows.numel() // 8), dtype=torch.int64)
    noise = words.random_(-(2**63), None, generator=generator).view(torch.uint8)[: rows.numel()]
    again = np.flatnonzero(noise.numpy() == 255)  # torch's nonzero takes ten times as long
    redrawn = torch.empty(len(again), dtype=torch.uint8).random_(0, 255, generator=generator)
    noise.numpy()[again] = redrawn.numpy()
    return noise.view_as(rows)


def _batches(state: TrainState, x: Tensor) -> Iterator[Tensor]:
    """What is left of the epoch."""
    if state.position == 0:
        state.order = torch.randperm(len(x), generator=state.generator, device=x.device)
    while state.position < len(x):
        indices = state.order[state.position :][: state.settings.batch_size]
        state.position += len(indices)
        rows = x.index_select(0, indices)
        if state.config.data.binarize == "dynamic":
            rows = draw_batch(rows, state.generator)
        yield rows


def _make_step(state: TrainState, rows: Tensor, steps_per_epoch: int) -> None:
    settings = state.settings
    steps = settings.epochs * steps_per_epoch
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate_at(state.step, settings, steps=steps)
    shape = len(rows), settings.train_samples, state.model.latent_dim
    eps = _draw_eps(*shape, state.generator)
    row_terms = terms(state.model, rows, eps)
    state.optimizer.zero_grad()
    value = loss(row_terms, settings, kl_weight_at(state.step, settings))
    value.backward()  # type: ignore[no-untyped-call]
    state.optimizer.step()
    state.sums += _sums(row_terms)
    state.step += 1


def _end_epoch(state: TrainState, x_valid: Tensor, stop: Stop) -> None:
    """Add the metrics, keep the weights if they are the best, and turn to the next epoch."""
    settings = state.settings
    metrics = _means(state.sums, state.position, settings.train_samples)
    if len(x_valid):
        state.model.eval()
        samples = settings.train_samples
        valid = elbo_terms(state.model, x_valid, seed=0, num_samples=samples, stop=stop)
        state.model.train()
        metrics |= {f"valid_{name}": value for name, value in valid.items()}
    _check_finite(state.epoch, metrics)
    state.check_finite()
    state.history.append(metrics)
    judged = len(x_valid) > 0 and warm_up_over(state.step, settings)
    weighted = settings.objective == "iwae" and settings.train_samples > 1
    elbo = metrics["valid_iw_elbo" if weighted else "valid_elbo"] if judged else -math.inf
    if elbo > state.best_elbo or not judged:
        state.best_epoch, state.best_elbo = state.epoch, elbo
        state.best_weights = state.copy_weights()
    state.epoch += 1
    state.position = 0
    state.order = state.order.new_empty(0)  # a view would keep, and save, all of it
    state.sums.zero_()


def _result(state: TrainState, dataset: Dataset) -> TrainResult:
    state.model.load_state_dict(state.best_weights)
    state.model.eval().requires_grad_(False)
    return TrainResult(
        state.model.cpu(),
        tuple(state.history),
        state.best_epoch,
        state.seconds,
    )


def _draw_eps(rows: int, num_samples: int, latent_dim: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, num_samples, latent_dim, generator=generator, device=generator.device)


def _sums(row_terms: Terms) -> Tensor:
    """Sums of log-likelihood, KL and importance-weighted bound over rows, (3,)."""
    log_likelihood, kl = (row_terms.log_likelihood.detach(), row_terms.kl.detach().sum())
    first = log_likelihood.mean(-1).sum()
    if log_likelihood.shape[1] == 1:
        return torch.stack([first, kl, first - kl])
    return torch.stack([first, kl, row_terms.iw_elbo().detach().sum()])


def _means(sums: Tensor, rows: int, num_samples: int) -> dict[str, float]:
    log_likelihood, kl, iw_elbo = (sums / rows).tolist()
    means = {"elbo": log_likelihood - kl, "log_likelihood": log_likelihood, "kl": kl}
    return means | ({"iw_elbo": iw_elbo} if num_samples > 1 else {})


def _check_finite(epoch: int, metrics: Mapping[str, float]) -> None:
    """The terms come before the bounds that they are summed to."""
    for name in sorted(metrics, key=lambda name: "elbo" in name):
        if not math.isfinite(metrics[name]):
            raise TrainingDiverged(
                f"training diverged in epoch {epoch}: {name} is {metrics[name]}; "
                "try a lower --learning-rate"
            )
