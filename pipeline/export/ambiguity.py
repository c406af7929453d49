"""Inputs whose results are unambiguous: torch and a runtime must agree on them, but for rounding.

A word is the largest of some numbers or the place of the noise among some edges, and an int8 model
rounds to steps. Where the numbers are equal within rounding, two right answers differ by a whole
word or step, so that such a cell can be compared with nothing.

In: a model, an operation and its inputs. Out: inputs, and the rows that can be compared.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.export.quantization import unambiguous_rows
from pipeline.model.operations import EPS, Array, run_gaps
from pipeline.model.roundings import Roundings
from pipeline.model.vae import VAE
from serving.noise import draw_noise
from serving.operations import Operation

_ATTEMPTS = 8
_DRAWS = 3
"""Number of draws of the error that torch makes; see `pipeline.model.operations.DRAWS`."""
_ANY = 0.1
"""If rounding moves a value by more, whole numbers are no steps beside it."""


def settle_inputs(
    model: VAE | Roundings, operation: Operation, inputs: Mapping[str, Array], *, tf32: bool = False
) -> tuple[dict[str, Array], NDArray[np.intp]]:
    """Return inputs, and their rows whose results are unambiguous.

    The cells of a draw get other noise until they are; nothing else depends on it. With `tf32` the
    rounding is that of TF32, if it is larger.
    """
    settled = dict(inputs)
    whole = model.model if isinstance(model, Roundings) else model
    gaps = run_gaps(model, operation, inputs, torch.float64)
    if gaps is None:
        return settled, unambiguous_rows(whole, operation, settled)
    limits = _limits(model, operation, inputs, gaps, tf32=tf32)
    doubtful = _within(gaps, limits)
    for attempt in range(_ATTEMPTS):
        again = np.flatnonzero(doubtful.any(1))
        if operation.name != "draw" or not again.size:
            break
        fresh = draw_noise(attempt, 0, len(gaps), gaps.shape[1])
        noise = np.where(doubtful, fresh, settled["noise"].reshape(gaps.shape))
        settled["noise"] = noise.reshape(settled["noise"].shape)
        part = {name: values[again] for name, values in settled.items()}
        doubtful[again] = _within(run_gaps(model, operation, part, torch.float64), limits)
    rows = unambiguous_rows(whole, operation, settled)
    return settled, rows[~doubtful[rows].any(1)]


def doubtful_cells(
    model: VAE, operation: Operation, inputs: Mapping[str, Array], *, tf32: bool = False
) -> NDArray[np.bool_]:
    """Return which cells (rows, features) are within rounding of another value."""
    gaps = run_gaps(model, operation, inputs, torch.float64)
    if gaps is None:
        return np.zeros((len(next(iter(inputs.values()))), 1), bool)
    return _within(gaps, _limits(model, operation, inputs, gaps, tf32=tf32))


def _limits(
    model: VAE | Roundings,
    operation: Operation,
    inputs: Mapping[str, Array],
    gaps: Array,
    *,
    tf32: bool,
) -> Array:
    """Return the gap of each column, (features,), up to which its cells are doubtful.

    That is four times the largest error of torch in the same column, and some roundings of 1.
    """
    error = np.zeros(gaps.shape[1])
    for draw in range(_DRAWS):
        for rounding in (False, True)[: 1 + tf32]:
            found = run_gaps(model, operation, inputs, torch.float32, draw=draw, tf32=rounding)
            error = np.maximum(error, np.abs(found - gaps).max(0))
    limit = 4 * error + 4 * EPS
    return np.where(limit < _ANY, limit, 1)


def _within(gaps: Array | None, limits: Array) -> NDArray[np.bool_]:
    """Return which gaps are not above the limits of their columns; NaN is not."""
    within: NDArray[np.bool_] = np.logical_not(gaps > limits)
    return within
