"""A server with small limits for hostile clients, and the check that it stays unharmed."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np

from serving.engine import Engine
from tests.serving.conftest import SEALED
from tests.serving.running import Running, serve
from tests.serving.server.raw_sockets import forget_peak, held, memory

MIB = 2**20
BODY_BYTES = MIB
"""The largest body that this server takes."""
TIMEOUT_S = 1
GROWTH_BYTES = 64 * MIB
"""Bytes by which the memory of a worker may grow in a test."""


@contextlib.contextmanager
def serve_strictly(folder: Path) -> Iterator[Running]:
    """Start a server whose headers and bodies have the same short timeout."""
    arguments = "--drain 1 --timeout 1 --max-queue 64 --max-body-mb 1 --max-requests 32".split()
    with serve(folder, SEALED, *arguments) as server:
        yield server


@contextlib.contextmanager
def stays_unharmed(strict: Running, http: httpx.Client, engine: Engine) -> Iterator[None]:
    """Check that afterwards the server answers as before, holds no bodies, and has not grown."""
    before, workers = memory(strict, "VmRSS"), strict.children()
    forget_peak(strict)
    yield
    expected = engine.sample(2, 5)
    body = {"parameters": {"seed": 5, "num_samples": 2}}
    end = time.monotonic() + 3 * TIMEOUT_S
    # requests that a test left in the queue may cause refusals
    while (response := http.post("/v2/models/sample/infer", json=body)).status_code == 429:
        assert time.monotonic() < end, response.text
    assert response.status_code == 200, response.text
    found = np.array(response.json()["outputs"][0]["data"], np.float32)
    assert found.tobytes() == expected.tobytes()
    nothing = {"vae_queued_rows": 0, "vae_queued_bytes": 0}
    while (still := held(http)) != nothing:
        assert time.monotonic() < end, still
    assert strict.children() == workers
    assert memory(strict, "VmHWM") - before < GROWTH_BYTES
