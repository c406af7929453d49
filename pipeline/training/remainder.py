"""Fit what a trained model's means leave over: a ridge regression for each column of a table.

In: a trained model of a mixed table, and rows of it. Cells are hidden, and filled by the model; the
error of each is regressed on the filled row. Out: the model's `remainder` is set. The strength of
the ridge is that of the least generalised cross-validation (Golub, Heath & Wahba, 1979).
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.model.column_units import mean_and_spread
from pipeline.model.filling import expect, filled_row, left_over
from pipeline.model.mixed import Mixed
from pipeline.model.objective import elbo_terms, even_weights
from pipeline.model.remainder import Remainder
from pipeline.model.vae import VAE
from serving.noise import draw_eps

Array = NDArray[Any]

HIDDEN_SHARE = 0.2
COPIES = 6
"""Times that each row is taken, each time with other cells hidden."""
MOST_ROWS = 20_000
"""Rows, copies included, that the regression is fitted to."""
LEAST_ROWS = 50
"""A column of which fewer cells were hidden stays without a regression."""
SAMPLES = 64
RIDGES = np.logspace(0, 5, 11)
_BATCH = 200


@torch.no_grad()
def fit_remainder(model: VAE, rows: Array, seed: int) -> None:
    """Set the `remainder` of a model by rows (rows, columns), if it has one.

    The model must be on the CPU and in evaluation mode.
    """
    mixed = model.mixed
    remainder = None if mixed is None else mixed.remainder
    if mixed is None or remainder is None:
        return
    rng = np.random.default_rng(seed)
    copies = min(COPIES, math.ceil(MOST_ROWS / len(rows)))
    order = np.concatenate([rng.permutation(len(rows)) for _ in range(copies)])[:MOST_ROWS]
    known = rows[order]
    given = np.where(rng.random(known.shape) < HIDDEN_SHARE, np.float32(np.nan), known)
    places, owners = mixed.places.tolist(), _owners(mixed)
    _set_range(remainder, rows[:, places])
    eps = draw_eps(given, seed, SAMPLES, model.latent_dim)
    parts = (torch.split(torch.from_numpy(part), _BATCH) for part in (given, known, eps))
    pairs = [_leave_over(model, mixed, remainder, *part) for part in zip(*parts, strict=True)]
    features, errors = (torch.cat(part).double().numpy() for part in zip(*pairs, strict=True))
    for index, place in enumerate(places):
        cells = np.isnan(given[:, place]) & ~np.isnan(known[:, place])
        if cells.sum() < LEAST_ROWS:
            continue
        own = np.flatnonzero(owners == index)
        slopes, start = fit_ridge(features[cells], errors[cells][:, own])
        remainder.weight[:, own] = torch.from_numpy(slopes).float()
        remainder.bias[own] = torch.from_numpy(start).float()


def fit_ridge(x: Array, y: Array) -> tuple[Array, Array]:
    """Return slopes (features, outputs) and starts (outputs,) of y (rows, outputs) on x."""
    x_mean, y_mean = x.mean(0), y.mean(0)
    centred, errors = x - x_mean, y - y_mean
    values, vectors = np.linalg.eigh(centred.T @ centred)
    values = values.clip(0)
    parts = vectors.T @ (centred.T @ errors)
    best, slopes = np.inf, np.zeros((x.shape[1], y.shape[1]))
    for ridge in RIDGES:
        found = vectors @ (parts / (values + ridge)[:, None])
        freedom = 1 + (values / (values + ridge)).sum()
        left = ((errors - centred @ found) ** 2).sum()
        score = left / max(len(x) - freedom, 1e-9) ** 2
        if score < best:
            best, slopes = score, found
    return slopes, y_mean - x_mean @ slopes


def _set_range(remainder: Remainder, rows: Array) -> None:
    """Set the units of numbers and their range in training; a column of gaps has neither."""
    for index in range(len(remainder.unit)):
        values = rows[:, index].astype(np.float64)
        values = values[~np.isnan(values)]
        if values.size:
            remainder.centre[index], remainder.unit[index] = mean_and_spread(values)
            remainder.low[index], remainder.high[index] = float(values.min()), float(values.max())


def _owners(mixed: Mixed) -> Array:
    """Return the column, as they stand inside, of each output of the remainder."""
    numbers = mixed.reference.numbers
    words = mixed.words.owners if mixed.words is not None else []
    return np.array([*range(numbers), *(numbers + owner for owner in words)], np.int64)


def _leave_over(
    model: VAE, mixed: Mixed, remainder: Remainder, given: Tensor, known: Tensor, eps: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what the remainder reads of rows, and how far below `known` their fillings are."""
    terms = elbo_terms(model, given, eps)
    assert terms.params is not None
    weights = even_weights(terms.log_weights().softmax(-1))
    expected = expect(mixed, terms.params, weights)
    return (
        filled_row(mixed, remainder, given, *expected),
        left_over(mixed, remainder, known, *expected),
    )
