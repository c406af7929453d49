"""Train a VAE on a dataset held in memory.

In: a `Dataset` and a `Config`. Out: a `TrainResult` with the best weights. Raises
`TrainingDiverged` when the loss is not finite, `DataRefused` when the data does not fit the
likelihood.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import Config, TrainConfig
from pipeline.data import Dataset
from pipeline.errors import TrainingDiverged
from pipeline.likelihoods import settle
from pipeline.model import VAE
from pipeline.objective import loss, terms

EVAL_BATCH = 1024

Log = Callable[[int, Mapping[str, float]], None]
"""Takes the epoch, from 1, and its metrics."""
Tick = Callable[[int], None]
"""Takes the number of steps made since the last call."""


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
    settings = settle(config.model, *_rows(dataset))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        model = VAE(dataset.x_shape, settings)
    for x in _rows(dataset):
        model.px.check(x)
    model.px.fit(dataset.train.x)
    bias = getattr(model.decoder, "output_bias", None)
    if settings.output_bias and bias is not None:
        bias.data.copy_(model.px.output_bias(dataset.train.x))
    return model


def train(
    dataset: Dataset,
    config: Config,
    *,
    device: str = "cpu",
    log: Log = lambda epoch, metrics: None,
    tick: Tick = lambda steps: None,
) -> TrainResult:
    """Minimise the loss with Adam; keep the weights of the best validation ELBO.

    Without validation rows there is no early stopping, and the last weights are kept.
    """
    started = time.perf_counter()
    settings = config.train
    model = build_model(dataset, config).to(device)
    x_train, x_valid = (
        torch.from_numpy(split.x).to(device) for split in (dataset.train, dataset.valid)
    )
    generator = torch.Generator(device).manual_seed(settings.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
    schedule = _schedule(optimizer, settings, steps=steps_per_epoch(dataset, config))
    history: list[Mapping[str, float]] = []
    best_epoch, best_elbo, best_weights = 0, -math.inf, _copy_weights(model)
    for epoch in range(1, settings.epochs + 1):
        metrics = _train_epoch(model, x_train, settings, optimizer, schedule, generator, tick)
        if len(x_valid):
            metrics |= {f"valid_{k}": v for k, v in elbo_terms(model, x_valid, seed=0).items()}
        _check_finite(epoch, metrics)
        history.append(metrics)
        log(epoch, metrics)
        if (elbo := metrics.get("valid_elbo", math.inf)) > best_elbo or not len(x_valid):
            best_epoch, best_elbo, best_weights = epoch, elbo, _copy_weights(model)
        if epoch - best_epoch >= settings.patience:
            break
    model.load_state_dict(best_weights)
    model.eval().requires_grad_(False)
    return TrainResult(
        model.cpu(),
        tuple(history),
        best_epoch,
        time.perf_counter() - started,
    )


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
        row_terms = terms(model, rows, _draw_eps(len(rows), model.latent_dim, generator))
        sums += torch.stack([row_terms.log_likelihood.sum(), row_terms.kl.sum()])
    return _means(sums, len(x))


def _train_epoch(
    model: VAE,
    x: Tensor,
    settings: TrainConfig,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    generator: torch.Generator,
    tick: Tick,
) -> dict[str, float]:
    sums = torch.zeros(2, device=x.device)
    order = torch.randperm(len(x), generator=generator, device=x.device)
    for indices in torch.split(order, settings.batch_size):
        rows = x.index_select(0, indices)
        row_terms = terms(model, rows, _draw_eps(len(rows), model.latent_dim, generator))
        optimizer.zero_grad()
        loss(row_terms, settings, settings.kl_weight).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        sums += torch.stack([row_terms.log_likelihood.detach().sum(), row_terms.kl.detach().sum()])
        tick(1)
    return _means(sums, len(x))


def _draw_eps(rows: int, latent_dim: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, 1, latent_dim, generator=generator, device=generator.device)


def _means(sums: Tensor, rows: int) -> dict[str, float]:
    log_likelihood, kl = (sums / rows).tolist()
    return {"elbo": log_likelihood - kl, "log_likelihood": log_likelihood, "kl": kl}


def _schedule(
    optimizer: torch.optim.Optimizer, settings: TrainConfig, *, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    total = settings.epochs * steps
    cosine = settings.schedule == "cosine"
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * step / total)) / 2 if cosine else 1.0
    )


def _copy_weights(model: VAE) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _check_finite(epoch: int, metrics: Mapping[str, float]) -> None:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"training diverged in epoch {epoch}: {name} is {value}; "
                "try a lower --learning-rate"
            )
