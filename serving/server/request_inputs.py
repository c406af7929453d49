"""The inputs of an inference: those of the request in the graph's dtypes, and the noise to draw.

In: a request that a transport has read. Out: arrays, and what draws the noise once they have been
checked.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from serving.engine import Engine
from serving.errors import DataRefused, UsageRefused
from serving.noise import check_seed, draw_eps, draw_rows
from serving.operations import Operation
from serving.protocol.messages import (
    MAX_ROWS,
    Array,
    InferRequest,
    Parameter,
    match_tensor,
)

_NOISE = ("seed", "num_samples")
_DRAWS = ("sample", "score", "impute", "explain")


def check_names(operation: Operation, request: InferRequest) -> None:
    """Refuse outputs that the operation lacks, and a seed where nothing is drawn."""
    if request.outputs:
        outputs = [tensor.name for tensor in operation.outputs]
        for name in request.outputs:
            if name not in outputs:
                raise DataRefused(f"{operation.name} gives {', '.join(outputs)}, got {name!r}")
    if request.parameters and operation.name not in _DRAWS:
        for name in request.parameters.keys() & _NOISE:
            raise UsageRefused(f"{operation.name} draws no noise: it takes no seed, got {name!r}")


def match_inputs(operation: Operation, request: InferRequest) -> dict[str, Array]:
    """Return the given inputs in the graph's dtypes."""
    tensors = {tensor.name: tensor for tensor in operation.inputs}
    return {
        name: match_tensor(tensors[name], array) if name in tensors else array
        for name, array in request.inputs.items()
    }


def plan_noise(
    engine: Engine, operation: Operation, request: InferRequest, inputs: dict[str, Array]
) -> Callable[[], Array] | None:
    """Put an `eps` of the right shape among the inputs, and return what draws it; None if given.

    Noise is drawn only for inputs that have been checked.
    """
    if operation.name not in _DRAWS:
        return None
    if "eps" in inputs:
        if given := request.parameters.keys() & _NOISE:
            raise UsageRefused(f"eps and {', '.join(sorted(given))} exclude each other")
        return None
    seed = _whole_number(request.parameters, "seed", 0, 0)
    num_samples = _whole_number(request.parameters, "num_samples", 1, 1)
    if num_samples > MAX_ROWS:
        raise UsageRefused(f"num_samples must be at most {MAX_ROWS}, got {num_samples}")
    latent_dim = engine.bundle.manifest.latent_dim
    check_seed(seed)
    if operation.name == "sample":
        inputs["eps"] = np.empty((num_samples, latent_dim), np.float32)
        return partial(draw_rows, seed, 0, num_samples, latent_dim)
    if "x" not in inputs:
        got = ", ".join(sorted(inputs)) or "none"
        raise DataRefused(f"{operation.name} takes x, and eps or a seed for it, got {got}")
    x = inputs["x"]
    rows = len(x) if x.ndim else 0
    check_size(rows, num_samples)
    inputs["eps"] = np.empty((rows, num_samples, latent_dim), np.float32)
    return partial(draw_eps, x, seed, num_samples, latent_dim)


def check_size(rows: int, num_samples: int) -> None:
    """Refuse more than `MAX_ROWS`."""
    if rows * num_samples > MAX_ROWS:
        raise UsageRefused(
            f"a request may hold {MAX_ROWS} rows times draws, got {rows * num_samples}: "
            "send several"
        )


def _whole_number(parameters: Mapping[str, Parameter], name: str, default: int, least: int) -> int:
    value = parameters.get(name, default)
    if type(value) is not int or value < least:
        raise UsageRefused(f"{name} must be a whole number, at least {least}, got {value!r}")
    return value
