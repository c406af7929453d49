from hashlib import sha256
from itertools import pairwise

import numpy as np
import pytest

from serving.errors import UsageRefused
from serving.noise import (
    MAX_SEED,
    draw_eps,
    draw_fillings,
    draw_noise,
    draw_rows,
    hash_rows,
    noise_vectors,
)
from serving.normals import normals_of
from serving.philox import random_words

CHUNK = 2**16 // 8  # rows of five columns, two blocks each, that are drawn at a time


def test_rows_are_normals_of_the_words_that_the_specification_names() -> None:
    """docs/noise.md: block b of row r has the counter (b, 0, r mod 2³², r div 2³²)."""
    number = 5 * 2**32 + 9
    words = random_words(2**40 + 3, 0, np.array([number], np.uint64), 2)
    expected = normals_of(words)[:, :7]
    np.testing.assert_array_equal(draw_rows(2**40 + 3, number, number + 1, 7), expected)


def test_the_noise_of_a_seed_is_fixed_for_good() -> None:
    expected = [
        [-0.056934840977191925, 0.31843873858451843, 1.5796923637390137],
        [0.6823150515556335, -1.3666492700576782, -1.0126620531082153],
    ]
    np.testing.assert_array_equal(draw_rows(7, 0, 2, 3), np.array(expected, np.float32))


@pytest.mark.parametrize("stop", [0, 1, 8, 9, CHUNK - 1, CHUNK, CHUNK + 1])
def test_fewer_rows_and_columns_are_the_first_of_more(stop: int) -> None:
    more = draw_rows(3, 0, 2 * CHUNK + 7, 5)
    np.testing.assert_array_equal(draw_rows(3, 0, stop, 5), more[:stop], strict=True)
    np.testing.assert_array_equal(draw_rows(3, 0, stop, 2), more[:stop, :2], strict=True)


@pytest.mark.parametrize(
    "cuts",
    [
        (0, 20_000),
        (0, 1, 2, 3, 20_000),
        (0, CHUNK - 1, CHUNK, CHUNK + 1, 20_000),
        (0, 700, 700, 1400, 2100, 20_000),
        (CHUNK - 3, CHUNK + 3, 2 * CHUNK + 5),
        tuple(range(0, 20_001, 1000)),
    ],
    ids=["whole", "single", "around a chunk", "across", "not from 0", "thousands"],
)
def test_any_split_into_ranges_gives_the_same_bytes(cuts: tuple[int, ...]) -> None:
    whole = draw_rows(11, 0, 20_000, 5)[cuts[0] : cuts[-1]]
    pieces = [draw_rows(11, start, stop, 5) for start, stop in pairwise(cuts)]
    assert b"".join(piece.tobytes() for piece in pieces) == whole.tobytes()


def test_rows_far_away_need_not_the_ones_before_them() -> None:
    start = MAX_SEED - 30
    far = draw_rows(0, start, start + 30, 2)
    assert far.shape == (30, 2)
    np.testing.assert_array_equal(far[9:], draw_rows(0, start + 9, start + 30, 2), strict=True)


def test_values_are_standard_normal() -> None:
    rows = draw_rows(0, 0, 100_000, 5).astype(np.float64)
    deviation = 1 / np.sqrt(rows.size)
    assert abs(rows.mean()) < 4 * deviation
    assert abs(rows.var() - 1) < 4 * np.sqrt(2) * deviation
    assert abs((rows**3).mean()) < 4 * np.sqrt(15) * deviation
    assert abs((rows**4).mean() - 3) < 4 * np.sqrt(96) * deviation
    for other in (np.roll(rows, 1, axis=0), np.roll(rows, 1, axis=1)):
        assert abs((rows * other).mean()) < 4 * deviation


