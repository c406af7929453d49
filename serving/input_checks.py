"""Check the inputs of an operation: names, dtypes, shapes, and values."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import DataRefused
from serving.operations import Operation
from serving.value_range import MAX_BYTE

Array = NDArray[Any]


def check_inputs(
    operation: Operation,
    inputs: Mapping[str, Array],
    unit_range: bool,
    max_byte: int,
    drawn: str = "",
    *,
    gaps: bool = False,
) -> int:
    """Return the number of rows; the values of the input `drawn` need no check.

    With `gaps`, `x` may hold NaN.

    Raises:
        DataRefused: a tensor is missing, unknown, or of the wrong dtype, shape or value.
    """
    if inputs.keys() != {tensor.name for tensor in operation.inputs}:
        wanted = ", ".join(tensor.name for tensor in operation.inputs)
        got = ", ".join(sorted(inputs)) or "none"
        raise DataRefused(f"{operation.name} takes {wanted}, got {got}")
    sizes: dict[str, int] = {}
    for tensor in operation.inputs:
        array = inputs[tensor.name]
        if array.dtype != tensor.dtype:
            raise DataRefused(f"{tensor.name} must be {tensor.dtype}, got {array.dtype}")
        fits = len(array.shape) == len(tensor.shape)
        for axis, size in zip(tensor.shape, array.shape, strict=False):
            wanted_size = sizes.setdefault(axis, size) if isinstance(axis, str) else axis
            fits = fits and size == wanted_size
        if not fits:
            wanted = ", ".join(str(axis) for axis in tensor.shape)
            raise DataRefused(f"{tensor.name} must be ({wanted}), got {array.shape}")
        if array.dtype == np.uint8:
            _check_bytes(tensor.name, array, max_byte)
        elif tensor.name != drawn:
            is_x = tensor.name == "x"
            check_floats(tensor.name, array, unit_range=unit_range and is_x, gaps=gaps and is_x)
    if sizes.get("num_samples") == 0:
        raise DataRefused("num_samples must be at least 1, got 0")
    return sizes["batch"]


def check_floats(name: str, array: Array, *, unit_range: bool, gaps: bool = False) -> None:
    """Refuse floats that are not finite, but for `gaps`, or with `unit_range` not from 0 to 1."""
    if array.size == 0:
        return
    if array.strides[0] == 0:  # a broadcast of one row
        array = array[:1]
    good = ~np.isinf(array) if gaps else np.isfinite(array)
    finite = good.reshape(len(array), -1).all(1)
    if not finite.all():
        raise DataRefused(f"{name} must be finite, row {int(finite.argmin())} is not")
    if unit_range and (array.min() < 0 or array.max() > 1):
        raise DataRefused(
            f"{name} must be from 0 to 1 for a bernoulli likelihood, "
            f"got {array.min():g} to {array.max():g}"
        )


def _check_bytes(name: str, array: Array, largest: int) -> None:
    """Refuse bytes that the likelihood does not allow."""
    if largest < MAX_BYTE and array.size and array.max() > largest:
        raise DataRefused(
            f"{name} must be from 0 to {largest}, as in the data that the model was trained with; "
            f"got {array.max()}"
        )
