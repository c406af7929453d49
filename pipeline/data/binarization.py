"""Draw ones and zeros from shares, and from bytes that are shares of the largest byte."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import DataRefused
from serving.value_range import MAX_BYTE

Array = NDArray[Any]

_BINARIZED_ROWS = 4096
"""Rows binarized at a time, which bounds memory; another number would change the random bits."""


def binarize(x: Array, generator: np.random.Generator, max_byte: int = MAX_BYTE) -> Array:
    """Draw each value as one or zero: one with probability x/max_byte for bytes, x for floats.

    See Burda et al. (2016), after Salakhutdinov & Murray (2008). Bytes become 0 or `max_byte`,
    which keeps their unit. The probability is exact for bytes, and within 2^-24 for floats.

    Raises:
        DataRefused: not all floats are from 0 to 1.
    """
    ones = np.empty_like(x)
    is_bytes = x.dtype == np.uint8
    one = x.dtype.type(max_byte if is_bytes else 1)
    if not is_bytes and x.size and not (x.min() >= 0 and x.max() <= 1):
        raise DataRefused(
            "to be binarized, data must be bytes, or floats from 0 to 1; "
            f"got {x.min():g} to {x.max():g}: use --binarize none"
        )
    for start in range(0, len(x), _BINARIZED_ROWS):
        rows = x[start : start + _BINARIZED_ROWS]
        if is_bytes:  # exactly x of the numbers from 0 to max_byte - 1 are below x
            uniform = generator.integers(0, max_byte, rows.shape, np.uint8)
        else:
            uniform = generator.random(rows.shape, np.float32)
        ones[start : start + len(rows)] = (uniform < rows) * one
    return ones


def binarize_once(x: Array, max_byte: int, *, key: int) -> Array:
    """Binarize a split with a fixed `key`, so that it is the same for every training."""
    generator = np.random.Generator(np.random.Philox(key=key))
    return binarize(x, generator, max_byte)
