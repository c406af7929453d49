"""How far a row is from centres, beside a direct computation, cell by cell."""

import math
from typing import Any

import numpy as np
import pytest

from serving.row_distance import FARTHEST, STEPS, CellCodes, RowDistance

Array = np.ndarray[Any, Any]

WORDS = np.array([0, 0, 0, 3, 2])
CODES = CellCodes(
    WORDS,
    offset=np.array([0, 1.0, 0, 0, 0]),
    least=np.array([0, 1.0, 0.5, 0, 0]),
    shift=np.array([10, 0.5, 2.0, 0, 0]),
    scale=np.array([4, 0.3, 1.5, 1, 1]),
)
"""A real number, a count, a positive number of at least 0.5, three words and two."""


def rows_of(count: int, seed: int) -> Array:
    draws = np.random.default_rng(seed)
    x = np.stack(
        [
            draws.normal(10, 8, count),
            draws.poisson(2, count),
            draws.exponential(8, count).round(),
            draws.integers(0, 4, count),
            draws.integers(0, 3, count),
        ],
        1,
    ).astype(np.float32)
    x[draws.random(x.shape) < 0.2] = np.nan
    return x


def place(x: float, column: int) -> list[float]:
    """The vector of a cell, which is written here anew."""
    if WORDS[column]:
        own = int(WORDS[column]) + 1 if math.isnan(x) else int(x)
        return [float(own == code) for code in range(int(WORDS[column]) + 2)]
    if math.isnan(x):
        return [0, 1]
    value = x if column == 0 else math.log(1 + x if column == 1 else max(x, 0.5))
    units = (value - CODES.shift[column]) / CODES.scale[column]
    return [max(-FARTHEST, min(FARTHEST, round(units * STEPS) / STEPS)), 0]


def vector_of(row: Array) -> Array:
    return np.array([part for column, x in enumerate(row) for part in place(float(x), column)])


def test_it_is_the_euclidean_distance_from_the_nearest_centre() -> None:
    of_training = np.array([vector_of(row) for row in rows_of(120, 0)])
    centres = of_training.reshape(40, 3, -1).mean(1).astype(np.float32)  # means of three rows each
    x = rows_of(300, 1)
    found = RowDistance(CODES, centres)(x)
    assert found.dtype == np.float32
    vectors = np.array([vector_of(row) for row in x])
    expected = [min(math.dist(row, centre) for centre in centres) for row in vectors]
    assert found == pytest.approx(np.array(expected), rel=1e-5)
    assert CODES.encode(x) == pytest.approx(vectors)


def test_a_row_has_the_same_bytes_in_every_batch() -> None:
    distance, x = RowDistance(CODES, CODES.encode(rows_of(50, 0))), rows_of(300, 1)
    whole = distance(x)
    for size in (1, 3, 128, 129):
        parts = [distance(x[start : start + size]) for start in range(0, len(x), size)]
        assert (np.concatenate(parts) == whole).all()
    assert (distance(np.asfortranarray(x)) == whole).all()
    assert distance(x[:0]).shape == (0,)


def test_a_row_at_a_centre_is_at_0_and_one_beyond_all_is_no_farther_than_the_end() -> None:
    x = np.array([[10, 0, 1, 1, 0], [1e38, 0, 1, 1, 0], [26, 0, 1, 1, 0]], np.float32)
    at, beyond, end = RowDistance(CODES, CODES.encode(x[:1]))(x)
    assert (at, beyond, end) == (0, FARTHEST, FARTHEST)


def test_what_is_no_code_counts_as_another_word_and_a_gap_as_one_of_its_own() -> None:
    x = np.tile(np.array([10, 0, 1, 3, 0], np.float32), (5, 1))
    x[:, 3] = [3, -1, 7.5, np.nan, 0]
    distances = RowDistance(CODES, CODES.encode(x[:1]))(x)
    assert distances == pytest.approx([0, 0, 0, math.sqrt(2), math.sqrt(2)])


def test_a_gap_of_a_number_stands_at_its_mean_and_one_aside() -> None:
    x = np.array([[10, 0, 1, 1, 0], [np.nan, 0, 1, 1, 0], [14, 0, 1, 1, 0]], np.float32)
    mean = RowDistance(CODES, CODES.encode(x[:1]))
    assert mean(x) == pytest.approx([0, 1, 1])
    gap = RowDistance(CODES, CODES.encode(x[1:2]))
    assert gap(x) == pytest.approx([1, 0, math.sqrt(2)])
