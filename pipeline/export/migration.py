"""Write a bundle of an earlier schema in the one of today, with the same weights and graphs.

In: a bundle and its model. Out: a new bundle, whose parity has to be checked again.
"""

import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import onnx

from pipeline.export.bundle_export import choose_golden, golden_arrays, npz_bytes
from pipeline.export.graph_export import save_graph
from pipeline.export.graph_needs import describe_folder
from pipeline.export.manifest import seal
from pipeline.export.model_card import render_card
from pipeline.export.noise_graphs import write_noise_graphs
from pipeline.export.quantization import convert_precision
from pipeline.model.vae import VAE
from serving.bundle import (
    CARD,
    GOLDEN,
    GRAPHS,
    METRICS,
    PARITY,
    SCHEMA_VERSION,
    Bundle,
    describe_operations,
)
from serving.errors import UsageRefused
from serving.files import check_output_folder, staged_folder
from serving.noise import noise_vectors
from serving.operations import Operation, operation_table, portable_forms


def migrate_bundle(old: Bundle, model: VAE, out: Path) -> Bundle:
    """Write the bundle to `out`, which must not exist.

    What it has stays byte for byte, but for the report of parity, which is about its files, and the
    card. It gets the graphs of noise, the portable ones and those of later operations, and golden
    rows for all.

    Raises:
        UsageRefused: the bundle has the schema of today.
    """
    manifest = old.manifest
    require_earlier(old)
    check_output_folder(out)
    content = asdict(manifest) | {"schema_version": SCHEMA_VERSION}
    content["migrated_from"] = manifest.digest
    operations = operation_table(
        manifest.x_shape, manifest.x_dtype, manifest.latent_dim, mixed=manifest.schema is not None
    )
    content["operations"] = describe_operations(operations)
    with staged_folder(out) as folder:
        for name in manifest.files.keys() - {PARITY, CARD, GOLDEN}:
            shutil.copy(old.path / name, folder / name)
        golden, metadata = old.golden(), _metadata(old)
        reduced = convert_precision(model, manifest.precision, manifest.ranges)
        for form in _missing_forms(old, operations):
            save_graph(folder / form.graph, model, form, metadata, reduced)
            if f"{form.name}.{form.inputs[0].name}" not in golden:
                named = choose_golden(reduced, form, golden["encode.x"])
                golden |= {f"{form.name}.{name}": value for name, value in named.items()}
            inputs = {tensor.name: golden[f"{form.name}.{tensor.name}"] for tensor in form.inputs}
            golden |= golden_arrays(reduced, form, inputs)
        golden |= noise_vectors(golden["score.x"], manifest.latent_dim)
        (folder / GOLDEN).write_bytes(npz_bytes(golden))
        features = math.prod(manifest.x_shape)
        write_noise_graphs(folder, manifest.latent_dim, features, metadata)
        content["needs"] = describe_folder(folder)
        (folder / CARD).write_text(render_card(content, old.read_json(METRICS)))
        return Bundle(out, seal(folder, content))


def require_earlier(old: Bundle) -> None:
    """Refuse a bundle that has the schema and the operations of today."""
    if old.manifest.schema_version == SCHEMA_VERSION and "draw" in old.operations:
        raise UsageRefused(f"the bundle is of schema {SCHEMA_VERSION} already: use it as it is")


def _missing_forms(old: Bundle, operations: Mapping[str, Operation]) -> list[Operation]:
    """Return the forms of today's operations that a bundle lacks."""
    forms = (*operations.values(), *portable_forms(operations).values())
    return [form for form in forms if form.label not in old.all_forms]


def _metadata(old: Bundle) -> dict[str, str]:
    """Return what the graphs say of the model, for those that are new."""
    properties = onnx.load(old.path / GRAPHS[0]).metadata_props
    metadata = {prop.key: prop.value for prop in properties if prop.key != "operation"}
    return metadata | {"schema_version": str(SCHEMA_VERSION)}
