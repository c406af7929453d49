import math

import numpy as np
import pytest

from serving.batch.streaming_histogram import StreamingHistogram

GENERATOR = np.random.default_rng(0)
VALUES = {
    "bounds of images": GENERATOR.gumbel(-100, 30, 5000),
    "both signs": GENERATOR.normal(0, 1e-3, 5000),
    "one value": np.full(300, -5.5),
    "far outliers": np.concatenate([GENERATOR.normal(-100, 10, 5000), [-1e30, 1e30, 0.0, -0.0]]),
}


def histogram_of(values: np.ndarray, parts: int = 4) -> StreamingHistogram:
    result = StreamingHistogram()
    for part in np.array_split(values.astype(np.float32), parts):
        result.add(part)
    return result


@pytest.mark.parametrize("name", VALUES)
def test_gives_what_numpy_gives_for_all_values_at_once(name: str) -> None:
    values = VALUES[name].astype(np.float32).astype(np.float64)
    found = histogram_of(values)
    assert found.rows == len(values)
    assert (found.least, found.most) == (values.min(), values.max())
    assert found.mean == pytest.approx(values.mean(), rel=1e-12, abs=np.abs(values).max() * 1e-14)
    assert found.sd == pytest.approx(values.std(), rel=1e-9)
    for share in (0, 0.001, 0.25, 0.5, 0.99, 1):
        expected = np.quantile(values, share, method="inverted_cdf")
        assert found.quantile(share) == pytest.approx(expected, rel=1 / 2048, abs=1e-38)


def test_bins_hold_the_shares_of_the_values() -> None:
    values = VALUES["bounds of images"].astype(np.float32)
    edges = np.linspace(-150, 0, 31)
    expected = np.histogram(values, [-np.inf, *edges[1:-1], np.inf])[0] / len(values)
    assert histogram_of(values).histogram(edges) == pytest.approx(expected, abs=0.002)
    assert histogram_of(values).histogram(edges).sum() == pytest.approx(1)


def test_values_that_are_counted_together_are_spread_over_the_bins() -> None:
    values = np.random.default_rng(1).uniform(-100_032, -99_968, 20_000)  # 32 apart are one
    edges = np.linspace(-100_032, -99_968, 9)
    assert histogram_of(values).histogram(edges) == pytest.approx(np.full(8, 1 / 8), abs=0.01)


def test_a_part_without_values_changes_nothing() -> None:
    found = histogram_of(np.array([1.0, 2.0]), parts=5)
    assert (found.rows, found.mean) == (2, 1.5)
    assert math.isnan(StreamingHistogram().mean)
    assert math.isnan(StreamingHistogram().sd)
