"""Draw standard-normal noise from a seed: the same bytes on every machine and in every language.

docs/noise.md is the specification: the words of Philox4x32-10 as normals, four columns a block. The
key is the seed; the counter is the number of the block within its row, what the row is for, and the
number of the row. Any range of rows can be drawn without the rows before it. Graphs have no random
operation: noise is their input `eps`.
"""

from collections.abc import Iterable
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import UsageRefused
from serving.normals import normals_of
from serving.philox import WORDS, random_words

Eps = NDArray[np.float32]

MAX_SEED = 2**63 - 1
NUMBERED, HASHED = 0, 1
"""Streams: of rows that have a number, and of those that have the hash of a row of data."""
DRAWN, FILLED, CHOSEN = 2, 3, 4
"""Streams of the cells of samples by number, of those that fill gaps of a row by its hash, and of
the choice of a latent for each time that a row is filled."""
_CHUNK = 2**16
"""Normals drawn at a time, so that what is between stays in the processor's cache."""


def draw_rows(seed: int, start: int, stop: int, width: int) -> Eps:
    """Draw rows `start` to `stop` of the noise of `seed`, as (stop - start, width)."""
    rows = np.arange(start, max(start, stop), dtype=np.uint64)
    return _draw(seed, NUMBERED, rows, width)


def draw_eps(x: NDArray[Any], seed: int, num_samples: int, latent_dim: int) -> Eps:
    """Draw the noise of rows of data, (rows, num_samples, latent_dim).

    It is keyed by the bytes of each row, so that a row has the same noise wherever it stands, and
    different rows have independent noise.
    """
    eps = _draw(seed, HASHED, hash_rows(x), num_samples * latent_dim)
    return eps.reshape(len(x), num_samples, latent_dim)


def draw_noise(seed: int, start: int, stop: int, width: int) -> Eps:
    """Draw the noise of the cells of samples `start` to `stop`, as (stop - start, width)."""
    rows = np.arange(start, max(start, stop), dtype=np.uint64)
    return _draw(seed, DRAWN, rows, width)


def draw_fillings(
    x: NDArray[Any], seed: int, times: int, width: int
) -> tuple[Eps, NDArray[np.float64]]:
    """Draw what it takes to fill rows of data several times.

    Returns the noise of their cells, (rows, times, width), and numbers between 0 and 1 that choose
    a latent, (rows, times).
    """
    hashes = hash_rows(x)
    noise = _draw(seed, FILLED, hashes, times * width).reshape(len(x), times, width)
    words = random_words(seed, CHOSEN, hashes, -(-times // WORDS))[:, :times]
    return noise, (words + 0.5) / 2**32


def hash_rows(x: NDArray[Any]) -> NDArray[np.uint64]:
    """Hash the bytes of each row, little-endian and row-major: the first 8 bytes of SHA-256.

    A zero has no sign, since decimals and integers have none, and all gaps of a mixed table are the
    same NaN: equal rows have the same hash.
    """
    plain = x
    if x.dtype.kind == "f":
        plain = x + x.dtype.type(0)
        plain[np.isnan(plain)] = np.nan
    rows: Iterable[Any] = np.ascontiguousarray(plain, x.dtype.newbyteorder("<"))
    return np.frombuffer(b"".join(sha256(row).digest()[:8] for row in rows), "<u8")


VECTOR_SEEDS = (0, 7, MAX_SEED)
_VECTOR_ROWS = 3
_VECTOR_START = 2**32 - 1
"""So that rows are on both sides of the end of a word of their numbers."""


def noise_vectors(x: NDArray[Any], latent_dim: int) -> dict[str, NDArray[Any]]:
    """Return test vectors: noise of some seeds, and of rows `x`; a bundle keeps them.

    `noise.eps` are rows from `noise.start` on for each seed, `score_noise.eps` the noise of each
    row of `x` for each seed: both with the seeds on axis 0. `draw_noise.eps` are the first columns
    of the noise of the same rows as `noise.eps`.
    """
    stop = _VECTOR_START + _VECTOR_ROWS
    return {
        "noise.seed": np.array(VECTOR_SEEDS),
        "noise.start": np.array([_VECTOR_START]),
        "noise.eps": np.stack(
            [draw_rows(s, _VECTOR_START, stop, latent_dim) for s in VECTOR_SEEDS]
        ),
        "draw_noise.eps": np.stack(
            [draw_noise(s, _VECTOR_START, stop, latent_dim) for s in VECTOR_SEEDS]
        ),
        "score_noise.hash": hash_rows(x).view(np.int64),
        "score_noise.eps": np.stack([draw_eps(x, s, 2, latent_dim) for s in VECTOR_SEEDS]),
    }


def check_seed(seed: int) -> None:
    """Refuse a seed that is not from 0 to `MAX_SEED`."""
    if not 0 <= seed <= MAX_SEED:
        raise UsageRefused(f"seed must be from 0 to {MAX_SEED}, got {seed}")


def _draw(seed: int, stream: int, rows: NDArray[np.uint64], width: int) -> Eps:
    check_seed(seed)
    blocks = -(-width // WORDS)
    step = max(1, _CHUNK // max(1, blocks * WORDS))
    if len(rows) <= step:
        return normals_of(random_words(seed, stream, rows, blocks))[:, :width]
    parts = (rows[start : start + step] for start in range(0, len(rows), step))
    return np.concatenate([_draw(seed, stream, part, width) for part in parts])
