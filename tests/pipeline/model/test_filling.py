"""What fills a gap: means within the range of training, medians of numbers, weights that hold."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pipeline.model.cell_reference import CellReference
from pipeline.model.column_units import LARGEST
from pipeline.model.count_columns import Counts
from pipeline.model.number_columns import Positives, Reals
from pipeline.model.objective import LEAST_DRAWS, even_weights
from pipeline.model.word_columns import Words
from serving.schema import Column, Kind

ONE = torch.ones(1, 1, dtype=torch.float64)
"""The weight of a single draw."""


def limits(low: float, high: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([low]).double(), torch.tensor([high]).double()


def params(*values: float) -> torch.Tensor:
    return torch.tensor([[values]], dtype=torch.float64)


def test_weights_of_one_draw_alone_are_shared_until_half_of_the_draws_count() -> None:
    weights = torch.zeros(1, 256, dtype=torch.float64)
    weights[0, 3] = 1
    found = even_weights(weights)
    assert float(1 / found.square().sum()) == pytest.approx(LEAST_DRAWS, rel=1e-9)
    assert float(found.sum()) == pytest.approx(1, rel=1e-12)
    few = even_weights(torch.tensor([[1.0, 0, 0, 0, 0, 0, 0, 0]], dtype=torch.float64))
    assert float(1 / few.square().sum()) == pytest.approx(4, rel=1e-9)  # half of eight
    assert int(found.argmax()) == 3


@pytest.mark.parametrize(
    "weights", [[1.0], [0.9, 0.1], [0.25] * 4, [0.4, 0.3, 0.2, 0.1]], ids=["1", "2", "even", "4"]
)
def test_weights_that_are_even_enough_stay_as_they_are(weights: list[float]) -> None:
    given = torch.tensor([weights], dtype=torch.float64)
    torch.testing.assert_close(even_weights(given), given, rtol=1e-12, atol=0)


def test_a_narrow_log_normal_is_filled_by_its_mean() -> None:
    px = Positives([Column(name="x", kind="positive")])
    own = params(1.2, math.log(0.3))  # unfitted units: the log itself
    found = px.impute(own, ONE, limits(-LARGEST, LARGEST)).x
    assert float(found) == pytest.approx(math.exp(1.2 + 0.3**2 / 2), rel=0.01)


def test_a_wide_log_normal_is_filled_from_within_the_range_of_training() -> None:
    px = Positives([Column(name="x", kind="positive")])
    own = params(1.0, math.log(3.0))  # the mean is exp(5.5), 245
    found = float(px.impute(own, ONE, limits(-1.0, 2.0)).x)
    points = 1 + 3 * torch.special.ndtri((torch.arange(8).double() + 0.5) / 8)
    assert found == pytest.approx(float(points.clamp(-1, 2).exp().mean()), rel=1e-9)
    assert math.exp(-1) < found < math.exp(2)


def test_a_normal_column_is_filled_by_its_mean() -> None:
    px = Reals([Column(name="x", kind="real")])
    assert float(px.impute(params(0.7, 0.0), ONE, limits(-9, 9)).x) == pytest.approx(0.7, rel=1e-9)


def test_the_mean_of_a_count_is_held_to_the_counts_of_training() -> None:
    px = Counts([Column(name="x", kind="count")])
    both = torch.tensor([[[math.log(3.0), 0.0], [12.0, 0.0]]], dtype=torch.float64)
    halves = torch.full((1, 2), 0.5, dtype=torch.float64)
    assert float(px.impute(both, halves, limits(0, 9)).x) == pytest.approx((3 + 9) / 2, rel=1e-9)


@pytest.mark.parametrize(
    ("mean", "size", "largest", "close"),
    [(7.0, 2.0, 900.0, 1e-6), (30.0, 0.5, 51.0, 0.07), (90.0, 4.0, 120.0, 0.02)],
    ids=["no limit", "skewed", "broad"],
)
def test_a_count_is_filled_by_the_mean_of_what_training_may_have_had(
    mean: float, size: float, largest: float, close: float
) -> None:
    px = Counts([Column(name="x", kind="count")])
    found = px.impute(params(math.log(mean), math.log(size)), ONE, limits(0, largest)).x
    counts = np.arange(100_000)
    shares = stats.nbinom(size, size / (size + mean)).pmf(counts)
    held = float(shares @ np.minimum(counts, largest))
    assert float(found) == pytest.approx(held, rel=close)


def test_counts_that_are_nearly_all_0_are_not_filled_from_their_tail() -> None:
    px = Counts([Column(name="x", kind="count")])
    own = params(16.0, -5.0)  # nine of ten are 0; held to 51, the mean would be 51
    found = float(px.impute(own, ONE, limits(0, 51)).x)
    size, mean = math.exp(-5), math.exp(16)
    share_of_0 = (size / (size + mean)) ** size
    assert 0 < found < 1.2 * (1 - share_of_0) * 51


def test_a_category_of_numbers_is_filled_by_its_median_and_one_of_text_by_its_mode() -> None:
    words = ("20", "1", "5")
    px = Words(
        [
            Column(name="mark", kind="category", type="int", words=words),
            Column(name="short", kind="category", type="int", words=("8", "7")),
            Column(name="word", kind="category", type="text", words=words),
        ]
    )
    px.fit([np.arange(3.0), np.arange(2.0), np.arange(3.0)])
    shares = [0.4, 0.3, 0.3, 0.9, 0.3, 0.7, 0.9, 0.4, 0.3, 0.3, 0.9]  # `other` is not written
    found = px.impute(torch.tensor(shares).double().log()[None, None], ONE, limits(0, 0))
    assert found.x.tolist() == [[2, 1, 0]]  # 5, 7 and "20"
    np.testing.assert_allclose(found.gap.numpy(), [[0.1, 0.2, 0.1]], rtol=1e-6)


def test_the_limits_are_the_extremes_of_training_and_a_constant_column_has_none() -> None:
    kinds: tuple[Kind, ...] = ("real", "real", "count", "category")
    px = CellReference([Column(name=kind, kind=kind, words=("a",)) for kind in kinds])
    values = np.array([[-2, 7, 0, 0], [0.5, 7, 3, 0], [9, 7, 12, 0]], np.float32)
    px.fit(values, np.ones(values.shape, bool))
    low, high = px.limits()
    np.testing.assert_allclose(low.numpy(), [-2, -LARGEST, 0])
    np.testing.assert_allclose(high.numpy(), [9, LARGEST, 12], rtol=1e-6)
