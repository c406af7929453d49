"""The inputs that parity is checked on: rows of every kind, at every batch size.

In: an operation and held-out rows. Out: its inputs, by kind of rows. A kind that would change no
input of an operation is left out, such as far latents for `encode`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.random import Generator

from pipeline.model.operations import Array, draw_inputs
from pipeline.parity.row_counts import FULL, Kind, RowCounts
from serving.operations import Operation
from serving.value_range import MAX_BYTE

FAR = 100.0
"""Distance of a far latent from the origin, in standard deviations."""
LARGE = 1e15
"""Size of large features, in units of a column's spread if that is below 1. Their squares, summed,
still fit float32: if partial sums overflowed, their order would decide the result, and two right
answers would differ."""
SMALLEST = 2.0**-149
"""The smallest denormal number of float32; the largest is 2^23 times as large."""

Draw = Callable[[Array, Generator], Array]
"""Takes held-out values and returns values of the same shape and dtype."""


def draw_cases(
    operation: Operation,
    x: Array,
    likelihood: str,
    max_byte: int = MAX_BYTE,
    counts: RowCounts = FULL,
) -> Iterator[tuple[Kind, dict[str, Array]]]:
    """Yield the inputs of one operation for every kind of rows.

    The held-out kind has the rows `x`, the others have as many as their largest batch. Bytes are
    drawn up to `max_byte`, the largest that the model takes.
    """
    whole = draw_inputs(operation, x, num_samples=counts.num_samples, seed=2)
    yield "held-out", whole
    held_out = {name: values[: max(counts.adversarial)] for name, values in whole.items()}
    for kind in KINDS:
        latents = LATENTS.get(kind)
        draws: dict[str, Draw | None] = {tensor.name: latents for tensor in operation.inputs}
        if "x" in draws:
            draws["x"] = _features(kind, x.dtype, likelihood, max_byte)
        if any(draw is not None for draw in draws.values()):
            generator = np.random.default_rng(3)
            yield (
                kind,
                {
                    name: held_out[name] if draw is None else draw(held_out[name], generator)
                    for name, draw in draws.items()
                },
            )


def repeat_rows(x: Array, rows: int = FULL.different) -> Array:
    """Return this number of held-out rows: the first ones, or all of them repeated."""
    return x[np.arange(rows) % len(x)]


def _bytes(largest: int) -> Draw:
    def draw(held_out: Array, generator: Generator) -> Array:
        return generator.integers(0, largest + 1, held_out.shape, held_out.dtype)

    return draw


def _uniform(low: float, high: float) -> Draw:
    def draw(held_out: Array, generator: Generator) -> Array:
        return generator.uniform(low, high, held_out.shape).astype(held_out.dtype)

    return draw


def _either_sign(size: float) -> Draw:
    def draw(held_out: Array, generator: Generator) -> Array:
        values: Array = generator.choice(np.array([-size, size], held_out.dtype), held_out.shape)
        return values

    return draw


def _far_from_columns(held_out: Array, generator: Generator) -> Array:
    known = np.where(np.isnan(held_out).all(0), 0, held_out)
    spread = np.nanstd(known, 0, dtype=np.float64)
    varying = spread[spread > 0]
    # a column that is constant here may vary in training, and its unit be as small as any
    spread = np.where(spread > 0, spread, varying.min() if varying.size else 1)
    signs = _either_sign(1)(held_out, generator)
    far: Array = signs * (LARGE * np.minimum(spread, 1)).astype(held_out.dtype)
    return far


def _held_out(held_out: Array, _: Generator) -> Array:
    return held_out


def _within_columns(held_out: Array, generator: Generator) -> Array:
    low, high = (bound.reduce(held_out) for bound in (np.fmin, np.fmax))
    drawn: Array = low + generator.random(held_out.shape, np.float32) * (high - low)
    return drawn


def _constant(value: float | None, other: Draw) -> Draw:
    """Fill rows with `value`, or with the maxima of the columns.

    Each row but the first takes one feature from `other`: equal rows would have equal rounding
    errors, and a single sample does not measure noise.
    """

    def draw(held_out: Array, generator: Generator) -> Array:
        rows = np.empty_like(held_out)
        rows[:] = np.fmax.reduce(held_out) if value is None else value
        flat, others = (a.reshape(len(a), -1) for a in (rows, other(held_out, generator)))
        row = np.arange(1, len(flat))
        column = generator.integers(0, flat.shape[1], len(row))
        flat[row, column] = others[row, column]
        return rows

    return draw


def _from_columns(held_out: Array, generator: Generator) -> Array:
    """Draw each cell from its own column, so that words stay words and gaps gaps."""
    return generator.permuted(held_out, axis=0)


def _gaps(held_out: Array, generator: Generator) -> Array:
    """Remove half of the cells of each row, and in some rows all or none."""
    share = generator.choice(np.array([0, 0.5, 0.5, 0.5, 1]), (len(held_out), 1))
    return np.where(generator.random(held_out.shape) < share, np.nan, held_out)


def _denormals(held_out: Array, generator: Generator) -> Array:
    """Replace half of the features, at random, by denormal numbers."""
    steps = generator.integers(1, 2**23, held_out.shape)
    chosen = generator.random(held_out.shape) < 0.5
    return np.where(chosen, (steps * SMALLEST).astype(np.float32), held_out)


LATENTS: Mapping[Kind, Draw] = {
    "zeros": _constant(0, _held_out),
    "maxima": _constant(6, _held_out),
    "noise": _uniform(-6, 6),
    "six sigma": _either_sign(6),
    "far": _either_sign(FAR),
    "denormals": _denormals,
}
"""How `z` and `eps` are drawn."""
KINDS: tuple[Kind, ...] = (*LATENTS, "gaps")
_UNIT: Mapping[Kind, Draw] = {
    "zeros": _constant(0, _uniform(0, 1)),
    "maxima": _constant(1, _uniform(0, 1)),
    "noise": _uniform(0, 1),
    "denormals": _denormals,
}
_REALS: Mapping[Kind, Draw] = {
    "zeros": _constant(0, _within_columns),
    "maxima": _constant(None, _within_columns),
    "noise": _within_columns,
    "far": _far_from_columns,
    "denormals": _denormals,
}
_MIXED: Mapping[Kind, Draw] = {
    "zeros": _constant(0, _from_columns),
    "maxima": _constant(None, _from_columns),
    "noise": _from_columns,
    "far": _far_from_columns,
    "denormals": _denormals,
    "gaps": _gaps,
}


def _features(kind: Kind, dtype: np.dtype[Any], likelihood: str, max_byte: int) -> Draw | None:
    if dtype == np.uint8:
        drawn = _bytes(max_byte)
        constants = {"zeros": _constant(0, drawn), "maxima": _constant(max_byte, drawn)}
        return {**constants, "noise": drawn}.get(kind)
    if likelihood == "mixed":
        return _MIXED.get(kind)
    return (_UNIT if likelihood.endswith("bernoulli") else _REALS).get(kind)
