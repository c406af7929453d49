"""What fp16 and int8 cost and give on MNIST: nats, bytes and time beside float32."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from pipeline.config import Precision, configure
from pipeline.data.dataset import Dataset, load_dataset
from pipeline.export.bundle_export import export_bundle
from pipeline.export.quantization import calibrate
from pipeline.model.checkpoint import Checkpoint
from pipeline.parity.check import check_parity
from pipeline.parity.quantization_loss import measure_cost
from pipeline.presets import PRESETS
from pipeline.training.loop import train
from tests.benchmarks.measure import Row

REDUCED: tuple[Precision, ...] = ("fp16", "int8")
EPOCHS = 8
SEEDS = (0, 1)


def measure() -> Iterator[Row | str]:
    """Train every preset on two seeds, reduce it, check it, and time the first."""
    torch.set_num_threads(1)
    mnist = load_dataset("mnist", valid_fraction=0.1, test_fraction=0.1)
    for preset in PRESETS:
        for seed in SEEDS:
            checkpoint = _train(mnist, preset, seed)
            for precision in REDUCED:
                yield from _reduce(checkpoint, mnist, precision, timed=seed == 0)


def _train(mnist: Dataset, preset: str, seed: int) -> Checkpoint:
    config = configure(preset, seed=seed, epochs=EPOCHS)
    model = train(mnist, config).model
    git = {"sha": "unknown", "dirty": False}
    return Checkpoint(model, config, "uint8", "bernoulli", mnist.describe(), git)


def _reduce(
    checkpoint: Checkpoint, mnist: Dataset, precision: Precision, *, timed: bool
) -> Iterator[Row | str]:
    model, x = checkpoint.model, mnist.test.x
    metrics = dict.fromkeys(("elbo", "elbo_se", "log_likelihood", "kl", "nll", "nll_se"), 0.0)
    metrics |= {"rows": 0, "nll_samples": 0, "active_units": 0}
    ranges = calibrate(model, mnist.sample) if precision == "int8" else None
    name = f"{checkpoint.config.preset}, seed {checkpoint.config.train.seed}"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "bundle")
        bundle = export_bundle(out, checkpoint, metrics, x, precision=precision, ranges=ranges)
        report = check_parity(bundle, model, x)
        verdict = "passed" if report.passed else f"FAILED: {report.faults()[0]}"
        loss = report.quantization_loss.line() if report.quantization_loss else ""
        yield f"{name}: {loss}; parity {verdict}"
        if not timed:
            return
        cost = measure_cost(bundle, model, x, threads=1)
    for graph, size in cost.bytes.items():
        yield f"{name}, {precision}: {graph} {size.reduced:,} bytes, float32 {size.float32:,}"
    goal = "below 1x" if precision == "int8" else "close to 1x"
    for rate in cost.rates:
        what = f"{precision}, {rate.operation} at batch {rate.batch} / float32"
        seconds = rate.batch / rate.rows_per_s, rate.batch / rate.float32_rows_per_s
        yield Row(what, *seconds, goal)
