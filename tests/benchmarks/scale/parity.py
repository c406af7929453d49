"""Parity of convolutional models of large pictures: its time, its memory, and what it catches.

Each check runs in a process of its own, on the cores that are there. Its weights are random: those
of training change neither time nor memory. The corruptions are of a small wide model, trained for
an epoch, which is compared on as few rows as the large ones.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from serving.cpu import limit_spinning

limit_spinning()

import numpy as np  # noqa: E402  after the spin limit
import torch  # noqa: E402

from pipeline.config import Config, configure  # noqa: E402
from pipeline.data.dataset import Dataset  # noqa: E402
from pipeline.evaluation.evaluate import evaluate  # noqa: E402
from pipeline.export.bundle_export import export_bundle  # noqa: E402
from pipeline.model.checkpoint import Checkpoint  # noqa: E402
from pipeline.model.vae import VAE  # noqa: E402
from pipeline.parity.check import check_parity  # noqa: E402
from pipeline.parity.row_counts import FULL, choose_counts  # noqa: E402
from pipeline.training.loop import train  # noqa: E402
from serving.bundle import Bundle, open_bundle  # noqa: E402
from serving.cpu import available_cores  # noqa: E402
from tests.pipeline.parity.mutations import (  # noqa: E402
    MUTATIONS,
    corrupt,
    read_graphs,
    set_arrays,
    weights_of,
    write_graphs,
)
from tests.trained_models import load  # noqa: E402

SIZES = (64, 128)
GOALS = {("conv", 64): "at most 45 s and 3 GB", ("resnet", 64): "at most 90 s and 3 GB"}
"""On two idle cores."""
ROWS, SMALL_ROWS, SMALL_SIDE = 1000, 1200, 16
SMALL: dict[str, Any] = {"preset": "conv", "hidden_dims": (128, 256), "kl_warmup_steps": 1}
SEEDS = 5


def measure() -> Iterator[str]:
    """Time each check, then corrupt a small model in every way, and check clean ones."""
    for side in SIZES:
        for preset in ("conv", "resnet"):
            command = (sys.executable, "-m", "tests.benchmarks.scale.parity", preset, str(side))
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            yield (
                f"{preset} at {side}x{side}x3, random weights: parity {found['verdict']} in "
                f"{found['wall_s']:.0f} s, {found['cpu_s']:.0f} s of a core, at most "
                f"{found['peak_gb']:.1f} GB; {GOALS.get((preset, side), 'no goal')}"
            )
    with tempfile.TemporaryDirectory() as folder:
        yield from _catch(Path(folder))


def draw_pictures(rows: int, side: int) -> np.ndarray:
    """Draw blobs of one colour on a ground of another, with noise: bytes (rows, side, side, 3)."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    pictures = np.empty((rows, side, side, 3), np.uint8)
    for picture in pictures:
        (row, column), width = generator.uniform(0.2, 0.8, 2), generator.uniform(0.05, 0.3)
        colour, ground = generator.uniform(40, 230, 3), generator.uniform(0, 60, 3)
        blob = np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * width**2))[..., None]
        noise = generator.normal(0, 5, picture.shape)
        picture[:] = np.clip(ground + (colour - ground) * blob + noise, 0, 255)
    return pictures


def check_once(preset: str, side: int) -> dict[str, Any]:
    """Export a model with random weights and check it; return seconds and the peak of memory."""
    torch.set_num_threads(available_cores())
    x = draw_pictures(ROWS, side)
    with tempfile.TemporaryDirectory() as temporary:
        dataset = load(Path(temporary), x[:50])
        checkpoint = _random_model(preset, dataset)
        model = checkpoint.model
        bundle = _export(Path(temporary, "bundle"), checkpoint, x[:50])
        wall, cpu = time.perf_counter(), time.process_time()
        report = check_parity(bundle, model, x, threads=available_cores())
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    verdict = "passed" if report.passed else "FAILED"
    return {"verdict": verdict, "wall_s": wall, "cpu_s": cpu, "peak_gb": peak}


def _random_model(preset: str, dataset: Dataset) -> Checkpoint:
    """Draw every weight, those too that are zero before training."""
    torch.manual_seed(0)
    config = configure(preset, likelihood="bernoulli")
    model = VAE(dataset.test.x.shape[1:], config.model).eval()
    model.likelihood.fit(dataset.sample)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d) and not layer.weight.any():
            torch.nn.init.normal_(layer.weight, std=0.01)
    return _checkpoint(model, config, dataset)


def _checkpoint(model: VAE, config: Config, dataset: Dataset) -> Checkpoint:
    config = replace(config, model=model.settings)
    git = {"sha": "unknown", "dirty": False}
    return Checkpoint(
        model, config, "uint8", model.settings.likelihood, dataset.describe(), git, None
    )


def _export(out: Path, checkpoint: Checkpoint, x: np.ndarray) -> Bundle:
    metrics = evaluate(checkpoint.model, x, nll_samples=1, seed=0)
    return export_bundle(out, checkpoint, metrics.to_json(), x)


def _catch(folder: Path) -> Iterator[str]:
    dataset = load(folder, draw_pictures(SMALL_ROWS, SMALL_SIDE))
    x, (model, *others) = dataset.test.x, [_train(dataset, seed) for seed in range(SEEDS)]
    if choose_counts(model) is FULL:
        raise ValueError("the small model is not wide: it needs more channels")
    config = configure(**SMALL)
    clean = _export(folder / "clean", _checkpoint(model, config, dataset), x)
    caught = 0
    for mutation in MUTATIONS:
        corrupted = corrupt(_copy(clean, folder / mutation.name), mutation, others[0])
        report = check_parity(corrupted, model, x, threads=available_cores())
        found = mutation.rule in {fault.rule for fault in report.faults()}
        caught += found
        if not found:
            yield f"MISSED: {mutation.name}, meant for the rule {mutation.rule}"
    yield f"wide convolutional model: {caught} of {len(MUTATIONS)} corruptions caught"
    graphs, alarms = read_graphs(clean), 0
    for other in (model, *others):
        for proto in graphs.values():
            set_arrays(proto, weights_of(other))
        alarms += not check_parity(
            write_graphs(_copy(clean, folder / "other"), graphs),
            other,
            x,
            threads=available_cores(),
        ).passed
    yield f"wide convolutional model: {alarms} false alarms in {SEEDS} clean seeds"


def _train(dataset: Dataset, seed: int) -> VAE:
    return train(dataset, configure(**SMALL, epochs=1, seed=seed)).model


def _copy(bundle: Bundle, to: Path) -> Bundle:
    """Copy a bundle, over an older copy."""
    to.mkdir(exist_ok=True)
    for path in bundle.path.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return open_bundle(to)


if __name__ == "__main__":
    print(json.dumps(check_once(sys.argv[1], int(sys.argv[2]))))
