"""More versions of a model, made without training."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from pipeline.export.manifest import seal
from serving.bundle import GOLDEN, GRAPHS, Bundle
from serving.engine import Engine


def reseal(folder: Path, **changes: Any) -> Bundle:
    """Seal the folder again with `changes` to its manifest; another seed gives another digest."""
    content = json.loads((folder / "manifest.json").read_bytes())
    return Bundle(folder, seal(folder, {**content, **changes}))


def other_model(source: Path, folder: Path) -> Bundle:
    """Make a model with other answers: change two biases, and the golden outputs with them."""
    shutil.copytree(source, folder)
    for name in GRAPHS:
        graph = onnx.load(folder / name)
        for tensor in graph.graph.initializer:
            if tensor.name in ("encoder.z_loc.bias", "decoder.x_params.bias"):
                moved = numpy_helper.to_array(tensor) + np.float32(0.25)
                tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))
        onnx.save(graph, folder / name)
    bundle = reseal(folder)
    engine, golden = Engine(bundle), bundle.golden()
    for operation in bundle.operations.values():
        inputs = {t.name: golden[f"{operation.name}.{t.name}"] for t in operation.inputs}
        for name, value in engine.run(operation.name, inputs).items():
            golden[f"{operation.name}.{name}"] = value
    np.savez(folder / GOLDEN, **golden)  # type: ignore[arg-type]
    return reseal(folder)
