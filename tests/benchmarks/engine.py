"""The engine compared with onnxruntime in a loop, and with torch."""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from numpy.typing import NDArray

from pipeline.config import configure
from pipeline.data.dataset import load_dataset
from pipeline.evaluation.evaluate import evaluate
from pipeline.export.bundle_export import export_bundle
from pipeline.model.checkpoint import Checkpoint
from pipeline.model.operations import FUNCTIONS
from pipeline.model.vae import VAE
from pipeline.training.beginning import build_model
from serving.bundle import Bundle
from serving.engine import Engine
from tests.benchmarks.measure import Row, best_in_turns


def measure() -> Iterator[Row]:
    """Measure the reconstruction of 2,048 rows by the untrained default model on one thread."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bundle, model, test_x = export_untrained(Path(folder, "bundle"))
        engine = Engine(bundle)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            bundle.path / "reconstruct.onnx", options, providers=["CPUExecutionProvider"]
        )
        for batch in (1, 64, 1024):
            x = test_x[:batch]
            feeds, rows = {"x": x}, torch.from_numpy(x)
            ours, floor, eager = best_in_turns(
                partial(repeat, partial(engine.reconstruct, x), 2048 // batch),
                partial(repeat, partial(session.run, None, feeds), 2048 // batch),
                partial(repeat, partial(FUNCTIONS["reconstruct"], model, rows), 2048 // batch),
                rounds=5,
            )
            yield Row(f"engine, batch {batch} / onnxruntime in a loop", ours, floor, "close to 1x")
            yield Row(f"engine, batch {batch} / torch eager", ours, eager, "below 1x")


def export_untrained(out: Path) -> tuple[Bundle, VAE, NDArray[Any]]:
    """Return the bundle of the untrained default model of MNIST, the model, and held-out rows."""
    config = configure()
    mnist = load_dataset("mnist", valid_fraction=0.1, test_fraction=0.1)
    model = build_model(mnist, config).eval().requires_grad_(False)
    git = {"sha": "unknown", "dirty": False}
    checkpoint = Checkpoint(model, config, "uint8", "bernoulli", mnist.describe(), git)
    metrics = evaluate(model, mnist.test.x[:1000], nll_samples=1, seed=0).to_json()
    return export_bundle(out, checkpoint, metrics, mnist.test.x), model, mnist.test.x


def repeat(function: Callable[[], object], times: int) -> None:
    """Call `function` often enough to be measured."""
    for _ in range(times):
        function()
