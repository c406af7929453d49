"""Train a VAE on a dataset held in memory.

In: a `Dataset` and a `Config`, or the state of an interrupted training. Out: a `TrainResult` with
the best weights. Raises `TrainingDiverged` when a number is not finite, and `TrainingStopped` when
the caller asks for a stop.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipeline.config import Config, TrainConfig
from pipeline.data.dataset import Dataset
from pipeline.errors import TrainingDiverged, TrainingStopped
from pipeline.model.objective import ElboTerms, elbo_terms, loss
from pipeline.model.parametrizations import fix_weights
from pipeline.model.vae import VAE
from pipeline.training.resident import place_rows, take_rows
from pipeline.training.schedules import (
    kl_weight_at,
    learning_rate_at,
    passes_per_epoch,
    total_steps,
    warm_up_over,
)
from pipeline.training.state import TrainState, begin_training
from serving.value_range import MAX_BYTE

VALIDATION_VALUES = 1 << 20
"""Decoded values in one batch of validation, which bounds memory."""


@dataclass(frozen=True, slots=True)
class TrainHooks:
    """Functions that training calls; by default they do nothing."""

    log: Callable[[int, Mapping[str, float]], None] = lambda epoch, metrics: None
    """Receives each epoch's number, from 1, and its metrics."""
    advance: Callable[[int], None] = lambda steps: None
    """Receives the number of steps since its last call."""
    save: Callable[[TrainState], None] = lambda state: None
    """Saves a state; all of it is finite."""
    stop: Callable[[], bool] = lambda: False
    """Returns whether training is to stop after the current step."""


