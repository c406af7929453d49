"""Noise: how normal it is over many draws, how fast, and what noise of each row's own is worth.

`python -m tests.benchmarks.noise [DRAWS [SEEDS]]`. Every figure of quality stands beside what exact
normals would give, in standard deviations of that; a |z| above 4 would be a fault. The speed is
beside numpy's generator and beside the whole of sampling. Last, the default model is trained for
one epoch, and the mean score of MNIST's test set with one draw a row stands beside the ELBO for
each seed, with noise of each row's own and with noise that all rows share.
"""

import math
import sys
from collections.abc import Iterator
from functools import partial
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from serving.cpu import limit_spinning
from serving.engine import Engine
from serving.noise import draw_eps, draw_rows
from tests.benchmarks.measure import Row, best_in_turns
from tests.benchmarks.serve.inputs import prepare_inputs

DRAWS = 10**9
SEEDS = 20
WIDTH = 32
ROWS = 2**16  # drawn at a time
MOMENTS = (0, 1, 0, 3, 0, 15, 0, 105, 0, 945, 0, 10395)
"""Of the standard normal, from the first to the twelfth."""
TAILS = (3, 4, 5, 6)
EDGES = np.linspace(-7, 7, 14 * 2**9 + 1)

Rows = NDArray[np.float64]


def measure(draws: int = DRAWS, seeds: int = SEEDS) -> Iterator[object]:
    """Quality, speed, and the independence of rows."""
    yield from quality(draws)
    yield from speed()
    yield from independence(seeds)


def quality(draws: int) -> Iterator[str]:
    """Moments, the Kolmogorov-Smirnov distance, tails and correlations of numbered rows."""
    powers = np.zeros(6)
    counts = np.zeros(len(EDGES) - 1, np.int64)
    outside, products = 0, dict.fromkeys(("rows", "columns", "seeds", "hashed rows"), 0.0)
    chunks = max(1, draws // (ROWS * WIDTH))
    for chunk in range(chunks):
        start = chunk * ROWS
        z = draw_rows(0, start, start + ROWS, WIDTH).astype(np.float64)
        power = np.ones_like(z)
        for order in range(6):
            power *= z
            powers[order] += power.sum()
        found, _ = np.histogram(z, EDGES)
        counts += found
        outside += z.size - int(found.sum())
        products["rows"] += float(np.vdot(z[1:], z[:-1]))
        products["columns"] += float(np.vdot(z[:, 1:], z[:, :-1]))
        other = draw_rows(1, start, start + ROWS, WIDTH).astype(np.float64)
        products["seeds"] += float(np.vdot(z, other))
        x = np.arange(start, start + ROWS)[:, None]
        hashed = draw_eps(x, 0, 1, WIDTH)[:, 0].astype(np.float64)
        products["hashed rows"] += float(np.vdot(hashed[1:], hashed[:-1]))
    total = chunks * ROWS * WIDTH
    yield f"{total:,} draws of {WIDTH} columns"
    yield from _describe_moments(powers / total, total)
    yield from _describe_distribution(counts, total, outside)
    pairs = {
        "rows": chunks * (ROWS - 1) * WIDTH,
        "columns": chunks * ROWS * (WIDTH - 1),
        "seeds": total,
        "hashed rows": chunks * (ROWS - 1) * WIDTH,
    }
    for name, value in products.items():
        correlation = value / pairs[name]
        score = correlation * math.sqrt(pairs[name])
        yield f"correlation of neighbouring {name}: {correlation:+.2e}, z {score:+.2f}"


def _describe_moments(found: Rows, total: int) -> Iterator[str]:
    for order, value in enumerate(found, start=1):
        expected = MOMENTS[order - 1]
        spread = math.sqrt((MOMENTS[2 * order - 1] - expected**2) / total)
        score = (value - expected) / spread
        yield f"moment {order}: {value:.6f}, exact {expected}, z {score:+.2f}"


def _describe_distribution(counts: NDArray[np.int64], total: int, outside: int) -> Iterator[str]:
    cdf = NormalDist().cdf
    exact = np.array([cdf(edge) for edge in EDGES])
    function = np.cumsum(counts) / total
    distance = float(np.abs(function - (exact[1:] - exact[0])).max())
    limit = 1.95 / math.sqrt(total)  # p = 0.001
    yield f"Kolmogorov-Smirnov D {distance:.2e}, above {limit:.2e} in one of 1,000 exact samples"
    middle = (EDGES[1:] + EDGES[:-1]) / 2
    for tail in TAILS:
        beyond = int(counts[np.abs(middle) > tail].sum()) + outside
        expected = 2 * total * cdf(-tail)
        score = (beyond - expected) / math.sqrt(expected)
        yield f"beyond {tail}: {beyond:,}, expected {expected:,.1f}, z {score:+.2f}"


def speed() -> Iterator[Row]:
    """Beside numpy's generator, whose bytes may change, and beside sampling as a whole."""
    engine = _engine()
    width = engine.bundle.manifest.latent_dim
    for rows in (1, 4096):
        ours, numpys, whole = best_in_turns(
            partial(draw_rows, 7, 0, rows, width),
            partial(_numpy_normals, rows, width),
            partial(engine.sample, rows, 7),
            rounds=2000 if rows == 1 else 50,
        )
        yield Row(f"draw {rows} rows of {width} / numpy", ours, numpys, "as fast")
        yield Row(f"draw {rows} rows of {width} / sample {rows}", ours, whole, "at most 0.1x")


def _numpy_normals(rows: int, width: int) -> object:
    return np.random.Generator(np.random.Philox(key=7)).standard_normal((rows, width), np.float32)


def _engine() -> Engine:
    from serving.bundle import open_bundle

    return Engine(open_bundle(prepare_inputs("default").bundle))


def independence(seeds: int) -> Iterator[str]:
    """The mean score with one draw a row beside the ELBO, which has many draws a row."""
    from pipeline.data.dataset import load_dataset

    engine = _engine()
    latent_dim = engine.bundle.manifest.latent_dim
    x = load_dataset("mnist", valid_fraction=0.1, test_fraction=0.1).test.x
    elbo = engine.score(x, 64, seed=10**6)["elbo"].mean(dtype=np.float64)
    own, shared, inside = [], [], 0
    for seed in range(seeds):
        scores = engine.score(x, 1, seed)["elbo"].astype(np.float64)
        error = scores.std() / math.sqrt(len(x))
        inside += abs(scores.mean() - elbo) <= 2 * error
        own.append(scores.mean())
        eps = np.broadcast_to(draw_rows(seed, 0, 1, latent_dim), (len(x), 1, latent_dim))
        shared.append(engine.run("score", {"x": x, "eps": eps})["elbo"].mean(dtype=np.float64))
    yield f"ELBO of {len(x):,} rows, 64 draws a row: {elbo:.3f} nats"
    yield (
        f"mean with one draw of each row's own: {min(own):.3f} to {max(own):.3f}, standard "
        f"deviation {np.std(own):.3f}; {inside} of {seeds} seeds within two standard errors"
    )
    yield (
        f"mean with one draw that all rows share: {min(shared):.3f} to {max(shared):.3f}, standard "
        f"deviation {np.std(shared):.3f}"
    )


if __name__ == "__main__":
    limit_spinning()
    for line in measure(*map(int, sys.argv[1:])):
        print(line, flush=True)
