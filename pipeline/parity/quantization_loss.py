"""What reduced precision costs and gains: nats lost, bytes and time saved, compared with float32.

In: a bundle of reduced precision, the model and held-out rows. Out: a `QuantizationLoss`. Its ELBO
is judged; sizes and rates, measured on the machine of the check, are for a person to weigh.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.export.graph_export import save_graph
from pipeline.model.operations import Array, draw_inputs, rms, run_reference
from pipeline.model.vae import VAE
from serving.bundle import Bundle
from serving.engine import Engine
from serving.sessions import open_session

ELBO_SHARE: Mapping[str, float] = {"fp16": 1e-4, "int8": 2e-3}
"""How far the mean ELBO may be from that of float64, as a share of its size.

Of 14 trained models of MNIST (every preset, five seeds, both likelihoods, three hidden layers) the
worst was off by 2.3e-5 in fp16 and by 7.4e-4 in int8. This limits what rounding costs a model.
Damage is detected by the other rules, which compare the graphs with the rounded weights as closely
as in float32.
"""
SMALL_ELBO = 100.0
"""Smaller ELBOs count as this many nats: that of a density can be near zero."""
COMPARED_ROWS = 4000
TIMED_OPERATIONS = ("encode", "reconstruct")
TIMED_BATCHES = (1, 64, 1024)
TIMED_ROUNDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Rows per second of one operation at one batch size: the best of a few alternating rounds."""

    operation: str
    batch: int
    float32_rows_per_s: float
    rows_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Bytes of one graph."""

    float32: int
    reduced: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Sizes and rates of a bundle beside those in float32; they are not judged."""

    threads: int
    bytes: Mapping[str, Size]
    """Sizes of the graphs that were timed."""
    rates: tuple[Rate, ...]

    def lines(self) -> list[str]:
        """Describe the sizes and the rates for a person."""
        sizes = (
            f"{graph}: {size.reduced:,} bytes, float32 {size.float32:,} "
            f"({size.reduced / size.float32:.2f}x)"
            for graph, size in self.bytes.items()
        )
        rates = (
            f"{row.operation} at batch {row.batch}: {row.rows_per_s:,.0f} rows/s, "
            f"float32 {row.float32_rows_per_s:,.0f} "
            f"({row.rows_per_s / row.float32_rows_per_s:.2f}x)"
            for row in self.rates
        )
        return [*sizes, *rates]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationLoss:
    """The ELBO of a bundle of reduced precision, compared with float64 on held-out rows."""

    precision: str
    rows: int
    elbo: float
    """Mean in float64, of the weights as they were trained."""
    difference: float
    """Mean in reduced precision minus the mean in float64, in nats."""
    tolerance: float
    row_rms: float
    """Root mean square of the rows' differences, which the mean hides."""
    cost: Cost | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "QuantizationLoss":
        """Read one from JSON, where a number that is not finite is null."""
        known = ("precision", "rows", "elbo", "difference", "tolerance", "row_rms")
        values: dict[str, Any] = {
            name: np.nan if content[name] is None else content[name] for name in known
        }
        if (cost := content["cost"]) is not None:
            sizes = {graph: Size(**size) for graph, size in cost["bytes"].items()}
            rates = tuple(Rate(**rate) for rate in cost["rates"])
            values["cost"] = Cost(threads=cost["threads"], bytes=sizes, rates=rates)
        return cls(**values)

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; NaN is not."""
        return abs(self.difference) <= self.tolerance

    def line(self) -> str:
        """Describe the difference and its tolerance for a person."""
        return (
            f"ELBO of {self.rows} rows in {self.precision}: {self.difference:+.2e} nats from "
            f"float64's {self.elbo:.3f}, allowed {self.tolerance:.2e}; "
            f"{self.row_rms:.2e} per row (root mean square)"
        )

    def lines(self) -> list[str]:
        """Describe all that is known for a person."""
        return [self.line(), *(self.cost.lines() if self.cost else [])]


def measure_loss(engine: Engine, model: VAE, x: Array) -> QuantizationLoss:
    """Score held-out rows `x` with the reduced graphs, and with the model in float64."""
    operation = engine.operations["score"]
    precision = engine.bundle.manifest.precision
    inputs = draw_inputs(operation, x[:COMPARED_ROWS], num_samples=1, seed=4)
    exact = run_reference(model, operation, inputs, torch.float64)["elbo"]
    error = engine.run("score", inputs)["elbo"] - exact
    elbo = float(exact.mean())
    return QuantizationLoss(
        precision=precision,
        rows=len(error),
        elbo=elbo,
        difference=float(error.mean()),
        tolerance=ELBO_SHARE[precision] * max(abs(elbo), SMALL_ELBO),
        row_rms=rms(error),
    )


def measure_cost(bundle: Bundle, model: VAE, x: Array, *, threads: int) -> Cost:
    """Export the timed graphs in float32, and run both alternately on held-out rows `x`."""
    operations = [bundle.operations[name] for name in TIMED_OPERATIONS]
    sizes: dict[str, Size] = {}
    rates: list[Rate] = []
    for operation in operations:
        with tempfile.TemporaryDirectory() as folder:
            full, reduced = Path(folder, operation.graph), bundle.path / operation.graph
            save_graph(full, model, operation, {})
            sizes[operation.graph] = Size(
                float32=full.stat().st_size, reduced=reduced.stat().st_size
            )
            sessions = [open_session(path, "cpu", threads=threads) for path in (full, reduced)]
        for batch in TIMED_BATCHES:
            rates.append(_rate(sessions, operation.name, x[np.arange(batch) % len(x)]))
    return Cost(threads=threads, bytes=sizes, rates=tuple(rates))


def _rate(sessions: Sequence[Any], operation: str, x: Array) -> Rate:
    """Time both sessions alternately, so that a noisy machine affects both; keep the best."""
    repeats = max(1, max(TIMED_BATCHES) // len(x))
    runs = [partial(session.run, None, {"x": x}) for session in sessions]
    rounds = [[_seconds(run, repeats) for run in runs] for _ in range(TIMED_ROUNDS)]
    best = [repeats * len(x) / min(times) for times in zip(*rounds, strict=True)]
    return Rate(operation=operation, batch=len(x), float32_rows_per_s=best[0], rows_per_s=best[1])


def _seconds(run: Callable[[], object], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    return time.perf_counter() - started
