"""The density of a value among all rows sums to 1, and is that of the training rows."""

import numpy as np
import pytest
import torch

from pipeline.model.cell_reference import CellReference
from serving.schema import Column

WORDS = Column(name="a", kind="category", words=("x", "y", "z"))
REAL, COUNT = Column(name="b", kind="real"), Column(name="c", kind="count")


def fitted(column: Column, values: np.ndarray) -> CellReference:
    reference = CellReference([column])
    reference.fit(values[:, None], np.ones((len(values), 1), bool))
    return reference


def density(reference: CellReference, values: np.ndarray) -> np.ndarray:
    found = reference(torch.from_numpy(values).float()[:, None])
    return np.asarray(found[:, 0].double().exp().numpy())


def test_words_have_half_their_share_and_half_an_even_one() -> None:
    found = density(fitted(WORDS, np.repeat([0, 1, 2], [60, 30, 10])), np.arange(4))
    shares = (np.array([60, 30, 10, 0]) + 0.5) / 102
    np.testing.assert_allclose(found, shares / 2 + 1 / 8, rtol=1e-6)
    assert found.sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("values", [np.arange(7) % 4, np.arange(900), np.zeros(9)])
def test_counts_sum_to_one(values: np.ndarray) -> None:
    whole = np.arange(values.max() + 1)
    assert density(fitted(COUNT, values), whole).sum() == pytest.approx(1, abs=2e-2)


def test_numbers_integrate_to_one_and_follow_the_rows() -> None:
    values = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    reference = fitted(REAL, values)
    grid = np.linspace(values.min(), values.max(), 200_001)
    found = density(reference, grid)
    assert np.trapezoid(found, grid) == pytest.approx(1, abs=1e-3)
    even = 1 / np.ptp(values)
    normal = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi)
    middle = np.abs(grid) < 1
    np.testing.assert_allclose(found[middle], (normal[middle] + even) / 2, rtol=0.35)
    beyond = density(reference, np.array([-1e6, 1e6]))
    np.testing.assert_allclose(beyond, even / 2, rtol=1e-5)


def test_columns_have_places_of_their_own() -> None:
    rows = np.stack([np.linspace(0, 1, 60), np.arange(60) % 5, np.arange(60) % 3], -1)
    columns = (REAL, COUNT, WORDS)
    together = CellReference(columns)
    together.fit(rows, np.ones(rows.shape, bool))
    alone = [fitted(column, rows[:, i]) for i, column in enumerate(columns)]
    found = together(torch.from_numpy(rows).float())
    for index, reference in enumerate(alone):
        expected = reference(torch.from_numpy(rows[:, index : index + 1]).float())
        torch.testing.assert_close(found[:, index : index + 1], expected)


def test_gaps_are_not_counted() -> None:
    values, seen = np.array([[0.0], [0], [1], [2]]), np.array([[True], [True], [True], [False]])
    reference = CellReference([WORDS])
    reference.fit(values, seen)
    expected = density(fitted(WORDS, np.array([0.0, 0, 1])), np.arange(4))
    np.testing.assert_allclose(density(reference, np.arange(4)), expected)


@pytest.mark.parametrize("column", [REAL, COUNT, WORDS])
def test_a_column_without_a_value_has_a_density(column: Column) -> None:
    found = density(fitted(column, np.zeros(0)), np.array([0.0, 1, 3]))
    assert np.isfinite(found).all()
