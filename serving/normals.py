"""Standard normals from random words, with integers and the products and sums of float32 alone.

These operations give the same bits on every machine and in every language, which logarithms and
roots do not. A word w of 32 bits stands for the probability p = (w | 1) / 2³³, below one half, and
its lowest bit for the sign: the normal is ∓Φ⁻¹(p). Between two neighbours of 8192 places, 256 in
each octave of p, Φ⁻¹ is a straight line, nowhere further from the true value than 9e-7.
"""

from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

OCTAVES = 32
SEGMENT_BITS = 8  # of the segment, after the leading bit of w | 1
PLACE_BITS = 23  # of the place within the segment
TABLE = "normal_table.npy"
# of float64: 52 bits of fraction, and 1023 more than the exponent
_BELOW_PLACE = np.int64(52 - SEGMENT_BITS - PLACE_BITS)
_FIRST = np.int64(1023 << SEGMENT_BITS)
_PLACES = np.int64(2**PLACE_BITS - 1)
_ONE, _SIGN = np.uint32(1), np.uint32(31)


def normals_of(words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Return the normal of each word, in the shape of `words`."""
    start, slope = load_table()
    # the exponent and the fraction of a float64 are the number of the octave, and what follows
    bits = (words | _ONE).astype(np.float64).view(np.int64) >> _BELOW_PLACE
    segment = bits >> PLACE_BITS
    segment -= _FIRST
    bits &= _PLACES
    normals = slope.take(segment)
    normals *= bits.astype(np.float32)
    normals += start.take(segment)
    signs = normals.view(np.uint32)
    signs ^= words << _SIGN
    return normals


@cache
def load_table() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the start and the slope of each segment, (OCTAVES * 256,).

    The start is -Φ⁻¹(p), rounded to float32, at the smallest p of the segment, which is
    2^octave (1 + segment / 256) / 2³³; the slope is the way to the next start, for a place of 1.
    """
    with files("serving").joinpath(TABLE).open("rb") as file:
        start, slope = np.load(file, allow_pickle=False)
    return start, slope
