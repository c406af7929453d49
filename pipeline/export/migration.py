"""Write a bundle of an earlier schema in the one of today, with the same weights and graphs.

In: a bundle and its model. Out: a new bundle, whose parity has to be checked again.
"""

import shutil
from dataclasses import asdict
from pathlib import Path

import onnx

from pipeline.export.bundle_export import golden_arrays, npz_bytes
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
    MORE_GRAPHS,
    PARITY,
    SCHEMA_VERSION,
    Bundle,
)
from serving.errors import UsageRefused
from serving.files import check_output_folder, staged_folder
from serving.noise import noise_vectors
from serving.operations import portable_forms


def migrate_bundle(old: Bundle, model: VAE, out: Path) -> Bundle:
    """Write the bundle to `out`, which must not exist.

    What schema 1 has stays byte for byte, but for the report of parity, which is about its files,
    and the card. It gets the graphs of noise and the portable ones, and golden rows for both.

    Raises:
        UsageRefused: the bundle has the schema of today.
    """
    manifest = old.manifest
    require_earlier(old)
    check_output_folder(out)
    content = asdict(manifest) | {"schema_version": SCHEMA_VERSION}
    content["migrated_from"] = manifest.digest
    with staged_folder(out) as folder:
        for name in manifest.files.keys() - {PARITY, CARD, GOLDEN}:
            shutil.copy(old.path / name, folder / name)
        golden, metadata = old.golden(), _metadata(old)
        reduced = convert_precision(model, manifest.precision, manifest.ranges)
        for form in portable_forms(old.operations).values():
            save_graph(folder / form.graph, model, form, metadata, reduced)
            inputs = {tensor.name: golden[f"{form.name}.{tensor.name}"] for tensor in form.inputs}
            golden |= golden_arrays(reduced, form, inputs)
        golden |= noise_vectors(golden["score.x"], manifest.latent_dim)
        (folder / GOLDEN).write_bytes(npz_bytes(golden))
        write_noise_graphs(folder, manifest.latent_dim, metadata)
        content["needs"] = describe_folder(folder, (*GRAPHS, *MORE_GRAPHS))
        (folder / CARD).write_text(render_card(content, old.read_json(METRICS)))
        return Bundle(out, seal(folder, content))


def require_earlier(old: Bundle) -> None:
    """Refuse a bundle that has the schema of today."""
    if old.manifest.schema_version == SCHEMA_VERSION:
        raise UsageRefused(f"the bundle is of schema {SCHEMA_VERSION} already: use it as it is")


def _metadata(old: Bundle) -> dict[str, str]:
    """Return what the graphs say of the model, for those that are new."""
    properties = onnx.load(old.path / GRAPHS[0]).metadata_props
    metadata = {prop.key: prop.value for prop in properties if prop.key != "operation"}
    return metadata | {"schema_version": str(SCHEMA_VERSION)}
