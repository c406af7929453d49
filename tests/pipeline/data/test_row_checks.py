"""What float32 does not hold is refused by name; the bounds are computed here in another way."""

import re
from fractions import Fraction

import numpy as np
import pytest

from pipeline.data.row_checks import MAX_LOSS, Float32Check, check_rows
from serving.errors import DataRefused
from serving.value_range import MAX_EXACT

NAMES = ("a", "b")
RANDOM = np.random.default_rng(0)


def check(values: np.ndarray, whole: tuple[bool, ...] = (), batch: int = 7) -> None:
    found = Float32Check("x.csv", NAMES, whole)
    for start in range(0, len(values), batch):
        found.watch(values[start : start + batch])
    found.finish()


def exact_loss(column: np.ndarray) -> float:
    """Return rounding error over spread, both as root mean squares, in exact fractions."""
    values = [Fraction(value) for value in column.tolist()]
    mean = sum(values, Fraction()) / len(values)
    spread = sum((value - mean) ** 2 for value in values)
    error = sum((value - Fraction(float(np.float32(value)))) ** 2 for value in values)
    return float(float(error / spread) ** 0.5)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e4, 1e5, 1e6, 1e9, -1e7])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_a_feature_is_refused_if_rounding_takes_too_much_of_its_spread(
    offset: float, scale: float
) -> None:
    column = offset + scale * RANDOM.normal(size=200)
    values: np.ndarray = np.stack([RANDOM.normal(size=200), column], 1)
    if exact_loss(column) > MAX_LOSS:
        with pytest.raises(DataRefused, match="column 'b' would be rounded by"):
            check(values)
    else:
        check(values)


@pytest.mark.parametrize("largest", [MAX_EXACT, MAX_EXACT + 1, 2**40, -(2**40)])
@pytest.mark.parametrize("kind", [np.int64, np.float64])
def test_whole_numbers_beyond_what_float32_counts_are_refused(largest: int, kind: type) -> None:
    values: np.ndarray = np.array([[1, 2], [3, largest], [5, 6]], kind)
    if abs(largest) <= MAX_EXACT:
        check(values, (True, True))
        return
    with pytest.raises(DataRefused, match="column 'b' must be whole numbers from -16777216 to"):
        check(values, (True, True))


def test_floats_that_happen_to_be_whole_are_judged_by_their_spread() -> None:
    check(np.array([[1, 2], [3, 1e9], [5, -1e9]], np.float64), (True, False))


@pytest.mark.parametrize("gap", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_hides_no_rounding(gap: float) -> None:
    column = 1e9 + RANDOM.normal(size=50)
    column[[0, 3, 44]] = gap
    with pytest.raises(DataRefused, match="column 'b' would be rounded"):
        check(np.stack([np.zeros(50), column], 1))


def test_constant_features_and_plain_types_pass() -> None:
    check(np.full((9, 2), 1.7e9 + 0.1))
    for kind in (np.float32, np.uint8):
        check(np.arange(20, dtype=kind).reshape(10, 2))


def test_arrays_are_judged_by_feature_and_number() -> None:
    x = RANDOM.normal(size=(60, 2, 3))
    x[:, 1, 0] += 1e9
    with pytest.raises(DataRefused, match=r"x\.npy: feature 3 would be rounded by"):
        check_rows("x.npy", x)


def test_a_value_far_from_all_others_is_named_with_its_row() -> None:
    x = RANDOM.normal(size=(300, 2)).astype(np.float32)
    for far in (1e20, -1e8, 3e7):
        spoilt = x.copy()
        spoilt[17, 1] = far
        with pytest.raises(DataRefused, match=re.escape(f"'b' holds {far:g} in row 17, but")):
            check_rows("x.csv", spoilt, NAMES)
    spoilt[17, 1] = 1e6
    check_rows("x.csv", spoilt, NAMES)


@pytest.mark.parametrize(
    ("others", "far"), [({}, 1e20), ({3: 2.0, 5: -4.0}, 1e20), ({3: 2.0}, 9e6)], ids=str
)
def test_a_far_value_is_named_where_nearly_all_others_are_equal(
    others: dict[int, float], far: float
) -> None:
    x = RANDOM.normal(size=(300, 2, 2)).astype(np.float32)
    x[:, 1, 0] = 7
    for row, value in others.items():
        x[row, 1, 0] = value
    check_rows("x.npy", x)
    x[[17, 18], 1, 0] = far, 9
    with pytest.raises(DataRefused, match=re.escape(f"feature 2 holds {far:g} in row 17, but")):
        check_rows("x.npy", x)


def test_rare_and_constant_values_are_no_outliers() -> None:
    x = np.zeros((300, 2), np.float32)
    x[:10, 0] = 1e6
    x[:, 1] = 4e9
    check_rows("x.csv", x, NAMES)


def test_rows_with_gaps_are_left_out_if_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    x = RANDOM.normal(size=(30, 2, 2)).astype(np.float32)
    x[[3, 8], 1, 0] = np.nan
    with pytest.raises(DataRefused, match=r"2 of 30 rows are not, .* --drop-missing"):
        check_rows("x.npy", x)
    kept, mask = check_rows("x.npy", x, drop_missing=True)
    np.testing.assert_array_equal(kept, np.delete(x, [3, 8], 0), strict=True)
    assert np.flatnonzero(~mask).tolist() == [3, 8]
    assert "x.npy: 2 rows with missing values are left out" in capsys.readouterr().err
    x[0, 0, 0] = np.inf
    with pytest.raises(DataRefused, match="must be finite: 1 of 28 rows"):
        check_rows("x.npy", x, drop_missing=True)
