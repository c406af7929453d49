"""The range of a data set's values, from which bytes and pictures get their scale.

In: the smallest and the largest value, which the manifest keeps. Out: the largest value that a byte
of the data can have, and values as the brightness of pixels.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Range = tuple[float, float]
"""Smallest and largest value."""

MAX_BYTE = 255
MAX_EXACT = 1 << 24
"""Float32 holds every whole number up to this one exactly, and not all above it."""


def find_range(*splits: Array) -> Range:
    """Return the range of the values of all splits; empty ones and gaps are left out."""
    filled = [x for x in splits if x.size]
    low, high = (
        bound.reduce([bound.reduce(x, None) for x in filled]) for bound in (np.fmin, np.fmax)
    )
    return float(low), float(high)


def max_byte_of(largest: float) -> int:
    """Return the largest byte of data whose largest byte is `largest`.

    It is 255, unless all values are in the lower half of the bytes: then they are not brightness of
    8 bits, but bits, counts or levels (scikit-learn's digits are 0 to 16), and have a scale of
    their own.
    """
    return MAX_BYTE if not largest <= MAX_BYTE // 2 else max(1, int(largest))


def picture_range(dtype: str | np.dtype[Any], values: Range) -> Range:
    """Return the values of a black and of a white pixel; pictures of bytes start at 0."""
    low, high = values
    if dtype == "uint8":
        return 0.0, float(max_byte_of(high))
    return (low, high) if low < high else (low, low + 1)


def guess_range(x: Array) -> Range:
    """Guess the range from some rows, for a bundle that does not keep it."""
    return (0, MAX_BYTE) if x.dtype == np.uint8 or x.max() > 1 else (0, 1)


def to_brightness(x: Array, black_and_white: Range) -> Array:
    """Scale values to the brightness of pixels, from 0 to 255."""
    low, high = black_and_white
    return (x - low) * (MAX_BYTE / (high - low))
