"""Score a registered version: the ELBO of each held-out row, by the version's own ONNX graph."""

import numpy as np

from pipeline.registry.gate import Array
from serving.engine import Engine
from serving.source import Source, version_errors


def score_version(source: Source, x: Array, num_samples: int, threads: int) -> Array:
    """Return the ELBO of each row in nats, shape `(rows,)`.

    Both versions of a comparison have the same noise, that of the rows and of seed 0.
    """
    elbo = open_engine(source, threads).score(x, num_samples, seed=0)["elbo"]
    return elbo.astype(np.float64)


def open_engine(source: Source, threads: int) -> Engine:
    """Open a version's graphs and check that they give the outputs that torch gave."""
    with version_errors(source.name, source.version, source.bundle.path):
        engine = Engine(source.bundle, threads=threads)
        engine.self_check()
    return engine