NO_HOOKS = TrainHooks()


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A trained model in evaluation mode, and the course of its training."""

    model: VAE
    history: tuple[Mapping[str, float], ...]
    """Metrics of each epoch."""
    best_epoch: int
    seconds: float
    longer: int | None = None
    """A number of epochs to train for instead, if training ended while it was still improving."""


def train(
    dataset: Dataset, config: Config, *, device: str = "cpu", hooks: TrainHooks = NO_HOOKS
) -> TrainResult:
    """Train from the first step to the end."""
    return continue_training(begin_training(dataset, config, device), dataset, hooks)


def continue_training(
    state: TrainState, dataset: Dataset, hooks: TrainHooks = NO_HOOKS
) -> TrainResult:
    """Minimise the loss with Adam from `state` to the end; keep the weights of the best epoch.

    The best epoch is the one with the highest validation ELBO after the warm-up (with the objective
    iwae, the highest importance-weighted bound). Without validation rows there is no early stopping
    and the last weights are kept. A state is saved before its metrics are logged, and only if all
    of it is finite.

    Raises:
        TrainingDiverged: a metric, a weight or a moment of Adam is not finite.
        TrainingStopped: `hooks.stop` returned true; the state has been saved.
    """
    x_train, x_valid = (
        place_rows(split.x, state.device) for split in (dataset.train, dataset.valid)
    )
    steps, max_byte = total_steps(len(x_train), state.settings), dataset.max_byte
    start = time.perf_counter() - state.seconds
    state.model.train()
    with state.isolated_rng():
        while not state.finished:
            try:
                for rows in _batches(state, x_train, max_byte):
                    train_step(state, rows, steps)
                    hooks.advance(1)
                    state.seconds = time.perf_counter() - start
                    if hooks.stop():
                        raise TrainingStopped(f"training was stopped in epoch {state.epoch}")
                    if state.out_of_time:
                        break
                _end_epoch(state, x_valid, hooks.stop)
            except TrainingStopped:
                state.check_finite()
                _save(state, hooks)
                raise
            state.seconds = time.perf_counter() - start
            _save(state, hooks)
            hooks.log(state.epoch - 1, state.history[-1])
    return _result(state)


def train_step(state: TrainState, rows: Tensor, steps: int) -> None:
    """Make one of `steps` steps of Adam, on a batch of rows."""
    settings = state.settings
    rate = learning_rate_at(state.step, settings, steps=steps)
    kl_weight = kl_weight_at(state.step, settings)
    eps = _draw_eps(state.model, len(rows), settings.train_samples, state.generator)
    rows = _hide_cells(state, rows)
    step = partial(_descend, state)
    if state.graph is not None:
        step = partial(state.graph.make_step, step)
    state.sums += step(rows, eps, rate, kl_weight)
    state.step += 1


def _descend(
    state: TrainState, rows: Tensor, eps: Tensor, rate: float | Tensor, kl_weight: float | Tensor
) -> Tensor:
    """Descend the gradient of the loss on rows with noise, and return the sums of the terms, (3,).

    A CUDA graph may record this. It must not write to what may be replaced between two steps.
    """
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    terms = elbo_terms(state.model, rows, eps, bf16=state.settings.bf16)
    state.optimizer.zero_grad()
    value = loss(terms, state.settings, kl_weight)
    value.backward()  # type: ignore[no-untyped-call]
    state.optimizer.step()
    return _sum_terms(terms)


@torch.no_grad()
def mean_metrics(
    model: VAE,
    x: Tensor,
    *,
    seed: int,
    num_samples: int = 1,
    stop: Callable[[], bool] = NO_HOOKS.stop,
) -> dict[str, float]:
    """Return mean `elbo`, `log_likelihood` and `kl` over rows; of several samples also `iw_elbo`.

    Raises:
        TrainingStopped: `stop` returned true before all rows were done.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    sums = torch.zeros(3, device=device)
    for rows in torch.split(x, max(1, VALIDATION_VALUES // (x[0].numel() * num_samples))):
        if stop():
            raise TrainingStopped("training was stopped during validation")
        eps = _draw_eps(model, len(rows), num_samples, generator)
        sums += _sum_terms(elbo_terms(model, rows.to(device), eps))
    return _means(sums, len(x), num_samples)


def binarize_batch(rows: Tensor, generator: torch.Generator, max_byte: int = MAX_BYTE) -> Tensor:
    """Draw each pixel as 0 or 1 (bytes: 0 or `max_byte`); its value is the probability of 1.

    The probability of a byte is exact, byte / max_byte; that of a float is exact to 2⁻²⁴.
    """
    if rows.dtype == torch.uint8:
        ones = _draw_bytes(rows, generator, max_byte) < rows
        return ones.view(torch.uint8).mul_(max_byte)
    noise = torch.rand(rows.shape, generator=generator, device=rows.device)
    return (noise < rows).to(rows.dtype)


def _draw_bytes(rows: Tensor, generator: torch.Generator, max_byte: int) -> Tensor:
    if rows.is_cuda or max_byte != MAX_BYTE:
        return torch.empty_like(rows).random_(0, max_byte, generator=generator)
    # eight bytes at a time, with those that are 255 drawn again, take a third of the time
    words = torch.empty(-(-rows.numel() // 8), dtype=torch.int64)
    noise = words.random_(-(2**63), None, generator=generator).view(torch.uint8)[: rows.numel()]
    again = np.flatnonzero(noise.numpy() == 255)  # torch's nonzero takes ten times as long
    redrawn = torch.empty(len(again), dtype=torch.uint8).random_(0, 255, generator=generator)
    noise.numpy()[again] = redrawn.numpy()
    return noise.view_as(rows)


def _batches(state: TrainState, x: Tensor, max_byte: int) -> Iterator[Tensor]:
    if state.position == 0:
        state.order = _draw_order(state, x)
    while state.position < len(state.order):
        rest_of_pass = len(x) - state.position % len(x)
        size = min(state.settings.batch_size, rest_of_pass)
        indices = state.order[state.position :][:size]
        state.position += size
        rows = take_rows(x, indices)
        if state.config.data.binarize == "dynamic":
            rows = binarize_batch(rows, state.generator, max_byte)
        yield rows


def _draw_order(state: TrainState, x: Tensor) -> Tensor:
    """Draw the order of the rows in each pass of an epoch, (passes * rows,)."""
    passes = range(passes_per_epoch(len(x), state.settings))
    draw = partial(torch.randperm, len(x), generator=state.generator, device=state.device)
    return torch.cat([draw() for _ in passes])


def _end_epoch(state: TrainState, x_valid: Tensor, stop: Callable[[], bool]) -> None:
    """Record the metrics, keep the weights if they are the best, and move to the next epoch."""
    settings = state.settings
    samples = settings.train_samples
    metrics = _means(state.sums, state.position, samples)
    if len(x_valid):
        state.model.eval()
        valid = mean_metrics(state.model, x_valid, seed=0, num_samples=samples, stop=stop)
        state.model.train()
        metrics |= {f"valid_{name}": value for name, value in valid.items()}
    _check_finite(state.epoch, metrics)
    state.check_finite()
    state.history.append(metrics)
    comparable = len(x_valid) > 0 and warm_up_over(state.step, settings)
    weighted = settings.objective == "iwae" and samples > 1
    elbo = metrics["valid_iw_elbo" if weighted else "valid_elbo"] if comparable else -math.inf
    if elbo > state.best_elbo or not comparable:
        state.best_epoch, state.best_elbo = state.epoch, elbo
        state.best_weights = state.copy_weights()
    state.epoch += 1
    state.position = 0
    state.order = state.order.new_empty(0)  # a view would keep, and save, the whole order
    state.sums.zero_()


def _save(state: TrainState, hooks: TrainHooks) -> None:
    state.record_rng()
    hooks.save(state)


def _result(state: TrainState) -> TrainResult:
    state.model.load_state_dict(state.best_weights)
    model = state.model.cpu().eval()
    fix_weights(model)
    model.requires_grad_(False)
    history = tuple(state.history)
    longer = _advise_longer(state)
    return TrainResult(model, history, state.best_epoch, state.seconds, longer)


def _advise_longer(state: TrainState) -> int | None:
    """Return enough epochs, if the last epoch was the best of a training of too few steps."""
    epochs, least = len(state.history), TrainConfig().min_steps + state.settings.kl_warmup_steps
    improving = state.best_epoch == epochs and "valid_elbo" in (state.history or [{}])[-1]
    if not improving or state.step >= least:
        return None
    return math.ceil(epochs * least / state.step)


def _draw_eps(model: VAE, rows: int, num_samples: int, generator: torch.Generator) -> Tensor:
    shape = rows, num_samples, model.latent_dim
    return torch.randn(shape, generator=generator, device=generator.device)


def _hide_cells(state: TrainState, rows: Tensor) -> Tensor:
    """Make gaps of cells of a mixed table: of each row a share, from 0 to twice the mean.

    The model learns to do without any of them, as it must where there are gaps.
    """
    if state.model.mixed is None or not state.settings.hidden_share:
        return rows
    draw = partial(torch.rand, generator=state.generator, device=rows.device)
    share = 2 * state.settings.hidden_share * draw(len(rows), 1)
    return rows.masked_fill(draw(rows.shape) < share, math.nan)


def _sum_terms(terms: ElboTerms) -> Tensor:
    """Sum log-likelihood, KL and importance-weighted bound over rows, (3,)."""
    log_likelihood, kl = terms.log_likelihood.detach(), terms.kl.detach().sum()
    first = log_likelihood.mean(-1).sum()
    if log_likelihood.shape[1] == 1:
        return torch.stack([first, kl, first - kl])
    return torch.stack([first, kl, terms.iw_elbo().detach().sum()])


def _means(sums: Tensor, rows: int, num_samples: int) -> dict[str, float]:
    log_likelihood, kl, iw_elbo = (sums / rows).tolist()
    means = {"elbo": log_likelihood - kl, "log_likelihood": log_likelihood, "kl": kl}
    return means | ({"iw_elbo": iw_elbo} if num_samples > 1 else {})


def _check_finite(epoch: int, metrics: Mapping[str, float]) -> None:
    """Refuse metrics that are not finite; report a term before the bounds that contain it."""
    for name in sorted(metrics, key=lambda name: "elbo" in name):
        if not math.isfinite(metrics[name]):
            raise TrainingDiverged(
                f"training diverged in epoch {epoch}: {name} is {metrics[name]}; "
                "try a lower --learning-rate"
            )
