"""Draw standard-normal noise from a seed: the same bytes on every machine, for any range of rows.

Row `i` comes from block `i // BLOCK` of a Philox counter, so a range of rows can be drawn without
the rows before it. Graphs have no random operation: noise is their input `eps`.
"""

import numpy as np
from numpy.typing import NDArray

from serving.errors import UsageRefused

BLOCK = 1024
MAX_SEED = 2**63 - 1


def draw_rows(seed: int, start: int, stop: int, width: int) -> NDArray[np.float32]:
    """Draw rows `start` to `stop` of the noise of `seed`, as (stop - start, width)."""
    check_seed(seed)
    rows = np.empty((max(0, stop - start), width), np.float32)
    filled = 0
    while filled < len(rows):
        block, offset = divmod(start + filled, BLOCK)
        part = rows[filled : filled + BLOCK - offset]
        part[:] = _block(seed, block, offset + len(part), width)[offset:]
        filled += len(part)
    return rows


def draw_eps(
    seed: int, start: int, stop: int, num_samples: int, latent_dim: int
) -> NDArray[np.float32]:
    """Draw noise of each row's own, (stop - start, num_samples, latent_dim)."""
    rows = draw_rows(seed, start, stop, num_samples * latent_dim)
    return rows.reshape(len(rows), num_samples, latent_dim)


def check_seed(seed: int) -> None:
    """Refuse a seed that is not from 0 to `MAX_SEED`."""
    if not 0 <= seed <= MAX_SEED:
        raise UsageRefused(f"seed must be from 0 to {MAX_SEED}, got {seed}")


def _block(seed: int, block: int, rows: int, width: int) -> NDArray[np.float32]:
    generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, block]))
    return generator.standard_normal((rows, width), np.float32)
