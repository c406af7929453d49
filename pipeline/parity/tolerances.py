"""The rules by which outputs are judged, for each precision that computes them.

A set of rules says how much noise is allowed, which weights a graph must hold, and how close the
ELBO must be. `FLOAT32` is for every graph; `TF32` judges a run on CUDA that rounds the factors of
its matrix products. Its noise is measured by torch on the CPU with the same rounding: for random
encoders 784-128-64-20 the errors are 2.8e-4 to 3.8e-4 of the largest value, and on an H100 they
were 2.9e-4 to 3.7e-4.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from onnx import ModelProto

from pipeline.model.operations import Array, rms, run_reference
from pipeline.model.vae import VAE
from pipeline.parity.comparison_result import ElboParity, Fault, Setting
from pipeline.parity.weights import weight_faults
from serving.operations import Operation


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules for one precision."""

    precision: str
    noise: Callable[..., Mapping[str, Array]]
    """Runs torch with the rounding of this precision; four times its error is the tolerance."""
    weights: Callable[
        [Mapping[str, ModelProto], VAE, VAE, Mapping[str, Operation]], Iterator[Fault]
    ]
    """Finds weights that are not those of the state dict."""
    mean_nats: float
    """How far the mean ELBO of held-out rows may be from that of float64, in nats."""
    row_share: float
    """How far the ELBO of a row may be, as a share of its |log-likelihood| + KL."""


FLOAT32 = Rules(
    precision="float32",
    noise=partial(run_reference, dtype=torch.float32),
    weights=weight_faults,
    mean_nats=1e-5,
    row_share=1e-6,
)
TF32 = replace(
    FLOAT32,
    precision="tf32",
    noise=partial(run_reference, dtype=torch.float32, tf32=True),
    mean_nats=1e-3,
    row_share=1e-4,
)


NOTHING = np.array([np.nan])
"""The error of outputs that cannot be compared: NaN is within no tolerance."""


def errors_of(value: Array | None, exact: Array, rounded: Array) -> tuple[Array, str]:
    """Return absolute errors, or the reason why `value` cannot be compared.

    Dtype and shape are compared first, then NaN and infinity. Float32 may overflow where float64
    does not; then the float32 of torch must overflow too.
    """
    reason = "there is no such output" if value is None else _pattern(value, exact, rounded)
    if reason or value is None:
        return NOTHING, reason
    finite = np.isfinite(rounded)
    return np.abs(value - exact) if finite.all() else np.abs(value[finite] - exact[finite]), ""


def difference(value: Array | None, other: Array | None) -> tuple[Array, str]:
    """Return the absolute difference of two outputs, or the reason why there is none."""
    if value is None or other is None:
        return NOTHING, "there is no such output"
    if (value.dtype, value.shape) != (other.dtype, other.shape):
        return NOTHING, f"got {value.dtype} {value.shape}, allowed {other.dtype} {other.shape}"
    with np.errstate(invalid="ignore"):  # two infinities
        return np.where(value == other, 0, np.abs(value - other)), ""


def _pattern(value: Array, exact: Array, rounded: Array) -> str:
    if (value.dtype, value.shape) != (rounded.dtype, exact.shape):
        return f"got {value.dtype} {value.shape}, allowed {rounded.dtype} {exact.shape}"
    if np.isnan(exact).any():
        return "torch's own output is NaN in float64"
    strange, expected = ~np.isfinite(value), ~np.isfinite(rounded)
    if expected.all():
        return "torch's own output has no finite value in float32"
    if not np.array_equal(strange, expected):
        return f"{strange.sum()} values are NaN or infinite, torch has {expected.sum()}"
    if not np.array_equal(value[strange], rounded[strange], equal_nan=True):
        return "NaN or infinities are not those of torch"
    return ""


def compare_elbo(
    value: Mapping[str, Array],
    exact: Mapping[str, Array],
    rounded: Mapping[str, Array],
    rules: Rules,
    setting: Setting,
    operation: str = "score",
) -> ElboParity:
    """Compare the ELBO of held-out rows with that of float64.

    Both goals can be met by models whose bounds are a few hundred nats. A float32 bound of 10,000
    nats has steps of 0.001: then, and only then, four times the error of torch is wider than the
    goal. Rounding errors share a sign in onnxruntime (its sigmoid is a rational function), so the
    tolerance of the mean is the root mean square of the noise of a row, not a standard error.
    """
    size = np.maximum(np.abs(exact["log_likelihood"]) + np.abs(exact["kl"]), 1)
    noise = rounded["elbo"] - exact["elbo"]
    found = value.get("elbo", NOTHING)
    error = found - exact["elbo"] if found.shape == noise.shape else np.full(noise.shape, np.nan)
    return ElboParity(
        operation=operation,
        provider=setting.provider,
        tf32=setting.tf32,
        rows=len(noise),
        mean_error=float(np.abs(error.mean())),
        mean_goal=rules.mean_nats,
        mean_tolerance=max(rules.mean_nats, 4 * rms(noise)),
        row_error=float((np.abs(error) / size).max()),
        row_goal=rules.row_share,
        row_tolerance=max(rules.row_share, 4 * float((np.abs(noise) / size).max())),
    )
