"""The order of rows that are read in blocks."""

from collections.abc import Sequence
from itertools import pairwise
from threading import Event

import numpy as np
import pytest

from pipeline.data.streamed_rows import MappedRows
from pipeline.training.windows import WINDOW_ROWS, choose_window, largest_window, read_windows
from tests.pipeline.training.streamed import Array, BlockRows


def numbers(rows: int, block_rows: int) -> BlockRows:
    """Return rows of one value each, which is their number."""
    return BlockRows(np.arange(rows, dtype=np.float32)[:, None], block_rows)


def order_of(x: BlockRows, window_rows: int, *, epoch: int = 1, passes: int = 1) -> Array:
    """Return the numbers of the rows in the order of an epoch."""
    windows = read_windows(x, window_rows, seed=3, epoch=epoch, passes=passes)
    return np.concatenate([window.x[window.order, 0] for window in windows]).astype(int)


def philox(seed: int, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


@pytest.mark.parametrize(
    ("rows", "block_rows", "window_rows"),
    [(1000, 16, 100), (1000, 16, 5000), (1001, 1000, 10), (7, 1, 1), (1, 5, 3)],
    ids=["windows", "one window", "a block is larger than a window", "single rows", "one row"],
)
def test_every_row_comes_once_in_a_pass(rows: int, block_rows: int, window_rows: int) -> None:
    x = numbers(rows, block_rows)
    order = order_of(x, window_rows, passes=3).reshape(3, rows)
    np.testing.assert_array_equal(np.sort(order), np.tile(np.arange(rows), (3, 1)))
    assert sorted(x.read) == sorted([*range(len(x.blocks))] * 3)


def test_the_order_is_the_one_that_numpy_draws_from_the_same_seeds() -> None:
    """19 blocks of 10 rows and one of 5 make 4 windows: of 5 blocks, or of 45 rows."""
    expected: list[Array] = []
    for number in range(2):
        windows: list[list[int]] = [[]]
        for block in philox(3, 5, number).permutation(20):
            rows = range(10 * block, min(10 * block + 10, 195))
            if len(windows[-1]) + len(rows) > 50:
                windows.append([])
            windows[-1] += rows
        assert len(windows) == 4
        for window, rows_of in enumerate(windows):
            order = philox(3, 5, number, window).permutation(len(rows_of))
            expected.append(np.array(rows_of)[order])
    order = order_of(numbers(195, 10), 50, epoch=5, passes=2)
    np.testing.assert_array_equal(order, np.concatenate(expected))


def test_each_epoch_and_each_pass_has_an_order_of_its_own() -> None:
    x = numbers(300, 10)
    orders = [order_of(x, 100, epoch=epoch, passes=2).reshape(2, 300) for epoch in (1, 2, 1)]
    np.testing.assert_array_equal(orders[0], orders[2])
    different = [*orders[0], *orders[1]]
    equal = [(a == b).mean() for i, a in enumerate(different) for b in different[:i]]
    assert max(equal) < 0.05


@pytest.mark.parametrize("position", [0, 1, 49, 50, 51, 199, 200, 333, 399])
def test_a_resumed_epoch_reads_only_the_windows_that_are_left(position: int) -> None:
    x = numbers(200, 10)
    whole = [*read_windows(x, 50, seed=1, epoch=2, passes=2)]
    x.read.clear()
    left = [*read_windows(x, 50, seed=1, epoch=2, passes=2, position=position)]
    skipped = position // 50
    assert [window.start for window in left] == [50 * number for number in range(skipped, 8)]
    assert len(x.read) == 5 * (8 - skipped)
    for window, same in zip(left, whole[skipped:], strict=True):
        np.testing.assert_array_equal(window.x, same.x)
        np.testing.assert_array_equal(window.order, same.order)


def test_windows_are_equal_up_to_a_block_and_not_larger_than_allowed() -> None:
    windows = [*read_windows(numbers(1010, 10), 260, seed=0, epoch=1)]
    sizes = [len(window.x) for window in windows]
    assert len(sizes) == 4
    assert max(sizes) - min(sizes) <= 10
    assert max(sizes) <= 260


class UnevenBlocks(BlockRows):
    """Rows in blocks of drawn sizes."""

    sizes: Sequence[int] = ()

    @property
    def blocks(self) -> Sequence[range]:
        return [range(*ends) for ends in pairwise([0, *np.cumsum(self.sizes).tolist()])]


@pytest.mark.parametrize("seed", range(50))
def test_a_window_is_larger_than_allowed_only_if_it_is_a_single_block(seed: int) -> None:
    rng = np.random.default_rng(seed)
    largest, window_rows = int(rng.integers(1, 60)), int(rng.integers(1, 100))
    sizes = rng.integers(1, largest + 1, rng.integers(1, 80)).tolist()
    x = UnevenBlocks(np.arange(sum(sizes), dtype=np.float32)[:, None], 0)
    x.sizes = sizes
    found = []
    for window in read_windows(x, window_rows, seed=seed, epoch=1):
        found.append(len(window.x))
        assert found[-1] <= window_rows or len(x.read) == 1
        x.read.clear()
    assert sum(found) == sum(sizes)
    assert max(found) <= largest_window(x, window_rows)
    if len(found) > 1:
        assert min(found) > window_rows / 2 - max(sizes)


def test_the_largest_window_is_told() -> None:
    x = numbers(100, 30)
    found = [largest_window(x, window_rows) for window_rows in (1, 30, 50, 100, 500)]
    assert found == [30, 30, 50, 100, 100]


def test_the_blocks_of_a_window_are_read_in_the_order_of_the_file() -> None:
    x = numbers(1000, 10)
    read = []
    for _ in read_windows(x, 250, seed=0, epoch=1):
        assert x.read == sorted(x.read)
        assert len(x.read) == 25
        read.append(x.read.copy())
        x.read.clear()
    assert sorted(np.concatenate(read)) == [*range(100)]
    assert read[0] != [*range(25)]


def test_reading_ends_between_two_blocks_when_it_is_closing() -> None:
    closing = Event()
    x = numbers(100, 10)
    x.before_read = lambda block: closing.set() if len(x.read) == 3 else None
    assert [*read_windows(x, 100, seed=0, epoch=1, closing=closing)] == []
    assert len(x.read) == 4


def spread(order: Array, batch: int = 128) -> float:
    """Return the mean distance of neighbours in a batch, of their places among all rows.

    It is a third for rows drawn at random, and near 0 for rows in the order of the file.
    """
    batches = order[: len(order) // batch * batch].reshape(-1, batch) / len(order)
    return float(np.abs(np.diff(batches)).mean())


def test_a_batch_is_spread_over_the_rows_nearly_as_in_a_full_permutation() -> None:
    """Windows are a tenth of the rows, of 64 blocks each."""
    rows = 128_000
    x = numbers(rows, 200)
    full = spread(philox(0).permutation(rows))
    one_window = spread(order_of(x, rows))
    windows = spread(order_of(x, rows // 10))
    unshuffled = spread(np.arange(rows))
    assert full == pytest.approx(1 / 3, rel=0.01)
    assert one_window == pytest.approx(1 / 3, rel=0.01)
    assert windows == pytest.approx(1 / 3, rel=0.03)
    assert unshuffled < 0.001


def test_labels_that_are_sorted_in_the_file_are_mixed_in_each_batch() -> None:
    """Ten classes in sorted rows; windows are a tenth of the rows, of 64 blocks each.

    The variance of the number of rows of a class in a batch is compared with that by chance.
    """
    rows, batch = 128_000, 128
    classes = np.arange(rows) * 10 // rows

    def excess(order: Array) -> float:
        counts = np.stack(
            [np.bincount(row, minlength=10) for row in classes[order.reshape(-1, batch)]]
        )
        return float(counts.var(0).mean() / (batch * 0.1 * 0.9))

    x = numbers(rows, 200)
    assert excess(order_of(x, rows)) == pytest.approx(1, abs=0.1)
    assert excess(order_of(x, rows // 10)) < 3.5
    assert excess(np.arange(rows)) > 50


def test_a_window_has_100_000_rows_unless_the_memory_is_too_small() -> None:
    wide = BlockRows(np.zeros((4, 12_288), np.uint8), 1)
    assert choose_window(wide, 1, 64 << 30) == WINDOW_ROWS >= 2 * 100_000  # two halves at least
    assert choose_window(wide, 1, 1 << 30) == (1 << 30) // 8 // (12_288 + 8)
    assert choose_window(wide, 1, 1) == 1
    narrow = BlockRows(np.zeros((4, 64), np.float32), 1)
    assert choose_window(narrow, 1, 64 << 30) == (1 << 30) // (256 + 8)


def test_mapped_rows_have_one_order_if_it_fits_in_its_share_of_the_memory() -> None:
    x = MappedRows(np.zeros((1000, 3), np.float32), np.arange(0))
    assert choose_window(x, 1, 64_000) == 0
    assert choose_window(x, 1, 63_999) == 63_999 // 8 // (12 + 8)
    assert choose_window(x, 2, 64_000) > 0
    assert choose_window(x, 2, 128_000) == 0
