"""The score of contradictory cells and of rare rows in one, beside a direct computation."""

import math
from typing import Any

import numpy as np
import pytest

from serving.combined_score import WEIGHT, fit_combined, read_combined
from serving.p_values import PValues

Array = np.ndarray[Any, Any]


def rows_of(count: int, seed: int, gaps: float = 0.2, width: int = 4) -> tuple[Array, Array, Array]:
    """Draw consistency, log-likelihoods of cells, and gaps."""
    generator = np.random.default_rng(seed)
    cells = generator.standard_normal((count, width)).round(1).astype(np.float32)  # with ties
    consistency = generator.standard_normal(count).astype(np.float32)
    return consistency, cells, generator.random((count, width)) < gaps


def round_down(count: int) -> int:
    """Return the largest power of 2 to a quarter, rounded to a whole number, up to a count."""
    powers = {round(2 ** (quarter / 4)) for quarter in range(56)}
    return max((power for power in powers if power <= count), default=0)


def of_cells(held: Array, held_gaps: Array, cells: Array, gaps: Array) -> float:
    """The sum of 1 + log p over the cells of one row."""
    total = 0.0
    for own, column, own_gap, column_gaps in zip(cells, held.T, gaps, held_gaps.T, strict=True):
        seen = column[~column_gaps]
        if not own_gap:
            up_to = round_down(int((seen <= own).sum()))
            total += 1 + math.log((1 + up_to) / (1 + len(seen)))
    return total


def log_p(held: Array, value: float) -> float:
    return math.log((1 + (held <= value).sum()) / (1 + len(held)))


def test_a_new_row_is_compared_with_all_and_a_held_out_row_with_the_others() -> None:
    consistency, cells, gaps = held = rows_of(60, 0)
    score, own = fit_combined(*held)
    sums = np.zeros(60)
    for row in range(60):
        rest = np.arange(60) != row
        sums[row] = of_cells(cells[rest], gaps[rest], cells[row], gaps[row])
    for row in range(60):
        rest = np.arange(60) != row
        expected = log_p(consistency[rest], consistency[row])
        expected += WEIGHT * log_p(sums[rest] + 1e-9, sums[row] + 2e-9)
        assert own[row] == pytest.approx(expected, abs=1e-6)
    new = rows_of(30, 1)
    for row, found in enumerate(score(*new)):
        total = of_cells(cells, gaps, new[1][row], new[2][row])
        expected = log_p(consistency, new[0][row]) + WEIGHT * log_p(sums + 1e-9, total + 2e-9)
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("held", [30, 200])
def test_p_values_of_rows_like_the_held_out_ones_are_uniform(held: int) -> None:
    found = []
    for seed in range(400):
        score, own = fit_combined(*rows_of(held, 2 * seed))
        found.append(PValues(own)(score(*rows_of(20, 2 * seed + 1))))
    p = np.concatenate(found)
    for level in (0.05, 0.1, 0.25, 0.5, 0.75):
        assert (p <= level).mean() == pytest.approx(
            math.floor(level * (held + 1)) / (held + 1), abs=0.02
        )


def test_either_kind_of_row_is_found_and_a_row_that_is_both_comes_first() -> None:
    score, own = fit_combined(*rows_of(400, 0, gaps=0))
    consistency, cells, gaps = rows_of(4, 1, gaps=0)
    consistency[:], cells[:] = 0, 0
    consistency[[1, 3]], cells[[2, 3]] = -9, -2
    usual, contradictory, rare, both = score(consistency, cells, gaps)
    assert both < contradictory < rare < np.quantile(own, 0.2) < usual


def test_a_gap_says_nothing_and_what_stands_in_it_changes_nothing() -> None:
    held = rows_of(100, 0)
    score, _ = fit_combined(*held)
    consistency, cells, gaps = rows_of(50, 1)
    other = np.where(gaps, np.float32(-99), cells)
    assert (score(consistency, other, gaps) == score(consistency, cells, gaps)).all()
    score, own = fit_combined(held[0], np.where(held[2], -99, held[1]).astype(np.float32), held[2])
    assert (own == fit_combined(*held)[1]).all()
    assert (score(consistency, other, gaps) == score(consistency, cells, gaps)).all()


def test_a_column_of_gaps_alone_and_a_single_held_out_row_have_scores() -> None:
    consistency, cells, gaps = rows_of(20, 0)
    gaps[:, 1] = True
    score, own = fit_combined(consistency, cells, gaps)
    assert np.isfinite(own).all()
    assert np.isfinite(score(*rows_of(20, 1))).all()
    score, own = fit_combined(*rows_of(1, 0, gaps=0))
    assert np.isfinite(own).all()
    assert np.isfinite(score(*rows_of(5, 1))).all()


def test_it_is_read_as_it_was_written() -> None:
    consistency, cells, gaps = rows_of(50, 0)
    score, _ = fit_combined(consistency, cells, gaps)
    arrays = {"consistency": consistency, "elbo": consistency, **score.arrays()}
    found = read_combined(arrays)
    assert found is not None
    new = rows_of(30, 1)
    assert (found(*new) == score(*new)).all()
    assert list(arrays) == ["consistency", "elbo"]
    assert read_combined(arrays) is None
