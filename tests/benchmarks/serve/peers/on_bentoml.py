# mypy: ignore-errors
"""BentoML: a service with a batchable endpoint."""

import os

import bentoml
import numpy as np
from session import open_session

BATCH = int(os.environ.get("BATCH", "0"))

@bentoml.service(workers=1)
class Reconstruct:
    def __init__(self) -> None:
        self.session = open_session()

    @bentoml.api(**(dict(batchable=True, max_batch_size=BATCH, max_latency_ms=60_000) if BATCH else {}))
    def reconstruct(self, x: np.ndarray) -> np.ndarray:
        return self.session.run(None, {"x": x.astype(np.uint8)})[0]
