"""Run every operation of an engine once before it serves, so that no request is the first."""

import time

from serving.engine import Engine
from serving.protocol.messages import Array

WARM_UP_ROWS = (1, 64)
RUNS = 3
"""Runs of which the shortest counts: other programs make some longer."""


def warm_up(engine: Engine) -> dict[str, float]:
    """Run every operation on a small and a larger batch; return its seconds for one row."""
    golden = engine.bundle.golden()
    seconds: dict[str, float] = {}
    for name, operation in engine.operations.items():
        for rows in WARM_UP_ROWS:
            inputs = {
                tensor.name: _repeat(golden[f"{name}.{tensor.name}"], rows)
                for tensor in operation.inputs
            }
            num_samples = inputs["eps"].shape[1] if operation.is_drawn else 1
            engine.compute(name, inputs)
            least = min(_seconds(engine, name, inputs) for _ in range(RUNS))
            seconds[name] = least / (rows * num_samples)
    return seconds


def _seconds(engine: Engine, name: str, inputs: dict[str, Array]) -> float:
    started = time.perf_counter()
    engine.compute(name, inputs)
    return time.perf_counter() - started


def _repeat(array: Array, rows: int) -> Array:
    copies = -(-rows // len(array))
    return array.repeat(copies, axis=0)[:rows]
