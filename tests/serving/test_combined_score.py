"""The score of contradictory cells and of distant rows in one, beside a direct computation."""

import math
from typing import Any

import numpy as np
import pytest

from serving.combined_score import fit_combined, read_combined
from serving.p_values import PValues
from serving.row_distance import CellCodes, RowDistance

Array = np.ndarray[Any, Any]
WIDTH = 4


def rows_of(count: int, seed: int) -> tuple[Array, Array]:
    """Draw consistency with ties, and rows of numbers with gaps."""
    generator = np.random.default_rng(seed)
    consistency = generator.standard_normal(count).round(1).astype(np.float32)
    is_gap = generator.random((count, WIDTH)) < 0.2
    x = np.where(is_gap, np.nan, generator.standard_normal((count, WIDTH))).astype(np.float32)
    return consistency, x


def distance_from(seed: int) -> RowDistance:
    """From 20 rows of their own, as from those of a training."""
    zeros, ones = np.zeros(WIDTH), np.ones(WIDTH)
    codes = CellCodes(np.zeros(WIDTH, np.int64), zeros, zeros, zeros, ones)
    return RowDistance(codes, codes.encode(rows_of(20, seed)[1]))


FAR = distance_from(5)


def log_p(held: Array, value: float) -> float:
    return math.log((1 + (held <= value).sum()) / (1 + len(held)))


def test_a_new_row_is_compared_with_all_and_a_held_out_row_with_the_others() -> None:
    consistency, x = rows_of(60, 0)
    score, own = fit_combined(consistency, x, FAR)
    near = -FAR(x)
    for row in range(60):
        rest = np.arange(60) != row
        expected = log_p(consistency[rest], consistency[row]) + log_p(near[rest], near[row])
        assert own[row] == pytest.approx(expected, abs=1e-6)
    new, new_x = rows_of(30, 1)
    for row, found in enumerate(score({"consistency": new}, new_x)):
        expected = log_p(consistency, new[row]) + log_p(near, -FAR(new_x)[row])
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("held", [30, 200])
def test_p_values_of_rows_like_the_held_out_ones_are_uniform(held: int) -> None:
    found = []
    for seed in range(400):
        score, own = fit_combined(*rows_of(held, 2 * seed), distance_from(1000 + seed))
        consistency, x = rows_of(20, 2 * seed + 1)
        found.append(PValues(own)(score({"consistency": consistency}, x)))
    p = np.concatenate(found)
    for level in (0.05, 0.1, 0.25, 0.5, 0.75):
        assert (p <= level).mean() == pytest.approx(
            math.floor(level * (held + 1)) / (held + 1), abs=0.02
        )


def test_either_kind_of_row_is_found_and_a_row_that_is_both_comes_first() -> None:
    score, own = fit_combined(*rows_of(400, 0), FAR)
    consistency, x = np.zeros(4, np.float32), np.full((4, WIDTH), 0.5, np.float32)
    consistency[[1, 3]], x[[2, 3]] = -9, 6
    usual, contradictory, far, both = score({"consistency": consistency}, x)
    assert both < min(contradictory, far)
    assert max(contradictory, far) < np.quantile(own, 0.2) < usual


def test_a_single_held_out_row_is_enough() -> None:
    score, own = fit_combined(*rows_of(1, 0), FAR)
    assert own == 0  # there is no other that it could be less usual than
    consistency, x = rows_of(5, 1)
    found = score({"consistency": consistency}, x)
    assert set((found / math.log(1 / 2)).round(4).tolist()) <= {0, 1, 2}


def test_it_is_read_as_it_was_written() -> None:
    consistency, x = rows_of(50, 0)
    score, _ = fit_combined(consistency, x, FAR)
    arrays = {"consistency": consistency, "elbo": consistency, **score.arrays()}
    found = read_combined(arrays)
    assert found is not None
    new, new_x = rows_of(30, 1)
    assert (found({"consistency": new}, new_x) == score({"consistency": new}, new_x)).all()
    assert list(arrays) == ["consistency", "elbo"]
    assert read_combined(arrays) is None


def test_a_part_that_is_missing_is_named() -> None:
    score, _ = fit_combined(*rows_of(50, 0), FAR)
    arrays = {"consistency": rows_of(50, 0)[0], **score.arrays()}
    del arrays["combined.nearness"]
    with pytest.raises(KeyError, match="nearness"):
        read_combined(arrays)
