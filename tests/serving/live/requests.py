"""Requests as the workers hand them to the observer, answered by the engine itself."""

import time
from pathlib import Path

import numpy as np

from serving.bundle import Bundle
from serving.engine import Engine
from serving.live.options import CaptureOptions
from serving.live_rows import LiveRows
from serving.noise import draw_eps


def answered(
    engine: Engine,
    operation: str,
    x: np.ndarray,
    *,
    seed: int = 0,
    num_samples: int = 1,
    captured: bool = True,
) -> LiveRows:
    """A request of one operation and its answer."""
    inputs = {"x": x}
    drawn = operation in ("score", "impute")
    if drawn:
        latent_dim = engine.bundle.manifest.latent_dim
        inputs["eps"] = draw_eps(x, seed, num_samples, latent_dim)
    return LiveRows(
        operation=operation,
        version="7",
        digest=engine.bundle.manifest.digest,
        time=time.time(),
        request=f"{operation}-{seed}",
        x=x,
        captured=captured,
        seed=seed if drawn else None,
        num_samples=num_samples if drawn else None,
        outputs=engine.run(operation, inputs) if captured else {},
    )


def capture_options(folder: Path, **more: object) -> CaptureOptions:
    """Bounds that no test reaches unless it asks for others."""
    settings = {"keep_bytes": 2**30, "keep_s": 1e6, **more}
    return CaptureOptions(folder=folder, **settings)  # type: ignore[arg-type]


def version_content(bundle: Bundle) -> dict[str, object]:
    """What the parent writes for the workers, as far as the observer reads it."""
    return {"path": str(bundle.path), "digest": bundle.manifest.digest}
