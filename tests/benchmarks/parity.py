"""What parity catches, and what it lets pass: corruptions of nets of each kind, and clean seeds.

Models are trained for an epoch on part of MNIST. Each net is exported once; the weights of further
seeds are put into that export, whose nodes are the same for all.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Config, configure
from pipeline.data.dataset import Dataset, Split, load_dataset
from pipeline.evaluation.evaluate import evaluate
from pipeline.export.bundle_export import export_bundle
from pipeline.model.checkpoint import Checkpoint
from pipeline.model.vae import VAE
from pipeline.parity.check import check_parity
from pipeline.presets import PRESETS
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
SEEDS = 20
KINDS: Mapping[str, Mapping[str, Any]] = {
    "dense": {"preset": "default"},
    "convolutional": {"preset": "conv"},
    "wide": {"preset": "conv", "hidden_dims": (64, 128, 256)},
    "recurrent": {"model": "tests.own_nets:lstm"},
    "attention": {"model": "tests.own_nets:attention"},
}
"""Nets that are corrupted, and trained with other seeds; a wide one is compared on fewer rows."""
OTHERS = {name: {"preset": name} for name in PRESETS if name not in ("default", "conv")}
"""Nets that are only trained with other seeds."""
WIDTH = 15


def measure() -> Iterator[str]:
    """Every corruption with the rules that saw it in each net, then the false alarms of each."""
    torch.set_num_threads(available_cores())
    mnist = load_dataset("mnist", valid_fraction=0, test_fraction=0.1)
    dataset = replace(mnist, train=Split(mnist.sample[:ROWS], mnist.train.sha256))
    with tempfile.TemporaryDirectory() as folder:
        exports = {kind: _export(Path(folder, kind), dataset, kind) for kind in KINDS}
        yield from _catch(Path(folder, "corrupted"), exports, dataset)
        for kind in OTHERS:
            exports[kind] = _export(Path(folder, kind), dataset, kind)
        for kind, (bundle, _) in exports.items():
            yield _pass(bundle, dataset, kind)


def _catch(
    folder: Path, exports: Mapping[str, tuple[Bundle, VAE]], dataset: Dataset
) -> Iterator[str]:
    others = {kind: _train(dataset, kind, seed=1) for kind in KINDS}
    names = "".join(f"{kind:<{WIDTH}}" for kind in KINDS)
    yield f"{'corruption':<36} {'rule meant':<10} {names}".rstrip()
    caught = dict.fromkeys(KINDS, 0)
    for mutation in MUTATIONS:
        cells = []
        for kind, (clean, model) in exports.items():
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(clean.path, folder)
            corrupted = corrupt(open_bundle(folder), mutation, others[kind])
            report = check_parity(corrupted, model, dataset.test.x, threads=available_cores())
            broken = {fault.rule for fault in report.faults()}
            caught[kind] += mutation.rule in broken
            cells.append("caught" if mutation.rule in broken else "MISSED")
        line = "".join(f"{cell:<{WIDTH}}" for cell in cells)
        yield f"{mutation.name:<36} {mutation.rule:<10} {line}".rstrip()
    for kind, count in caught.items():
        yield f"{kind}: {count} of {len(MUTATIONS)} corruptions caught by the rule meant for them"


def _pass(bundle: Bundle, dataset: Dataset, kind: str) -> str:
    graphs = read_graphs(bundle)
    alarms, at_goal, used, seconds = 0, 0, 0.0, 0.0
    for seed in range(SEEDS):
        model = _train(dataset, kind, seed)
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
        f"{kind:<14} {SEEDS} clean seeds: {alarms} false alarms; at most {used:.0%} of a "
        f"tolerance used; mean ELBO within 1e-5 nats in {at_goal}; at most {seconds:.1f} s a check"
    )


def _train(dataset: Dataset, kind: str, seed: int) -> VAE:
    return train(dataset, _configure(kind, seed)).model


def _configure(kind: str, seed: int = 0) -> Config:
    """Set a training of one epoch, which is shorter than the warm-up of most presets."""
    return configure(**{**KINDS, **OTHERS}[kind], epochs=1, seed=seed, kl_warmup_steps=1)


def _export(out: Path, dataset: Dataset, kind: str) -> tuple[Bundle, VAE]:
    config = _configure(kind)
    result = train(dataset, config)
    git = {"sha": "unknown", "dirty": False}
    checkpoint = Checkpoint(
        result.model, config, "uint8", result.model.settings.likelihood, dataset.describe(), git
    )
    metrics = evaluate(result.model, dataset.test.x[:100], nll_samples=1, seed=0)
    return export_bundle(out, checkpoint, metrics.to_json(), dataset.test.x), result.model
