"""Export a trained model as a bundle: its ONNX graphs, weights, golden rows and the manifest.

In: a `Checkpoint`, its held-out metrics and some held-out rows. Out: a directory, complete or
absent; the same checkpoint gives the same graphs, byte for byte. Raises `ParityFailed` if a graph
is not sound, `UsageRefused` if the directory exists already.
"""

import io
import json
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config import Precision
from pipeline.environment import describe_versions
from pipeline.errors import ParityFailed
from pipeline.export.ambiguity import settle_inputs
from pipeline.export.graph_export import OPSET, save_graph
from pipeline.export.graph_needs import describe_folder
from pipeline.export.held_out_scores import score_held_out
from pipeline.export.manifest import seal
from pipeline.export.model_card import has_pictures, render_card
from pipeline.export.noise_graphs import write_noise_graphs
from pipeline.export.quantization import Ranges, convert_precision
from pipeline.model.checkpoint import Checkpoint, weights_bytes
from pipeline.model.operations import (
    DRAWS,
    Array,
    derive_tolerances,
    draw_inputs,
    run_reference,
)
from pipeline.model.vae import VAE
from serving.bundle import (
    CARD,
    GOLDEN,
    HELD_OUT,
    METRICS,
    RECONSTRUCTIONS,
    SAMPLES,
    SCHEMA_VERSION,
    WEIGHTS,
    Bundle,
    describe_operations,
)
from serving.files import check_output_folder, staged_folder
from serving.io.images import write_grid, write_pairs
from serving.noise import draw_rows, noise_vectors
from serving.operations import Operation, operation_table, portable_forms
from serving.row_distance import RowDistance
from serving.value_range import MAX_BYTE, Range, picture_range, to_brightness

GOLDEN_ROWS = 8
GOLDEN_POOL = 64
"""Rows from which the golden rows are chosen: the first whose results are unambiguous."""
GOLDEN_SAMPLES = 4
CARD_SAMPLES = 40
CARD_COLUMNS = 10


def export_bundle(
    out: Path,
    checkpoint: Checkpoint,
    metrics: Mapping[str, Any],
    x: Array,
    *,
    precision: Precision = "float32",
    ranges: Ranges | None = None,
    distance: RowDistance | None = None,
    advance: Callable[[int], None] = lambda graphs: None,
) -> Bundle:
    """Write the bundle to `out`, which must not exist; `x` are held-out rows.

    `int8` needs the `ranges` that `pipeline.export.quantization.calibrate` found on training rows.
    `distance` is what `pipeline.export.row_centres.find_centres` found on those of a mixed table.
    `advance` receives the number of graphs done since its last call.
    """
    check_output_folder(out)
    model = checkpoint.model
    reduced = convert_precision(model, precision, ranges)
    operations = operation_table(
        model.x_shape, checkpoint.x_dtype, model.latent_dim, mixed=model.mixed is not None
    )
    content = _manifest_content(checkpoint, operations)
    content |= {"precision": precision, "ranges": ranges}
    with staged_folder(out) as folder:
        weights = weights_bytes(model)
        (folder / WEIGHTS).write_bytes(weights)
        metadata = _graph_metadata(checkpoint, sha256(weights).hexdigest(), precision)
        forms = (*operations.values(), *portable_forms(operations).values())
        for operation in forms:
            if operation.name == "sample":  # the decoder, under other names
                continue
            save_graph(folder / operation.graph, model, operation, metadata, reduced)
            advance(1)
        write_noise_graphs(folder, model.latent_dim, math.prod(model.x_shape), metadata)
        (folder / METRICS).write_text(json.dumps(dict(metrics), indent=1, allow_nan=False))
        (folder / GOLDEN).write_bytes(_golden_bytes(reduced, forms, x))
        held_out = score_held_out(reduced, operations["score"], x, distance)
        (folder / HELD_OUT).write_bytes(npz_bytes(held_out.arrays()))
        if has_pictures(model.x_shape, checkpoint.x_dtype, checkpoint.data):
            values = picture_range(checkpoint.x_dtype, checkpoint.data.get("range", (0, MAX_BYTE)))
            _write_pictures(folder, reduced, operations, x, values)
        content["needs"] = describe_folder(folder)
        (folder / CARD).write_text(render_card(content, metrics))
        manifest = seal(folder, content)
    return Bundle(out, manifest)


