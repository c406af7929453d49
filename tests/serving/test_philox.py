import numpy as np
import pytest

from serving.philox import random_words


@pytest.mark.parametrize(("rows", "blocks"), [(1, 3), (8, 3), (9, 3), (50, 3), (1, 64), (2, 33)])
@pytest.mark.parametrize("key", [0, 2**32 - 1, 2**63 + 12345, 2**64 - 1])
def test_every_block_is_that_of_a_plain_loop(rows: int, blocks: int, key: int) -> None:
    numbers = np.random.default_rng(0).integers(0, 2**64, rows, np.uint64)
    found = random_words(key, 2**32 - 1, numbers, blocks).reshape(rows, blocks, 4)
    for row, number in enumerate(numbers.tolist()):
        for block in range(blocks):
            expected = philox((block, 2**32 - 1, number & 0xFFFFFFFF, number >> 32), key)
            assert tuple(found[row, block].tolist()) == expected


def test_no_large_integer_is_made_for_a_long_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that it takes to number its blocks grows with the square of their count."""
    monkeypatch.setattr("serving.philox._in_integers", None)
    assert random_words(0, 0, np.zeros(1, np.uint64), 20_000).shape == (1, 80_000)


@pytest.mark.parametrize(("rows", "blocks"), [(0, 2), (3, 0), (20, 0)])
def test_nothing_to_draw_has_no_words(rows: int, blocks: int) -> None:
    assert random_words(0, 0, np.zeros(rows, np.uint64), blocks).shape == (rows, 4 * blocks)


def philox(counter: tuple[int, int, int, int], key: int) -> tuple[int, int, int, int]:
    """Salmon et al. (2011), as they write it: ten rounds, the key raised after each."""
    a, b, c, d = counter
    low, high = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (q >> 32) ^ b ^ low, q & 0xFFFFFFFF, (p >> 32) ^ d ^ high, p & 0xFFFFFFFF
        low, high = (low + 0x9E3779B9) % 2**32, (high + 0xBB67AE85) % 2**32
    return a, b, c, d


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            0xFFFFFFFFFFFFFFFF,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_the_plain_loop_gives_the_words_that_its_authors_publish(
    counter: tuple[int, int, int, int], key: int, words: tuple[int, int, int, int]
) -> None:
    """The known answers of Random123 for philox4x32-10."""
    assert philox(counter, key) == words
