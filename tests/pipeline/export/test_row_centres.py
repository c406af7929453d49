"""Training rows gathered around centres, for the distance of new rows from them."""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from pipeline.export import row_centres
from pipeline.export.row_centres import FEWEST_ROWS, MOST_CENTRES, find_centres
from serving.schema import Column, Kind, Schema
from tests.mixed_tables import SCHEMA, draw_rows


def test_centres_are_means_of_the_rows_that_are_nearest_to_them() -> None:
    train = draw_rows(4000)
    found = find_centres(SCHEMA, train)
    rows = found.codes.encode(train)
    squares = np.square(rows[:, None] - found.centres[None]).sum(-1)
    assert FEWEST_ROWS < len(found.centres) <= MOST_CENTRES
    assert found(train) == pytest.approx(np.sqrt(squares.min(1)), abs=1e-4)
    # random starts end a little above those of k-means++
    others = KMeans(len(found.centres), n_init=1, random_state=0).fit(rows)
    assert np.square(found(train)).sum() < 1.2 * others.inertia_
    nearest = squares.argmin(1)
    means = np.array([rows[nearest == place].mean(0) for place in range(len(found.centres))])
    assert np.abs(means - found.centres).mean() < 0.05


def test_no_centre_is_a_single_row(monkeypatch: pytest.MonkeyPatch) -> None:
    train = draw_rows(600, gaps=0)
    lone = slice(0, 40)
    train[lone, 0] += np.linspace(20, 60, 40, dtype=np.float32)
    train[lone, 3] = np.float32(1.5) ** np.arange(40)
    assert find_centres(SCHEMA, train)(train[lone]).min() > 0
    monkeypatch.setattr(row_centres, "FEWEST_ROWS", 1)
    assert find_centres(SCHEMA, train)(train[lone]).min() == 0


def test_numbers_are_in_units_of_the_training_rows() -> None:
    train = draw_rows(900)
    train[:20, 3] = 0  # of a positive number
    codes = find_centres(SCHEMA, train).codes
    smallest = np.nanmin(train[20:, 3])
    logs = np.log(np.maximum(train[:, 3], smallest))
    for place, values in ((0, train[:, 0]), (2, np.log1p(train[:, 2])), (3, logs)):
        assert codes.shift[place] == pytest.approx(np.nanmean(values, dtype=float), rel=1e-5)
        assert codes.scale[place] == pytest.approx(np.nanstd(values, dtype=float), rel=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_few_rows_and_columns_of_one_value_or_none_have_centres(rows: int) -> None:
    kinds: tuple[Kind, ...] = ("real", "count", "positive")
    columns = [Column(name=kind, kind=kind) for kind in kinds]
    train = np.tile(np.array([3, np.nan, 0], np.float32), (rows, 1))
    found = find_centres(Schema(columns=tuple(columns)), train)
    assert len(found.centres) == 1
    assert (found(train) == 0).all()


def test_of_many_rows_and_of_wide_tables_fewer_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    train = draw_rows(900)
    whole = find_centres(SCHEMA, train)
    codes = int((whole.codes.gap + 1).sum())
    monkeypatch.setattr(row_centres, "_MOST_CODES", 10 * codes)
    assert len(find_centres(SCHEMA, train).centres) <= 10
    monkeypatch.setattr(row_centres, "MOST_ROWS", 12)
    fewer = find_centres(SCHEMA, train)
    assert len(fewer.centres) <= 12 // FEWEST_ROWS
    assert fewer.codes.shift == pytest.approx(whole.codes.shift)  # of all rows
