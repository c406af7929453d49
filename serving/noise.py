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
_CHUNK = 2**16
"""Normals drawn at a time, so that what is between stays in the processor's cache."""


def draw_rows(seed: int, start: int, stop: int, width: int) -> Eps:
    """Draw rows `start` to `stop` of the noise of `seed`, as (stop - start, width)."""
    rows = np.arange(start, max(start, stop), dtype=np.uint64)
    return _draw(seed, NUMBERED, rows, width)


def draw_eps(seed: int, start: int, stop: int, num_samples: int, latent_dim: int) -> Eps:
    """Draw noise of each row's own, (stop - start, num_samples, latent_dim)."""
    rows = draw_rows(seed, start, stop, num_samples * latent_dim)
    return rows.reshape(len(rows), num_samples, latent_dim)


def draw_eps_of(x: NDArray[Any], seed: int, num_samples: int, latent_dim: int) -> Eps:
    """Draw the noise of rows of data, (rows, num_samples, latent_dim).

    It is keyed by the bytes of each row, so that a row has the same noise wherever it stands, and
    different rows have independent noise.
    """
    eps = _draw(seed, HASHED, hash_rows(x), num_samples * latent_dim)
    return eps.reshape(len(x), num_samples, latent_dim)


def hash_rows(x: NDArray[Any]) -> NDArray[np.uint64]:
    """Hash the bytes of each row, little-endian and row-major: the first 8 bytes of SHA-256."""
    rows: Iterable[Any] = np.ascontiguousarray(x, x.dtype.newbyteorder("<")).reshape(len(x), -1)
    return np.frombuffer(b"".join(sha256(row).digest()[:8] for row in rows), "<u8")


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