def test_rows_blocks_seeds_and_hashed_rows_all_differ() -> None:
    numbered = [draw_rows(seed, 0, 3000, 4) for seed in (0, 1, 2, MAX_SEED)]
    hashed = draw_eps(np.arange(3000, dtype=np.float32)[:, None], 0, 1, 4)[:, 0]
    cells = [draw_noise(seed, 0, 3000, 4) for seed in (0, 1)]
    x = np.arange(3000, dtype=np.float32)[:, None]
    filled = draw_fillings(x, 0, 1, 4)[0][:, 0]
    rows = np.concatenate([*numbered, hashed, *cells, filled])
    assert len(np.unique(rows, axis=0)) == 8 * 3000


def test_the_streams_are_those_of_the_specification() -> None:
    """Word 1 of the counter: 2 for cells of samples, 3 and 4 for those that fill gaps."""
    numbers = np.array([5, 6], np.uint64)
    np.testing.assert_array_equal(
        draw_noise(7, 5, 7, 6), normals_of(random_words(7, 2, numbers, 2))[:, :6]
    )
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    noise, choice = draw_fillings(x, 7, 5, 3)
    normals = normals_of(random_words(7, 3, hash_rows(x), 4))[:, :15]
    np.testing.assert_array_equal(noise, normals.reshape(2, 5, 3))
    words = random_words(7, 4, hash_rows(x), 2)[:, :5]
    np.testing.assert_array_equal(choice, (words + 0.5) / 2**32)


@pytest.mark.parametrize("dtype", ["uint8", "float32", ">f4"])
def test_a_row_of_data_is_hashed_by_its_little_endian_bytes(dtype: str) -> None:
    x = np.random.default_rng(0).integers(0, 200, (4, 3, 2)).astype(dtype)
    for row, number in zip(x.astype(np.dtype(dtype).newbyteorder("<")), hash_rows(x), strict=True):
        assert int(number) == int.from_bytes(sha256(row.tobytes()).digest()[:8], "little")


def test_a_row_has_its_noise_wherever_it_stands() -> None:
    x = np.random.default_rng(0).integers(0, 255, (300, 6, 5), np.uint8)
    eps = draw_eps(x, 7, 3, 5)
    assert eps.shape == (300, 3, 5)
    order = np.random.default_rng(1).permutation(300)
    np.testing.assert_array_equal(draw_eps(x[order], 7, 3, 5), eps[order], strict=True)
    turned = np.asfortranarray(x)
    np.testing.assert_array_equal(draw_eps(turned, 7, 3, 5), eps, strict=True)
    np.testing.assert_array_equal(draw_eps(x[3:4], 7, 3, 5), eps[3:4], strict=True)
    np.testing.assert_array_equal(draw_eps(x, 7, 1, 5), eps[:, :1], strict=True)
    assert draw_eps(x[:0], 7, 3, 5).shape == (0, 3, 5)


def test_vectors_are_of_rows_around_the_end_of_a_word() -> None:
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    vectors = noise_vectors(x, 5)
    assert vectors["noise.eps"].shape == (3, 3, 5)
    assert vectors["score_noise.eps"].shape == (3, 4, 2, 5)
    np.testing.assert_array_equal(vectors["noise.eps"][1], draw_rows(7, 2**32 - 1, 2**32 + 2, 5))
    drawn = draw_noise(7, 2**32 - 1, 2**32 + 2, 40)
    np.testing.assert_array_equal(vectors["draw_noise.eps"][1], drawn[:, :5])
    np.testing.assert_array_equal(vectors["score_noise.eps"][1], draw_eps(x, 7, 2, 5))


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


def test_rows_that_differ_in_the_sign_of_a_zero_have_the_same_hash() -> None:
    """A decimal has no negative zero, and a float may have one: they are equal rows."""
    rows = np.array([[0.0, 1.0], [-0.0, 1.0]], np.float32)
    first, second = hash_rows(rows).tolist()
    assert first == second == int.from_bytes(sha256(rows[0].tobytes()).digest()[:8], "little")
