"""What parity catches, and what it lets pass: corruptions of the default model, and clean seeds.

Models are trained for an epoch on part of MNIST. Each preset is exported once; the weights of
further seeds are put into that export, whose nodes are the same for all.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.config import PRESETS, configure
from pipeline.data.dataset import Dataset, Split, load_dataset
from pipeline.evaluation.evaluate import evaluate
from pipeline.export.bundle_export import export_bundle
from pipeline.model.checkpoint import Checkpoint
from pipeline.model.vae import VAE
from pipeline.parity.check import check_parity
from pipeline.training.loop import train
from serving.bundle import Bundle, open_bundle
from serving.cpu import available_cores
from tests.pipeline.parity.mutations import (
    MUTATIONS,
    corrupt,
    read_graphs,
    set_arrays,
    weights_of,
    write_graphs,
)

ROWS = 6000
SEEDS = 17
"""A preset, which makes 51 in all."""


def measure() -> Iterator[str]:
    """Every corruption with the rules that saw it, then the false alarms of each preset."""
    torch.set_num_threads(available_cores())
    mnist = load_dataset("mnist", valid_fraction=0, test_fraction=0.1)
    dataset = replace(mnist, train=Split(mnist.train.x[:ROWS], mnist.train.sha256))
    with tempfile.TemporaryDirectory() as folder:
        bundles = {preset: _export(Path(folder, preset), dataset, preset) for preset in PRESETS}
        yield from _catch(Path(folder, "corrupted"), *bundles["default"], dataset)
        for preset, (bundle, _) in bundles.items():
            yield _pass(bundle, dataset, preset)


def _catch(folder: Path, clean: Bundle, model: VAE, dataset: Dataset) -> Iterator[str]:
    other = _train(dataset, "default", seed=1)
    yield f"{'corruption of the default model':<36} {'rule meant':<10} {'caught by'}"
    caught = 0
    for mutation in MUTATIONS:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(clean.path, folder)
        corrupted = corrupt(open_bundle(folder), mutation, other)
        report = check_parity(corrupted, model, dataset.test.x, threads=available_cores())
        broken = dict.fromkeys(fault.rule for fault in report.faults())
        caught += mutation.rule in broken
        missed = "" if mutation.rule in broken else "   MISSED"
        yield f"{mutation.name:<36} {mutation.rule:<10} {', '.join(broken)}{missed}"
    yield f"{caught} of {len(MUTATIONS)} corruptions caught by the rule meant for them"


def _pass(bundle: Bundle, dataset: Dataset, preset: str) -> str:
    graphs = read_graphs(bundle)
    alarms, at_goal, used, seconds = 0, 0, 0.0, 0.0
    for seed in range(SEEDS):
        model = _train(dataset, preset, seed)
        for proto in graphs.values():
            set_arrays(proto, weights_of(model))
        bundle = write_graphs(bundle, graphs)
        started = time.perf_counter()
        report = check_parity(bundle, model, dataset.test.x, threads=available_cores())
        seconds = max(seconds, time.perf_counter() - started)
        alarms += not report.passed
        used = max(used, *(row.share for row in report.comparisons))
        at_goal += all(row.mean_error <= row.mean_goal for row in report.elbo)
    return (
        f"preset {preset:<8} {SEEDS} clean seeds: {alarms} false alarms; at most {used:.0%} of a "
        f"tolerance used; mean ELBO within 1e-5 nats in {at_goal}; at most {seconds:.1f} s a check"
    )


def _train(dataset: Dataset, preset: str, seed: int) -> VAE:
    return train(dataset, configure(preset, epochs=1, seed=seed)).model


def _export(out: Path, dataset: Dataset, preset: str) -> tuple[Bundle, VAE]:
    config = configure(preset, epochs=1)
    result = train(dataset, config)
    git = {"sha": "unknown", "dirty": False}
    checkpoint = Checkpoint(
        result.model, config, "uint8", result.model.settings.likelihood, dataset.describe(), git
    )
    metrics = evaluate(result.model, dataset.test.x[:100], nll_samples=1, seed=0)
    return export_bundle(out, checkpoint, metrics.to_json(), dataset.test.x), result.model
