"""The operations in torch, from which the graphs are exported and with which they are compared.

In: a model and arrays. Out: arrays of float64 or float32, and the tolerance that follows from the
rounding errors of float32 or TF32.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.model.explanation import explain
from pipeline.model.inversion import Drawn
from pipeline.model.mixed import cell_scores
from pipeline.model.objective import elbo_terms, impute
from pipeline.model.plain_functions import PlainFunctions
from pipeline.model.roundings import Roundings
from pipeline.model.vae import VAE
from serving.noise import draw_noise, draw_rows
from serving.operations import Operation, OperationName

Array = NDArray[Any]
EPS = 2.0**-23
"""Distance from 1 to the next float32."""
DRAWS = 8
"""Number of draws of torch's error where one row may dominate it: with a single draw, four times
the error of that row is too little in one of seven cases, with eight in one of some hundreds."""
_COPIES = 1024
"""Copies of rows that are computed at a time, of operations that make many of each row."""
_VALUES = 2**20
"""Values of rows that are computed at a time, which are more than 1,000 rows of MNIST have."""


def _encode(model: VAE, x: Tensor) -> tuple[Tensor, ...]:
    qz = model.encode(x)
    return qz.loc, qz.scale


def _decode(model: VAE, z: Tensor) -> tuple[Tensor, ...]:
    return (model.decode(z),)


def _reconstruct(model: VAE, x: Tensor) -> tuple[Tensor, ...]:
    return (model.decode(model.encode(x).loc),)


def _score(
    model: VAE, x: Tensor, eps: Tensor, dtype: torch.dtype | None = torch.float64
) -> tuple[Tensor, ...]:
    # onnxruntime's sums and logarithms differ slightly with a row's position in the batch; a score
    # rounded from float64 has the same bytes in any batch and on any thread
    terms = elbo_terms(model, x, eps, dtype=dtype)
    scores: tuple[Tensor, ...] = (
        terms.elbo(),
        terms.log_likelihood.mean(-1),
        terms.kl,
        terms.iw_elbo(),
    )
    if model.mixed and terms.cells is not None and terms.rows is not None:
        scores += cell_scores(model.mixed, terms.cells, terms.rows)
    return tuple(score.to(eps.dtype) for score in scores)


def _draw(
    model: VAE, z: Tensor, noise: Tensor, dtype: torch.dtype | None = torch.float64
) -> tuple[Tensor, ...]:
    # in float64 for the same reason as a score: a word may flip with the last bit
    x = _draw_cells(model, z, noise, dtype).x.to(noise.dtype)
    return (x.reshape(-1, *model.x_shape),)


def _draw_cells(model: VAE, z: Tensor, noise: Tensor, dtype: torch.dtype | None) -> Drawn:
    params, flat = model.decoder(z), noise.flatten(1)
    if dtype is not None:
        params, flat = params.to(dtype), flat.to(dtype)
    return model.px.draw(params, flat)


def _impute(
    model: VAE, x: Tensor, eps: Tensor, dtype: torch.dtype | None = torch.float64
) -> tuple[Tensor, ...]:
    filled, log_weights, z = impute(model, x, eps, dtype)
    known = torch.where(x.isnan(), filled.x.to(x.dtype), x)
    return known, log_weights.to(eps.dtype), z.to(eps.dtype)


def _explain(
    model: VAE, x: Tensor, eps: Tensor, dtype: torch.dtype | None = torch.float64
) -> tuple[Tensor, ...]:
    return (explain(model, x, eps, dtype).to(eps.dtype),)


def _decoded_gap(model: VAE, z: Tensor) -> Tensor:
    params = model.decoder(z)
    return model.mixed.mean_gap(params) if model.mixed else torch.ones_like(params)


def _in_float32(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    def run(*inputs: Any) -> tuple[Tensor, ...]:
        with PlainFunctions():
            return function(*inputs, dtype=None)

    return run


FUNCTIONS: Mapping[str, Callable[..., tuple[Tensor, ...]]] = {
    "encode": _encode,
    "decode": _decode,
    "reconstruct": _reconstruct,
    "sample": _decode,
    "score": _score,
    "score_portable": _in_float32(_score),
    "draw": _draw,
    "draw_portable": _in_float32(_draw),
    "impute": _impute,
    "impute_portable": _in_float32(_impute),
    "explain": _explain,
    "explain_portable": _in_float32(_explain),
}
"""The torch function of each form of an operation; outputs are in the order of the table."""

GAPS: Mapping[OperationName, Callable[..., Tensor]] = {
    "decode": _decoded_gap,
    "sample": _decoded_gap,
    "reconstruct": lambda model, x: _decoded_gap(model, model.encode(x).loc),
    "draw": lambda model, z, noise: _draw_cells(model, z, noise, None).gap,
    "impute": lambda model, x, eps: torch.where(x.isnan(), impute(model, x, eps, None)[0].gap, 1.0),
}
"""How far each cell (batch, features) of an operation's result is from a jump to another value, as
`Drawn.gap`."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far float32 results may be from the float64 reference: derived, not chosen by hand.

    It is four times the error that torch itself makes on the same rows, for the largest error and
    for the root mean square, and at least a few roundings of the values. If torch ran in float32,
    rounded weights or TF32 exceed it a hundredfold.
    """

    max: float
    rms: float

    @classmethod
    def from_noise(cls, exact: Array, rounded: Array) -> "Tolerance":
        """Derive the tolerance of one output, (rows, …), from the values that are finite."""
        finite = np.isfinite(rounded)
        if finite.any() and not finite.all():
            exact, rounded = exact[finite], rounded[finite]
        error = np.abs(rounded - exact)
        return cls(4 * float(error.max()), 4 * rms(error)).wider(cls.of_roundings(exact))

    @classmethod
    def of_roundings(cls, exact: Array) -> "Tolerance":
        """Return the smallest tolerance that is given to values of this size."""
        return cls(32 * EPS * float(np.abs(exact).max()), 8 * EPS * rms(exact))

    def wider(self, other: "Tolerance") -> "Tolerance":
        """Return the larger of each bound, since the errors of few rows can be unusually small."""
        return Tolerance(max(self.max, other.max), max(self.rms, other.rms))


def derive_tolerances(
    exact: Mapping[str, Array], draws: Iterable[Mapping[str, Array]]
) -> dict[str, Tolerance]:
    """Return the widest tolerance of each output over some draws of the error that torch makes.

    One error is the sum of many roundings, and can be small by luck.
    """
    found = {name: Tolerance.of_roundings(values) for name, values in exact.items()}
    for rounded in draws:
        for name, values in exact.items():
            found[name] = found[name].wider(Tolerance.from_noise(values, rounded[name]))
    return found


def rows_at_once(x_shape: tuple[int, ...], operation: Operation) -> int:
    """Return how many rows `run_reference` takes at a time: copies of all would fill gigabytes."""
    most = _VALUES // torch.Size(x_shape).numel()
    if operation.copies > 1:
        most = min(most, _COPIES // operation.copies)
    return max(1, most)


@torch.no_grad()
def run_reference(
    model: VAE | Roundings,
    operation: Operation,
    inputs: Mapping[str, Array],
    dtype: torch.dtype,
    *,
    draw: int = 0,
    tf32: bool = False,
) -> dict[str, Array]:
    """Run one operation of the eager model in `dtype`; `draw` and `tf32` as `Roundings.get`.

    Given a model's `Roundings`, a network is not run again on inputs that it has had.
    """
    function = FUNCTIONS[operation.label]
    rounded = _roundings(model).get(dtype, draw, tf32=tf32, plain=operation.portable)
    tensors = tuple(_as_tensors(operation, inputs, dtype))
    step = rows_at_once(rounded.x_shape, operation)
    parts = [
        function(rounded, *part)
        for part in zip(*(torch.split(t, step) for t in tensors), strict=True)
    ]
    outputs = (torch.cat(output) for output in zip(*parts, strict=True))
    return {t.name: y.numpy() for t, y in zip(operation.outputs, outputs, strict=True)}


@torch.no_grad()
def run_gaps(
    model: VAE | Roundings,
    operation: Operation,
    inputs: Mapping[str, Array],
    dtype: torch.dtype,
    *,
    draw: int = 0,
    tf32: bool = False,
) -> Array | None:
    """Return the `GAPS` of an operation in `dtype`, (batch, features), or None if nothing jumps."""
    roundings = _roundings(model)
    if operation.name not in GAPS or not (roundings.model.mixed or operation.name == "draw"):
        return None
    rounded = roundings.get(dtype, draw, tf32=tf32)
    gaps: Array = GAPS[operation.name](rounded, *_as_tensors(operation, inputs, dtype)).numpy()
    return gaps


def _roundings(model: VAE | Roundings) -> Roundings:
    return model if isinstance(model, Roundings) else Roundings(model)


def _as_tensors(
    operation: Operation, inputs: Mapping[str, Array], dtype: torch.dtype
) -> Iterator[Tensor]:
    for tensor in operation.inputs:
        values = torch.from_numpy(np.array(inputs[tensor.name]))
        yield values.to(dtype) if values.is_floating_point() else values


def draw_inputs(operation: Operation, x: Array, *, num_samples: int, seed: int) -> dict[str, Array]:
    """Return inputs of one operation for the rows `x`; all others are standard normal noise.

    If gaps are to be filled, a quarter of the cells are.
    """
    inputs: dict[str, Array] = {}
    for tensor in operation.inputs:
        if tensor.name == "x":
            inputs["x"] = _with_gaps(x) if operation.name == "impute" else x
        elif tensor.name == "noise":
            width = int(np.prod(x.shape[1:]))
            noise = np.ascontiguousarray(draw_noise(seed, 0, len(x), width))
            inputs["noise"] = noise.reshape(len(x), *x.shape[1:])
        else:
            shape = [num_samples if axis == "num_samples" else axis for axis in tensor.shape[1:]]
            width = int(np.prod([int(size) for size in shape]))
            inputs[tensor.name] = draw_rows(seed, 0, len(x), width).reshape(len(x), *shape)
    return inputs


def _with_gaps(x: Array) -> Array:
    row, column = np.indices(x.shape)
    return np.where((row + column) % 4 == 0, np.float32(np.nan), x)


def rms(values: Array) -> float:
    """Return the root mean square."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
