"""P-values of a stream: exact ranks, and uniform at any number of held-out rows."""

from typing import Any

import numpy as np
import pytest

from serving.conformal import CELLS, ConformalStream

Array = np.ndarray[Any, Any]


def rank_directly(held: Array, scores: Array) -> list[float]:
    """Rank each score among the held-out ones that lay out no cells, and those before it."""
    chance = np.random.Generator(np.random.PCG64(0)).random(len(scores))
    seen, found = np.delete(held, np.s_[::8]).tolist(), []
    for score, u in zip(scores.tolist(), chance.tolist(), strict=True):
        seen.append(score)
        below, equal = (sum(test(each) for each in seen) for test in (score.__gt__, score.__eq__))
        found.append((below + u * equal) / len(seen))
    return found


def rank_all(held: Array, scores: Array, parts: int = 1) -> Array:
    stream = ConformalStream({"elbo": held})
    return np.concatenate([stream.rank(part[None])[0] for part in np.array_split(scores, parts)])


@pytest.mark.parametrize("parts", [1, 7, 200], ids="{} parts".format)
def test_a_p_value_is_the_rank_among_held_out_and_earlier_scores(parts: int) -> None:
    generator = np.random.default_rng(0)
    held, scores = (generator.integers(-20, 20, n).astype(np.float64) for n in (90, 200))
    assert rank_all(held, scores, parts) == pytest.approx(rank_directly(held, scores), abs=1e-15)


def distance_from_uniform(p: Array) -> float:
    """Return the statistic of Kolmogorov, times the root of the number: above 1.95 at 0.1 %."""
    ordered, n = np.sort(p), len(p)
    steps = np.arange(n + 1) / n
    far = max(np.max(steps[1:] - ordered), np.max(ordered - steps[:-1]))
    return float(far * np.sqrt(n))


def draw_streams(generator: np.random.Generator, kind: str, streams: int) -> list[Array]:
    """Draw streams of 24 held-out and 60 new rows each."""
    draws = {
        "smooth": lambda: generator.normal(-100, 9, 84),
        "few values": lambda: generator.integers(0, 3, 84) * 5.0,
        "outliers": lambda: generator.standard_cauchy(84) * 1e5,
        "one in three a gap": lambda: np.where(
            generator.random(84) < 0.3, 0, -generator.random(84)
        ),
        "bent by its mean": lambda: generator.normal(generator.normal(0, 30), 5, 84),
    }
    return [draws[kind]() for _ in range(streams)]


@pytest.mark.parametrize(
    "kind", ["smooth", "few values", "outliers", "one in three a gap", "bent by its mean"]
)
def test_p_values_of_few_held_out_rows_are_uniform_and_independent(kind: str) -> None:
    streams = draw_streams(np.random.default_rng(1), kind, 1500)
    # the draws that break ties are the same in all streams, and must not be
    found = []
    for index, stream in enumerate(streams):
        ranker = ConformalStream({"elbo": stream[:24]})
        ranker.break_ties_by(np.random.default_rng(index))
        found.append(ranker.rank(stream[None, 24:])[0])
    p = np.stack(found)
    assert distance_from_uniform(p[:, 0]) < 1.95
    assert distance_from_uniform(p[:, -1]) < 1.95
    assert distance_from_uniform(p.mean(1) * 1.0) > 1.95, "a mean is not uniform: the check works"
    for lag in (1, 5, 30):
        pairs = np.corrcoef(p[:, :-lag].ravel(), p[:, lag:].ravel())[0, 1]
        assert abs(pairs) < 4 / np.sqrt(p[:, lag:].size)
    # of independent uniform ones, the mean of a stream varies by 1 / (12 n)
    assert p.mean(1).var() * 12 * 60 == pytest.approx(1, abs=4 * np.sqrt(2 / 1500))


def test_ranks_among_the_held_out_rows_alone_are_not_independent() -> None:
    streams = draw_streams(np.random.default_rng(1), "smooth", 1500)
    fixed = np.stack([(s[24:, None] > s[:24]).mean(1) for s in streams])
    assert fixed.mean(1).var() * 12 * 60 > 3


def test_cells_are_narrow_at_the_median_and_hold_any_number() -> None:
    held = np.random.default_rng(0).normal(-1400, 30, 2000)
    stream = ConformalStream({"elbo": held})
    edges = stream._edges[0]
    assert len(edges) == CELLS - 1
    middle = np.diff(edges)[CELLS // 2]
    assert middle == pytest.approx(0.006 * 40, rel=0.1)
    odd = np.array([-np.inf, np.nan, -1e300, -1400, 1e300, np.inf])
    p = stream.rank(odd[None])[0]
    assert np.all((p >= 0) & (p < 1))
    assert stream.counts[0, 0] == 3
    assert stream.counts[0, -1] == 2


def test_most_rows_may_have_one_score_up_to_roundings() -> None:
    held = np.where(np.arange(400) % 5, 0.25, -np.arange(400.0))
    scores = np.full(500, 0.25) + np.random.default_rng(0).normal(0, 1e-6, 500)
    stream = ConformalStream({"a": held})
    stream.rank(scores[None])
    assert stream.counts.max() == 500 + 320 - sum(1 for n in range(0, 400, 8) if n % 5)


def test_a_restored_stream_goes_on_as_if_nothing_had_been() -> None:
    generator = np.random.default_rng(4)
    held = {"a": generator.normal(size=50), "b": generator.normal(size=70)}
    scores = generator.normal(size=(2, 90))
    whole, first, second = (ConformalStream(held) for _ in range(3))
    expected = whole.rank(scores)
    assert np.array_equal(first.rank(scores[:, :41]), expected[:, :41])
    second.restore(first.rows, first.counts)
    assert np.array_equal(second.rank(scores[:, 41:]), expected[:, 41:])


def test_the_order_of_held_out_rows_that_are_ranked_does_not_matter() -> None:
    generator = np.random.default_rng(5)
    held, scores = generator.normal(0, 9, 64), generator.normal(0, 9, 40)
    ranked = np.arange(64) % 8 > 0
    shuffled = held.copy()
    shuffled[ranked] = generator.permutation(held[ranked])
    assert np.array_equal(rank_all(shuffled, scores), rank_all(held, scores))
