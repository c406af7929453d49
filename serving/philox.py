"""Philox4x32-10, a counter-based generator: the random words of any row, without those before it.

Source: Salmon, Moraes, Dror & Shaw (2011), Parallel Random Numbers: As Easy as 1, 2, 3, sec. 3.3.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
Rows = NDArray[np.uint64]

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
WORDS = 4
"""Words of a block."""
LOW = 2**32 - 1
_FEW_ROWS, _FEW_BLOCKS = 8, 64
"""Up to so many rows, and blocks of all rows, are faster as Python's integers, measured; more as
arrays."""


def random_words(key: int, stream: int, rows: Rows, blocks: int) -> Words:
    """Return the words of rows, (rows, blocks * 4).

    Args:
        key: 64 bits.
        stream: 32 bits, word 1 of the counters.
        rows: the number of each row, words 2 and 3 of its counters.
        blocks: blocks of a row, whose numbers are word 0.
    """
    if len(rows) > _FEW_ROWS or len(rows) * blocks > _FEW_BLOCKS:
        return _in_arrays(key, stream, rows, blocks)
    words = b"".join(_in_integers(key, stream, int(row), blocks) for row in rows)
    return np.frombuffer(words, "<u4").reshape(len(rows), blocks * WORDS)


def _in_integers(key: int, stream: int, row: int, blocks: int) -> bytes:
    """Hold a word of all blocks in one large integer, 128 bits apart.

    A product has 64 bits at most, so that no block reaches into the next.
    """
    ones, lows, numbers, low_step, high_step = _lanes(blocks)
    a, b, c, d = numbers, stream * ones, (row & LOW) * ones, (row >> 32) * ones
    low, high = (key & LOW) * ones, (key >> 32) * ones
    for _ in range(ROUNDS):
        p, q = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b = q >> 32 & lows ^ b ^ low, q & lows
        c, d = p >> 32 & lows ^ d ^ high, p & lows
        low, high = low + low_step & lows, high + high_step & lows
    return (a | b << 32 | c << 64 | d << 96).to_bytes(16 * blocks, "little")


@lru_cache(_FEW_BLOCKS)
def _lanes(blocks: int) -> tuple[int, ...]:
    """Return for all blocks: a 1, the bits of a word, the block's number, the steps of the key."""
    ones = int.from_bytes((b"\1" + bytes(15)) * blocks, "little")
    numbers = sum(block << 128 * block for block in range(blocks))
    return ones, ones * LOW, numbers, *(ones * step for step in KEY_STEPS)


def _in_arrays(key: int, stream: int, rows: Rows, blocks: int) -> Words:
    """Hold words 0 and 2 of all blocks in one array, and words 1 and 3 in another."""
    shape = (2, len(rows), blocks)
    even, odd = np.empty(shape, np.uint32), np.empty(shape, np.uint32)
    even[0], odd[0] = np.arange(blocks), stream
    even[1], odd[1] = (rows & LOW)[:, None], (rows >> 32)[:, None]
    multipliers = np.array(MULTIPLIERS, np.uint64)[:, None, None]
    low, high = key & LOW, key >> 32
    for _ in range(ROUNDS):
        products = np.multiply(even, multipliers, dtype=np.uint64).astype("<u8", copy=False)
        halves = products.view("<u4").reshape(*shape, 2)[::-1]
        even = halves[..., 1] ^ odd
        even ^= np.array([low, high], np.uint32)[:, None, None]
        odd = halves[..., 0]
        low, high = (low + KEY_STEPS[0]) & LOW, (high + KEY_STEPS[1]) & LOW
    words = np.empty((len(rows), blocks, WORDS), np.uint32)
    words[..., 0::2], words[..., 1::2] = even.transpose(1, 2, 0), odd.transpose(1, 2, 0)
    return words.reshape(len(rows), blocks * WORDS)
