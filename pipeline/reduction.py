"""What reduced precision costs and gives: nats lost, bytes and time saved, all beside float32.

In: a bundle of reduced precision, the model and held-out rows. Out: a `Reduction`. Its ELBO is
judged; sizes and rates are for a person to weigh, measured on the machine of the check.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pipeline.checkpoint import Checkpoint
from pipeline.export import export_bundle
from pipeline.model import VAE
from pipeline.reference import Array, draw_inputs, rms, run_reference
from serving.bundle import GRAPHS, METRICS, Bundle
from serving.engine import Engine

ELBO_SHARE: Mapping[str, float] = {"fp16": 1e-5, "int8": 1e-3}
"""How far the mean ELBO may be from float64's, as a part of its size; measured over trained models
of all presets: fp16 to 2e-6, int8 to 7e-4 (`make bench`)."""
SMALL_ELBO = 100.0
"""Nats that a smaller ELBO counts as: a density's can be near zero, whatever its errors are."""
COMPARED_ROWS = 4000
TIMED_BATCHES = (1, 64, 1024)
TIMED_ROUNDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Rows a second of one operation at one batch, best of some rounds in turns."""

    operation: str
    batch: int
    float32_rows_per_s: float
    rows_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What the files and the time of a bundle are beside float32's: never judged."""

    threads: int
    float32_bytes: int
    """Of the four graphs."""
    bytes: int
    rates: tuple[Rate, ...]

    def lines(self) -> list[str]:
        """The size and the rates, for a person."""
        size = f"{self.bytes:,} bytes of graphs, float32 {self.float32_bytes:,}"
        return [
            f"{size} ({self.bytes / self.float32_bytes:.2f}x)",
            *(
                f"{row.operation} at batch {row.batch}: {row.rows_per_s:,.0f} rows/s, "
                f"float32 {row.float32_rows_per_s:,.0f} "
                f"({row.rows_per_s / row.float32_rows_per_s:.2f}x)"
                for row in self.rates
            ),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """The ELBO of a reduced bundle beside the model's own in float64, over held-out rows."""

    precision: str
    rows: int
    elbo: float
    """The mean in float64, of the weights as they were trained."""
    difference: float
    """Of the means, reduced less float64, in nats."""
    budget: float
    row_rms: float
    """Root mean square of the rows' differences, which the mean hides."""
    cost: Cost | None = None

    @property
    def passed(self) -> bool:
        """Whether the means are within budget; NaN is not."""
        return abs(self.difference) <= self.budget

    def line(self) -> str:
        """The difference and its budget, for a person."""
        return (
            f"ELBO of {self.rows} rows in {self.precision}: {self.difference:+.2e} nats from "
            f"float64's {self.elbo:.3f}, allowed {self.budget:.2e}; "
            f"{self.row_rms:.2e} a row (root mean square)"
        )

    def lines(self) -> list[str]:
        """All that is known, for a person."""
        return [self.line(), *(self.cost.lines() if self.cost else [])]


def compare_reduction(engine: Engine, model: VAE, x: Array) -> Reduction:
    """Score held-out rows `x` with the reduced graphs, and with the model in float64."""
    operation = engine.operations["score"]
    precision = engine.bundle.manifest.precision
    inputs = draw_inputs(operation, x[:COMPARED_ROWS], num_samples=1, seed=4)
    exact = run_reference(model, operation, inputs, torch.float64)["elbo"]
    error = engine.run("score", inputs)["elbo"] - exact
    elbo = float(exact.mean())
    return Reduction(
        precision=precision,
        rows=len(error),
        elbo=elbo,
        difference=float(error.mean()),
        budget=ELBO_SHARE[precision] * max(abs(elbo), SMALL_ELBO),
        row_rms=rms(error),
    )


def measure_cost(bundle: Bundle, checkpoint: Checkpoint, x: Array, *, threads: int) -> Cost:
    """Export the same model in float32, and run both in turns on held-out rows `x`."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = bundle.read_json(METRICS)
        full = export_bundle(Path(folder, "float32"), checkpoint, metrics, x)
        engines = tuple(Engine(each, threads=threads) for each in (full, bundle))
    return Cost(
        threads=threads,
        float32_bytes=_graph_bytes(full),
        bytes=_graph_bytes(bundle),
        rates=tuple(
            _rate(engines, operation, x[np.arange(batch) % len(x)])
            for operation in ("encode", "reconstruct")
            for batch in TIMED_BATCHES
        ),
    )


def _graph_bytes(bundle: Bundle) -> int:
    return sum(int(bundle.manifest.files[graph]["bytes"]) for graph in GRAPHS)


def _rate(engines: tuple[Engine, ...], operation: str, x: Array) -> Rate:
    """The best of some rounds; both take turns, so that a noisy neighbour meets them alike."""
    repeats = max(1, max(TIMED_BATCHES) // len(x))
    runs = [partial(engine.run, operation, {"x": x}) for engine in engines]
    rounds = [[_seconds(run, repeats) for run in runs] for _ in range(TIMED_ROUNDS)]
    best = [repeats * len(x) / min(times) for times in zip(*rounds, strict=True)]
    return Rate(operation=operation, batch=len(x), float32_rows_per_s=best[0], rows_per_s=best[1])


def _seconds(run: Callable[[], object], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    return time.perf_counter() - started
