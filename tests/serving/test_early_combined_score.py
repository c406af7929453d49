"""The score `combined` of bundles without a distance from training rows, computed directly."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.bundle import open_bundle
from serving.early_combined_score import WEIGHT, EarlyCombinedScore, read_early
from serving.p_values import read_held_out_scores

Array = np.ndarray[Any, Any]
MIXED = Path(__file__).parent / "mixed_bundle"


def rows_of(count: int, seed: int, gaps: float = 0.2) -> tuple[dict[str, Array], Array]:
    """Draw scores of rows and their cells, and rows of which the gaps alone count."""
    generator = np.random.default_rng(seed)
    cells = generator.standard_normal((count, 4)).round(1).astype(np.float32)  # with ties
    consistency = generator.standard_normal(count).astype(np.float32)
    x = np.where(generator.random((count, 4)) < gaps, np.float32(np.nan), np.float32(0))
    return {"consistency": consistency, "column_log_likelihood": cells}, x


def powers(count: int) -> list[int]:
    """Return the powers of 2 to a quarter, rounded to whole numbers, up to a count."""
    found = {round(2 ** (quarter / 4)) for quarter in range(56)}
    return sorted(power for power in found if power <= count)


def of_cells(held: Array, held_gaps: Array, cells: Array, gaps: Array) -> float:
    """The sum of 1 + log p over the cells of one row."""
    total = 0.0
    for own, column, own_gap, column_gaps in zip(cells, held.T, gaps, held_gaps.T, strict=True):
        seen = column[~column_gaps]
        if not own_gap:
            up_to = max(powers(int((seen <= own).sum())), default=0)
            total += 1 + math.log((1 + up_to) / (1 + len(seen)))
    return total


def arrays_of(outputs: dict[str, Array], x: Array) -> dict[str, Array]:
    """What such a bundle holds of these held-out rows, whose cells count themselves once."""
    cells, gaps = outputs["column_log_likelihood"], np.isnan(x)
    knots = np.full(cells.shape[1:] + (len(powers(2**14)) - 1,), np.inf, np.float32)
    for column in range(cells.shape[1]):
        seen = np.sort(cells[~gaps[:, column], column])
        ranks = powers(len(seen))
        knots[column, : len(ranks)] = seen[np.array(ranks) - 1]
    rest = ~np.eye(len(x), dtype=bool)
    sums = [of_cells(cells[r], gaps[r], cells[i], gaps[i]) for i, r in enumerate(rest)]
    own = {"knots": knots, "counts": (~gaps).sum(0), "columns": np.sort(sums)}
    return {
        "consistency": outputs["consistency"],
        **{f"combined.{name}": values for name, values in own.items()},
    }


def log_p(held: Array, value: float) -> float:
    return math.log((1 + (held <= value).sum()) / (1 + len(held)))


def test_a_new_row_is_compared_with_the_held_out_ones_by_its_cells_too() -> None:
    held, held_x = rows_of(60, 0)
    arrays = arrays_of(held, held_x)
    score = read_early(dict(arrays))
    assert score is not None
    new, x = rows_of(30, 1)
    for row, found in enumerate(score(new, x)):
        cells = held["column_log_likelihood"]
        total = of_cells(
            cells, np.isnan(held_x), new["column_log_likelihood"][row], np.isnan(x[row])
        )
        expected = log_p(held["consistency"], new["consistency"][row])
        expected += WEIGHT * log_p(arrays["combined.columns"] + 1e-9, total + 2e-9)
        assert found == pytest.approx(expected, abs=1e-6)


def test_what_stands_in_a_gap_changes_nothing() -> None:
    score = read_early(arrays_of(*rows_of(100, 0)))
    assert score is not None
    new, x = rows_of(50, 1)
    cells = np.where(np.isnan(x), np.float32(-99), new["column_log_likelihood"])
    assert (score({**new, "column_log_likelihood": cells}, x) == score(new, x)).all()


def test_it_is_read_whole_or_not_at_all() -> None:
    arrays = arrays_of(*rows_of(50, 0))
    score = read_early({**arrays, "elbo": arrays["consistency"]})
    assert score is not None
    assert score.arrays().keys() == arrays.keys() - {"consistency"}
    assert read_early({name: v for name, v in arrays.items() if name != "combined.knots"}) is None
    assert read_early({"elbo": arrays["consistency"]}) is None


def test_an_early_bundle_has_it() -> None:
    held_out = read_held_out_scores(open_bundle(MIXED))
    assert held_out is not None
    assert isinstance(held_out.combined, EarlyCombinedScore)
    assert not [name for name in held_out.scores if name.startswith("combined.")]
    # the last of all rows by both parts
    rows, width = len(held_out.combined.consistency), len(held_out.combined.counts)
    outputs = {"consistency": np.array([-999]), "column_log_likelihood": np.full((1, width), -999)}
    found = held_out.combined(outputs, np.zeros((1, width)))
    assert found == pytest.approx((1 + WEIGHT) * math.log(1 / (1 + rows)))
