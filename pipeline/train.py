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
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import Config
from pipeline.data import Dataset
from pipeline.errors import TrainingDiverged, TrainingStopped
from pipeline.likelihoods import choose_likelihood
from pipeline.model import VAE
from pipeline.objective import Terms, loss, terms
from pipeline.schedule import kl_weight_at, learning_rate_at, warm_up_over
from pipeline.training_state import TrainState, begin, restore

EVAL_BATCH = 1024

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
    likelihood: str
    history: tuple[Mapping[str, float], ...]
    """Metrics by epoch."""
    best_epoch: int
    seconds: float


def resolve_likelihood(dataset: Dataset, config: Config) -> str:
    """Name of the likelihood; `auto` follows the rows of all splits."""
    name = config.model.likelihood
    return choose_likelihood(*_rows(dataset)) if name == "auto" else name


def build_model(dataset: Dataset, config: Config) -> VAE:
    """Build the model with its initial weights, its scaling fitted to the training rows."""
    likelihood = resolve_likelihood(dataset, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        model = VAE(
            dataset.x_shape,
            likelihood=likelihood,
            hidden_dims=config.model.hidden_dims,
            latent_dim=config.model.latent_dim,
            activation=config.model.activation,
        )
    for x in _rows(dataset):
        model.px.check(x)
    model.px.fit(dataset.train.x)
    return model


def begin_training(dataset: Dataset, config: Config, device: str) -> TrainState:
    """The state before the first step; raises `DataRefused` as `build_model` does."""
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

    The best epoch is that of the highest validation ELBO. Without validation rows there is no early
    stopping, and the last weights are kept. A state is saved before the metrics it holds are
    logged, and only if all of it is finite.

    Raises:
        TrainingDiverged: a metric, a weight or a moment is not finite.
        TrainingStopped: `stop` said so after a step; the state has been saved.
    """
    x_train, x_valid = (
        torch.from_numpy(split.x).to(state.device) for split in (dataset.train, dataset.valid)
    )
    clock = time.perf_counter() - state.seconds
    while not state.finished:
        for rows in _batches(state, x_train):
            _make_step(state, rows, steps_per_epoch(dataset, state.config))
            tick(1)
            state.seconds = time.perf_counter() - clock
            if stop():
                state.check_finite()
                save(state)
                raise TrainingStopped(f"training was stopped in epoch {state.epoch}")
            if state.out_of_time:
                break
        _end_epoch(state, x_valid)
        state.seconds = time.perf_counter() - clock
        save(state)
        log(state.epoch - 1, state.history[-1])
    return _result(state, dataset)


def _rows(dataset: Dataset) -> tuple[NDArray[Any], ...]:
    return dataset.train.x, dataset.valid.x, dataset.test.x


def steps_per_epoch(dataset: Dataset, config: Config) -> int:
    """Number of optimiser steps in one epoch, the last one on what is left."""
    return math.ceil(len(dataset.train.x) / config.train.batch_size)


@torch.no_grad()
def elbo_terms(model: VAE, x: Tensor, *, seed: int) -> dict[str, float]:
    """Mean `elbo`, `log_likelihood` and `kl` over rows, one noise draw a row."""
    generator = torch.Generator(x.device).manual_seed(seed)
    sums = torch.zeros(2, device=x.device)
    for rows in torch.split(x, EVAL_BATCH):
        sums += _sums(terms(model, rows, _draw_eps(len(rows), model.latent_dim, generator)))
    return _means(sums, len(x))


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
    eps = _draw_eps(len(rows), state.model.latent_dim, state.generator)
    row_terms = terms(state.model, rows, eps)
    state.optimizer.zero_grad()
    loss(row_terms, kl_weight_at(state.step, settings)).backward()  # type: ignore[no-untyped-call]
    state.optimizer.step()
    state.sums += _sums(row_terms)
    state.step += 1


def _end_epoch(state: TrainState, x_valid: Tensor) -> None:
    """Add the metrics, keep the weights if they are the best, and turn to the next epoch."""
    metrics = _means(state.sums, state.position)
    if len(x_valid):
        valid = elbo_terms(state.model, x_valid, seed=0)
        metrics |= {f"valid_{name}": value for name, value in valid.items()}
    _check_finite(state.epoch, metrics)
    state.check_finite()
    state.history.append(metrics)
    judged = len(x_valid) > 0 and warm_up_over(state.step, state.settings)
    elbo = metrics["valid_elbo"] if judged else -math.inf
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
        resolve_likelihood(dataset, state.config),
        tuple(state.history),
        state.best_epoch,
        state.seconds,
    )


def _draw_eps(rows: int, latent_dim: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, 1, latent_dim, generator=generator, device=generator.device)


def _sums(row_terms: Terms) -> Tensor:
    """Sums of log-likelihood and KL over rows, (2,)."""
    return torch.stack([row_terms.log_likelihood.detach().sum(), row_terms.kl.detach().sum()])


def _means(sums: Tensor, rows: int) -> dict[str, float]:
    log_likelihood, kl = (sums / rows).tolist()
    return {"elbo": log_likelihood - kl, "log_likelihood": log_likelihood, "kl": kl}


def _check_finite(epoch: int, metrics: Mapping[str, float]) -> None:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"training diverged in epoch {epoch}: {name} is {value}; "
                "try a lower --learning-rate"
            )
