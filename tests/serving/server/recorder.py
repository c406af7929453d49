"""A stand-in for the engine behind a batcher, which records what runs."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import numpy as np

from serving.server.batching import Batcher

INLINE: Mapping[str, float] = {"encode": 0.0, "score": 0.0, "decode": 0.0}
"""Seconds for each row; such short runs take place on the event loop."""
THREADED: Mapping[str, float] = {}
"""Without a measurement runs take place in the thread."""
Inputs = Mapping[str, np.ndarray]


class Recorder:
    """A stand-in for the engine: returns each row doubled and negated, and records every run."""

    def __init__(self) -> None:
        self.runs: list[tuple[str, list[float]]] = []
        self.threads: list[threading.Thread] = []
        self.error: Exception | None = None
        self.began, self.go = threading.Event(), threading.Event()
        self.go.set()

    def compute(self, operation: str, inputs: Inputs) -> dict[str, np.ndarray]:
        self.threads.append(threading.current_thread())
        self.began.set()
        assert self.go.wait(10)
        x = inputs["x"]
        self.runs.append((operation, x.tolist()))
        if self.error is not None:
            raise self.error
        return {"double": x * 2, "negative": -x}


MakeBatcher = Callable[..., Batcher]


def rows(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.array(values, np.float64)}


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


async def began(recorder: Recorder) -> None:
    while not recorder.began.is_set():
        await asyncio.sleep(0)
