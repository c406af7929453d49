"""Check that the graphs of noise give the very bits that the engine draws.

In: a bundle. Out: faults, one for each graph that gives other bits.
"""

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.parity.comparison_result import Fault
from serving.bundle import Bundle
from serving.errors import VerificationFailed
from serving.noise import MAX_SEED, draw_eps, draw_noise, draw_rows, hash_rows
from serving.sessions import open_session

# numbers whose words have all bits, and rows on both sides of the end of a word
SEEDS = (0, 7, 2**32 - 1, 2**32, MAX_SEED)
STARTS = (0, 2**32 - 5, MAX_SEED - 9)
ROWS = 9
NUM_SAMPLES = (1, 3)

Draw = tuple[dict[str, Any], NDArray[np.float32]]


def noise_faults(bundle: Bundle) -> list[Fault]:
    """Run the graphs beside `serving.noise`; bundles of schema 1 have no such graphs."""
    if not bundle.noise_graphs:
        return []
    latent_dim = bundle.manifest.latent_dim
    draws = (
        _numbered(draw_rows, latent_dim),
        _hashed(bundle.golden()["score.x"], latent_dim),
        _numbered(draw_noise, math.prod(bundle.manifest.x_shape)),
    )
    faults = (_find_fault(bundle, *pair) for pair in zip(bundle.noise_graphs, draws, strict=False))
    return [fault for fault in faults if fault is not None]


def _numbered(draw: Callable[..., NDArray[np.float32]], width: int) -> Iterator[Draw]:
    for seed, start in product(SEEDS, STARTS):
        inputs = {"seed": seed, "start": start, "rows": ROWS}
        yield inputs, draw(seed, start, start + ROWS, width)


def _hashed(x: NDArray[Any], latent_dim: int) -> Iterator[Draw]:
    hashes = hash_rows(x).view(np.int64)
    for seed, num_samples in product(SEEDS, NUM_SAMPLES):
        inputs = {"seed": seed, "hash": hashes, "num_samples": num_samples}
        yield inputs, draw_eps(x, seed, num_samples, latent_dim)


def _find_fault(bundle: Bundle, graph: str, draws: Iterator[Draw]) -> Fault | None:
    try:
        session = open_session(bundle.path / graph, "cpu")
        for inputs, expected in draws:
            feeds = {name: np.atleast_1d(np.int64(value)) for name, value in inputs.items()}
            (found,) = session.run(None, feeds)
            if found.shape != expected.shape or found.tobytes() != expected.tobytes():
                seed = inputs["seed"]
                return Fault("noise", f"{graph} gives other noise than the engine, of seed {seed}")
    except VerificationFailed as err:
        return Fault("noise", str(err))
    except Exception as err:  # noqa: BLE001 - onnxruntime's exceptions share no base class
        return Fault("noise", f"{graph} does not run: {err}")
    return None
