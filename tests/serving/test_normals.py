from importlib import import_module
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from serving.normals import load_table, normals_of

Array = np.ndarray[Any, Any]


def exact(
    words: Array,
) -> Array:
    """The normals of words in float64, from the inverse of the standard library."""
    inverse = NormalDist().inv_cdf
    sizes = [-inverse((int(word) | 1) / 2**33) for word in words]
    return np.array(sizes) * np.where(words & 1, -1, 1)


@pytest.mark.parametrize(
    "words",
    [
        np.arange(3000, dtype=np.uint32),
        np.arange(2**32 - 3000, 2**32).astype(np.uint32),
        np.concatenate([2**k + np.arange(-3, 3) for k in range(3, 32)]).astype(np.uint32),
        np.random.default_rng(0).integers(0, 2**32, 20_000, np.uint32),
    ],
    ids=["tails", "centre", "octaves", "any"],
)
def test_normals_are_the_inverse_of_the_distribution(words: Array) -> None:
    assert np.abs(normals_of(words) - exact(words)).max() < 9e-7


@pytest.mark.full_environment
def test_the_table_is_rounded_from_values_of_forty_digits() -> None:
    mp = import_module("mpmath")  # torch needs it
    start, slope = load_table()
    for segment in range(0, len(start) - 1, 61):
        with mp.workdps(40):
            here, there = (size(mp, each) for each in (segment, segment + 1))
            assert start[segment] == np.float32(float(here))
            assert slope[segment] == np.float32(float((there - here) / 2**23))


def size(mp: Any, segment: int) -> Any:
    octave, part = divmod(segment, 256)
    p = mp.mpf(2) ** (octave - 33) * (1 + mp.mpf(part) / 256)
    return -mp.sqrt(2) * mp.erfinv(2 * p - 1)


def test_normals_grow_smaller_as_words_grow_and_signs_alternate() -> None:
    """The segments meet: there is no step at which a larger word has a larger normal."""
    evens = [2**k + np.arange(0, 2000, 2) for k in range(12, 31)]
    words = np.unique(np.concatenate(evens)).astype(np.uint32)
    sizes = normals_of(words)
    assert (np.diff(sizes) <= 0).all()
    np.testing.assert_array_equal(normals_of(words | np.uint32(1)), -sizes)
