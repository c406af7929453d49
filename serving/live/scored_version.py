"""A version of the model that scores live rows: one graph, one thread, no more memory than that."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Bundle, open_bundle
from serving.engine import Engine
from serving.errors import VerificationFailed
from serving.noise import draw_eps
from serving.p_values import default_samples
from serving.table_cells import TableEncoder, decode_table

Array = NDArray[Any]

SEED = 0
"""The seed of held-out scores and of the gate."""
RUN_ROWS = 256
"""Rows times draws of one run of the graph, as in `vae score`: they stay in a core's cache, and a
run of more would keep hundreds of megabytes for good."""


@dataclass(frozen=True, slots=True)
class ScoredVersion:
    """The score graph of a version, opened on the CPU."""

    engine: Engine
    num_samples: int
    """Draws of noise for each row: those that the held-out rows of the version have."""

    @property
    def bundle(self) -> Bundle:
        """The bundle it was opened from."""
        return self.engine.bundle

    @property
    def digest(self) -> str:
        """The digest of the version."""
        return self.bundle.manifest.digest

    def score(self, x: Array) -> dict[str, Array]:
        """Score rows as `vae score` does: with the draws of `SEED` and of each row's bytes."""
        return self._run(x, x, self.num_samples)

    def fits(self, x: Array) -> bool:
        """Whether rows have the dtype and the shape that the graph takes."""
        manifest = self.bundle.manifest
        return x.shape[1:] == manifest.x_shape and x.dtype == np.dtype(manifest.x_dtype)

    def score_beside(self, served: "ScoredVersion", x: Array) -> tuple[Array, Array]:
        """Score rows of the version served with the noise that they have there.

        Rows of a mixed table are read by this version's own schema. Returns the ELBO of each row
        that this version can take, and which rows these are.
        """
        own, readable = self._read(served, x)
        return self._run(own, x[readable], served.num_samples)["elbo"], readable

    def _run(self, x: Array, named: Array, num_samples: int) -> dict[str, Array]:
        """Score rows with the noise of the rows `named`, a few at a time."""
        latent_dim = self.bundle.manifest.latent_dim
        step = max(1, RUN_ROWS // num_samples)
        runs = []
        for start in range(0, max(1, len(x)), step):
            rows, keys = x[start : start + step], named[start : start + step]
            eps = draw_eps(keys, SEED, num_samples, latent_dim)
            runs.append(self.engine.run("score", {"x": rows, "eps": eps}))
        return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}

    def _read(self, served: "ScoredVersion", x: Array) -> tuple[Array, Array]:
        schema, theirs = self.bundle.manifest.schema, served.bundle.manifest.schema
        if schema is None or theirs is None or schema == theirs:
            return x, np.ones(len(x), bool)
        cells = TableEncoder(schema).encode_arrays(decode_table(theirs, x))
        readable = cells.faults == 0
        return cells.x[readable], readable


def open_version(path: Path, digest: str, *, check: bool = False) -> ScoredVersion:
    """Open the score graph of a bundle, which must have this digest.

    Raises:
        VerificationFailed: the files are not those of the digest or, if `check` is set, the graph
            does not give what torch gave.
    """
    bundle = open_bundle(path)
    if bundle.manifest.digest != digest:
        raise VerificationFailed(f"{path} holds another bundle than at the start")
    operations = {"score": bundle.operations["score"]}
    engine = Engine(bundle, operations=operations)
    if check:
        engine.self_check()
    return ScoredVersion(engine, default_samples(bundle, "score"))


def why_not_comparable(challenger: Bundle, served: Bundle) -> str | None:
    """Return why the ELBOs of two versions cannot be compared on the same rows, or None."""
    new, old = challenger.manifest, served.manifest
    for name in ("x_shape", "x_dtype", "likelihood"):
        if getattr(new, name) != getattr(old, name):
            return f"{name} is {getattr(new, name)}, but that of the version served is " + str(
                getattr(old, name)
            )
    if new.schema is not None and old.schema is not None:
        if missing := sorted({*new.schema.sources} - {*old.schema.sources}):
            return f"it needs the column {missing[0]!r}, which the version served does not read"
        if left := sorted({*old.schema.sources} - {*new.schema.sources}):
            return f"it does not read the column {left[0]!r}, which the version served does"
    return None