def _golden_bytes(model: VAE, operations: Iterable[Operation], x: Array) -> bytes:
    """Return each operation's inputs, float64 outputs and tolerances, and vectors of noise."""
    arrays: dict[str, Array] = {}
    for operation in operations:
        arrays |= golden_arrays(model, operation, choose_golden(model, operation, x))
    return npz_bytes(arrays | noise_vectors(arrays["score.x"], model.latent_dim))


def choose_golden(model: VAE, operation: Operation, x: Array) -> dict[str, Array]:
    """Return inputs for held-out rows whose results are unambiguous."""
    drawn = draw_inputs(operation, x[:GOLDEN_POOL], num_samples=GOLDEN_SAMPLES, seed=1)
    settled, rows = settle_inputs(model, operation, drawn)
    if not rows.size:
        raise ParityFailed(f"no held-out row of {operation.name} has an unambiguous result")
    return {name: values[rows[:GOLDEN_ROWS]] for name, values in settled.items()}


def golden_arrays(
    model: VAE, operation: Operation, inputs: Mapping[str, Array]
) -> dict[str, Array]:
    """Return the inputs of an operation, its outputs in float64, and their tolerances."""
    arrays = {f"{operation.label}.{name}": value for name, value in inputs.items()}
    exact = run_reference(model, operation, inputs, torch.float64)
    rounded = (run_reference(model, operation, inputs, torch.float32, draw=n) for n in range(DRAWS))
    for name, tolerance in derive_tolerances(exact, rounded).items():
        key = f"{operation.label}.{name}"
        arrays[key] = exact[name]
        arrays[f"{key}.budget"] = np.array(tolerance.max)
    return arrays


def npz_bytes(arrays: Mapping[str, Array]) -> bytes:
    """Return an `.npz` file without time stamps: the same arrays give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, value in arrays.items():
            npy = io.BytesIO()
            np.save(npy, value)
            archive.writestr(zipfile.ZipInfo(f"{key}.npy"), npy.getvalue())
    return buffer.getvalue()


def _write_pictures(
    folder: Path, model: VAE, operations: Mapping[str, Operation], x: Array, values: Range
) -> None:
    """Write samples and reconstructions; `values` are those of a black and of a white pixel."""
    z, rows = draw_rows(0, 0, CARD_SAMPLES, model.latent_dim), x[: 2 * CARD_COLUMNS]
    samples, x_loc = (
        run_reference(model, operations[name], inputs, torch.float32)["x_loc"]
        for name, inputs in (("decode", {"z": z}), ("reconstruct", {"x": rows}))
    )
    samples, rows, x_loc = (to_brightness(images, values) for images in (samples, rows, x_loc))
    write_grid(folder / SAMPLES, samples, columns=CARD_COLUMNS)
    write_pairs(folder / RECONSTRUCTIONS, rows, x_loc, CARD_COLUMNS)


def _graph_metadata(
    checkpoint: Checkpoint, weights_sha256: str, precision: Precision
) -> dict[str, str]:
    """Return a graph's description of itself, for use without the manifest; no place or time."""
    return {
        "schema_version": str(SCHEMA_VERSION),
        "x_shape": json.dumps(checkpoint.model.x_shape),
        "x_dtype": checkpoint.x_dtype,
        "latent_dim": str(checkpoint.model.latent_dim),
        "likelihood": checkpoint.likelihood,
        "precision": precision,
        "units": "x and x_loc in the data's units; bounds in nats, larger is better",
        "weights_sha256": weights_sha256,
        "train_sha256": checkpoint.data["splits"]["train"]["sha256"],
        "run_id": checkpoint.run_id or "",
        "torch": torch.__version__,
    }


def _manifest_content(
    checkpoint: Checkpoint, operations: Mapping[str, Operation]
) -> dict[str, Any]:
    return {
        "x_shape": list(checkpoint.model.x_shape),
        "x_dtype": checkpoint.x_dtype,
        "latent_dim": checkpoint.model.latent_dim,
        "likelihood": checkpoint.likelihood,
        "operations": describe_operations(operations),
        "opset": OPSET,
        "versions": describe_versions("torch", "onnx", "onnxscript", "onnxruntime"),
        "run_id": checkpoint.run_id,
        "git": dict(checkpoint.git),
        "data": dict(checkpoint.data),
        "seed": checkpoint.config.train.seed,
        "config": checkpoint.config.to_json(),
    }
