"""Train a VAE on a dataset.

In: a `Dataset` and a `Config`, or the state of an interrupted training. Out: a `TrainResult` with
the best weights. Raises `TrainingDiverged` when a number is not finite, `TrainingStopped` when the
caller asks for a stop, and `DataRefused` when a file of streamed rows has changed.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipeline.config import Config, TrainConfig
from pipeline.data.dataset import Dataset
from pipeline.errors import TrainingDiverged, TrainingStopped
from pipeline.model.objective import ElboTerms, elbo_terms
from pipeline.model.parametrizations import fix_weights
from pipeline.model.vae import VAE
from pipeline.training.batches import Batch, Feed, Stop
from pipeline.training.beginning import begin_training
from pipeline.training.binarization import binarize_batch
from pipeline.training.feeds import open_feed
from pipeline.training.processes import ALONE, Processes
from pipeline.training.remainder import fit_remainder
from pipeline.training.resident import place_rows
from pipeline.training.schedules import (
    kl_weight_at,
    learning_rate_at,
    total_steps,
    warm_up_over,
)
from pipeline.training.state import TrainState
from serving.errors import DataRefused

VALIDATION_VALUES = 1 << 20
"""Decoded values in one batch of validation, which bounds memory."""
SAVE_EVERY_S = 600.0
"""Seconds of training between two saves of the state within an epoch."""


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
    """Returns whether training is to stop after the current step, in this process and in all."""


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
    and the last weights are kept. A state is saved at the end of an epoch, before its metrics are
    logged, and every `SAVE_EVERY_S` seconds, and only if all of it is finite.

    Raises:
        DataRefused: a file of streamed rows has changed; one process has saved its state, several
            have not.
        TrainingDiverged: a metric, a weight or a moment of Adam is not finite.
        TrainingStopped: `hooks.stop` returned true; the state has been saved.
    """
    x_valid = place_rows(dataset.valid.x, state.device)
    steps, max_byte = total_steps(dataset.train_rows, state.settings), dataset.max_byte
    state.processes.agree()  # the time begins when all are ready
    start = time.perf_counter() - state.seconds

    def stop() -> bool:
        """Tell time and stop as all processes have them, so that all of them do the same."""
        state.seconds, stopped = state.processes.agree(time.perf_counter() - start, hooks.stop())
        return bool(stopped)

    several = state.processes.world > 1
    reading_stop = NO_HOOKS.stop if several else hooks.stop  # several stop after the same step
    state.model.train()
    with state.isolated_rng(), closing(open_feed(state, dataset)) as feed:
        while not state.finished:
            saved_at = state.seconds
            try:
                for batch in _batches(state, feed, max_byte, reading_stop):
                    train_step(state, batch, steps)
                    hooks.advance(1)
                    if stop():
                        raise TrainingStopped(f"training was stopped in epoch {state.epoch}")
                    if state.out_of_time:
                        break
                    if state.seconds - saved_at >= SAVE_EVERY_S:
                        state.check_finite()
                        _save(state, hooks)
                        saved_at = state.seconds
                _end_epoch(state, x_valid, stop)
            except (TrainingStopped, DataRefused) as err:
                if several and isinstance(err, DataRefused):
                    raise  # the others do not know of it, and cannot save
                state.check_finite()
                _save(state, hooks)
                raise
            stop()  # a stop waits for a step, so that what was computed is logged
            _save(state, hooks)
            hooks.log(state.epoch - 1, state.history[-1])
    return _result(state, dataset)


def train_step(state: TrainState, batch: Batch, steps: int) -> None:
    """Make one of `steps` steps of Adam, on a batch of rows."""
    settings = state.settings
    own, rank = state.processes.own, state.processes.rank
    rate = learning_rate_at(state.step, settings, steps=steps)
    kl_weight = kl_weight_at(state.step, settings)
    eps = own(_draw_eps(state.model, batch.size, settings.train_samples, state.generator))
    rows = _hide_cells(state, batch)
    step = partial(_descend, state, batch.size)
    if state.graph is not None:
        step = partial(state.graph.make_step, step)
    sums = step(rows, eps, rate, kl_weight)
    if len(rows):  # otherwise the terms are those of a row without weight
        state.sums[rank] += sums
    state.step += 1


def _descend(
    state: TrainState,
    size: int,
    rows: Tensor,
    eps: Tensor,
    rate: float | Tensor,
    kl_weight: float | Tensor,
) -> Tensor:
    """Descend the gradient of the loss of a batch of `size` rows, and return sums of terms, (3,).

    `rows` and `eps` are those of this process, and so are the sums. A CUDA graph may record this.
    It must not write to what may be replaced between two steps.
    """
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.zero_grad()
    value, terms = state.batch_loss(rows, eps, size, kl_weight)
    value.backward()
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
    processes: Processes = ALONE,
) -> dict[str, float]:
    """Return mean `elbo`, `log_likelihood` and `kl` over rows; of several samples also `iw_elbo`.

    Several processes share the rows, and each returns the means of all.

    Raises:
        TrainingStopped: `stop` returned true before all rows were done.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    sums = torch.zeros(3, device=device)
    for rows in torch.split(x, max(1, VALIDATION_VALUES // (x[0].numel() * num_samples))):
        if stop():
            raise TrainingStopped("training was stopped during validation")
        eps = processes.own(_draw_eps(model, len(rows), num_samples, generator))
        if len(eps):
            own = processes.own(rows).to(device)
            sums += _sum_terms(elbo_terms(model, own, eps))
    return _means(processes.sum(sums), len(x), num_samples)


def _batches(state: TrainState, feed: Feed, max_byte: int, stop: Stop) -> Iterator[Batch]:
    for batch in feed.batches(state, stop):
        state.position += batch.size
        if state.config.data.binarize == "dynamic":
            rows = binarize_batch(
                batch.rows, state.generator, max_byte, batch.size, state.processes
            )
            yield Batch(rows, batch.size)
        else:
            yield batch


def _end_epoch(state: TrainState, x_valid: Tensor, stop: Callable[[], bool]) -> None:
    """Record the metrics, keep the weights if they are the best, and move to the next epoch."""
    settings = state.settings
    samples = settings.train_samples
    metrics = _means(state.gather_sums(), state.position, samples)
    if len(x_valid):
        state.model.eval()
        valid = mean_metrics(
            state.model,
            x_valid,
            seed=0,
            num_samples=samples,
            stop=stop,
            processes=state.processes,
        )
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
    state.drawn_from = state.drawn_from.new_empty(0)
    state.sums.zero_()


def _save(state: TrainState, hooks: TrainHooks) -> None:
    state.gather()
    hooks.save(state)


def _result(state: TrainState, dataset: Dataset) -> TrainResult:
    state.model.load_state_dict(state.best_weights)
    model = state.model.cpu().eval()
    fix_weights(model)
    model.requires_grad_(False)
    if model.mixed:
        rows = np.concatenate([dataset.sample, dataset.valid.x])
        fit_remainder(model, rows, state.settings.seed)
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


def _hide_cells(state: TrainState, batch: Batch) -> Tensor:
    """Make gaps of cells of a mixed table: of each row a share, from 0 to twice the mean.

    The model learns to do without any of them, as it must where there are gaps.
    """
    if state.model.mixed is None or not state.settings.hidden_share:
        return batch.rows
    draw = partial(torch.rand, generator=state.generator, device=batch.rows.device)
    share = 2 * state.settings.hidden_share * draw(batch.size, 1)
    hidden = draw(batch.size, *batch.rows.shape[1:]) < share
    return batch.rows.masked_fill(state.processes.own(hidden), math.nan)


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
