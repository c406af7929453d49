from itertools import pairwise

import numpy as np
import pytest

from serving.errors import UsageRefused
from serving.noise import BLOCK, MAX_SEED, draw_rows


def test_rows_are_those_of_a_philox_counter_per_block() -> None:
    rows = draw_rows(7, 0, 2 * BLOCK + 10, 3)
    for block in range(3):
        philox = np.random.Philox(key=7, counter=[0, 0, 0, block])
        expected = np.random.Generator(philox).standard_normal((BLOCK, 3), np.float32)
        part = rows[block * BLOCK : (block + 1) * BLOCK]
        np.testing.assert_array_equal(part, expected[: len(part)], strict=True)


def test_the_noise_of_a_seed_is_fixed_for_good() -> None:
    expected = [
        [-0.2933390140533447, 1.703830599784851, 1.5391918420791626],
        [0.6367538571357727, 0.5348485112190247, -0.6393057703971863],
    ]
    np.testing.assert_array_equal(draw_rows(7, 0, 2, 3), np.array(expected, np.float32))


@pytest.mark.parametrize("stop", [0, 1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK])
def test_fewer_rows_are_the_first_of_more(stop: int) -> None:
    np.testing.assert_array_equal(
        draw_rows(3, 0, stop, 4), draw_rows(3, 0, 2 * BLOCK + 7, 4)[:stop], strict=True
    )


@pytest.mark.parametrize(
    "cuts",
    [
        (0, 2500),
        (0, 1, 2, 3, 2500),
        (0, BLOCK - 1, BLOCK, BLOCK + 1, 2500),
        (0, BLOCK, 2 * BLOCK, 2500),
        (0, 700, 700, 1400, 2100, 2500),
        (BLOCK - 3, BLOCK + 3, 2 * BLOCK + 5),
        tuple(range(0, 2501, 100)),
    ],
    ids=["whole", "single", "around a block", "blocks", "across", "not from 0", "hundreds"],
)
def test_any_split_into_ranges_gives_the_same_bytes(cuts: tuple[int, ...]) -> None:
    whole = draw_rows(11, 0, 2500, 5)[cuts[0] : cuts[-1]]
    pieces = [draw_rows(11, start, stop, 5) for start, stop in pairwise(cuts)]
    assert b"".join(piece.tobytes() for piece in pieces) == whole.tobytes()


def test_rows_far_away_need_not_the_ones_before_them() -> None:
    start = 10**12
    far = draw_rows(0, start, start + BLOCK, 2)
    assert far.shape == (BLOCK, 2)
    np.testing.assert_array_equal(far[9:], draw_rows(0, start + 9, start + BLOCK, 2), strict=True)


def test_values_are_standard_normal() -> None:
    rows = draw_rows(0, 0, 100 * BLOCK, 2).astype(np.float64)
    deviation = 1 / np.sqrt(rows.size)
    assert abs(rows.mean()) < 4 * deviation
    assert abs(rows.var() - 1) < 4 * np.sqrt(2) * deviation
    assert abs((rows**3).mean()) < 4 * np.sqrt(15) * deviation
    assert abs((rows**4).mean() - 3) < 4 * np.sqrt(96) * deviation
    assert abs((rows[:, 0] * rows[:, 1]).mean()) < 4 * np.sqrt(2) * deviation
    assert abs((rows[:-BLOCK] * rows[BLOCK:]).mean()) < 4 * deviation * np.sqrt(2)


def test_rows_blocks_and_seeds_all_differ() -> None:
    rows = np.concatenate([draw_rows(seed, 0, 3 * BLOCK, 4) for seed in (0, 1, 2, MAX_SEED)])
    assert len(np.unique(rows, axis=0)) == 4 * 3 * BLOCK


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (5, 5), (9, 2)])
def test_an_empty_range_has_no_rows(start: int, stop: int) -> None:
    rows = draw_rows(0, start, stop, 3)
    assert rows.shape == (0, 3)
    assert rows.dtype == np.float32


@pytest.mark.parametrize("seed", [-1, 2**63, 2**70], ids=["negative", "2^63", "2^70"])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(UsageRefused) as caught:
        draw_rows(seed, 0, 1, 1)
    assert str(caught.value) == f"seed must be from 0 to 9223372036854775807, got {seed}"
    assert caught.value.exit_code == 2
