"""The MLflow registry: every bundle is one version of a registered model.

In: a sealed bundle whose parity passed on this machine. Out: a version with the alias `candidate`.
Its tags hold its lineage, which is thus still known when the training run is deleted. If parity has
not passed, raises `ParityFailed` and registers nothing.
"""

import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import serving
from pipeline.errors import ParityFailed
from pipeline.export.model_card import address_card, render_figures
from pipeline.parity.check import parity_faults
from pipeline.tracking import TrackedRun
from serving.bundle import CARD, METRICS, SCHEMA_VERSION, Bundle, manifest_digest, open_bundle
from serving.errors import UsageRefused, VerificationFailed
from serving.frames import SOURCES
from serving.mlflow_store import ARTIFACT, DIGEST_TAG, EXISTS, ignoring, store_errors
from serving.schema import Schema
from serving.signatures import SigningKey, find_signer, sign_bundle
from serving.table_cells import decode_table

if TYPE_CHECKING:
    pass

CANDIDATE, PREVIOUS = "candidate", "previous"

_FIGURES = ("elbo", "nll", "active_units")
"""Metrics that `vae list` shows."""

SIGNER_TAG = "signature.key"
"""The fingerprint of the key that a version says to be signed with, if it has a signature."""

FRAMES = "frames"
"""The artifact of a version with the modules that read data frames."""
PYFUNC_MODEL = Path(serving.__file__).parent / "pyfunc_model.py"
_VERIFYING = ("model-signing", "pyopenssl")
"""The packages of the extra `sign`, with which a version verifies its own signature."""


def register_bundle(
    run: TrackedRun, bundle: Bundle, name: str, key: SigningKey | None = None
) -> str:
    """Register a bundle as a version of `name` and make it the candidate.

    With a key, the version is signed; otherwise it has the signature of the folder, if there is
    one. A bundle that is registered already keeps its version, unless it is to have the signature
    of a key that the version does not have: versions never change, so that it becomes a new one.
    """
    if bundle.manifest.schema_version < SCHEMA_VERSION:
        raise UsageRefused(
            f"{bundle.path} is of schema {bundle.manifest.schema_version}, and versions are of "
            f"{SCHEMA_VERSION}: run vae migrate, and register what it makes"
        )
    if faults := parity_faults(bundle, on_this_machine=True):
        raise ParityFailed(f"{bundle.path} cannot be registered: {faults[0]}")
    with tempfile.TemporaryDirectory() as temporary, store_errors():
        copy = _copy_bundle(bundle, Path(temporary))
        if key is not None:
            sign_bundle(copy, key)
        signer = find_signer(bundle if key is None else copy)
        with ignoring(EXISTS):
            run.client.create_registered_model(name)
        version = _find_version(run, name, bundle.manifest.digest, signer)
        if version is None:
            version = _create_version(run, copy, name, signer)
        run.client.set_registered_model_alias(name, CANDIDATE, version)
    return version


def _copy_bundle(bundle: Bundle, folder: Path) -> Bundle:
    """Copy a bundle to where nothing else writes, so that only what was checked is signed."""
    # mlflow stores an artifact under the name of its folder
    copy = open_bundle(shutil.copytree(bundle.path, folder / ARTIFACT))
    if copy.manifest.digest != bundle.manifest.digest:
        raise VerificationFailed(f"{bundle.path} was changed while it was registered: try again")
    return copy


def lineage_tags(bundle: Bundle) -> dict[str, str]:
    """Return the tags that still describe a version's origin when its run is deleted."""
    manifest = bundle.manifest
    splits = manifest.data["splits"]
    metrics = bundle.read_json(METRICS)
    origin = manifest.config["train"].get("init_from")
    return {
        DIGEST_TAG: manifest.digest,
        "run.id": str(manifest.run_id),
        "git.sha": str(manifest.git["sha"]),
        "git.dirty": str(manifest.git["dirty"]),
        "config.sha256": manifest_digest(manifest.config),
        "data.source": str(manifest.data["source"]),
        **{f"data.{split}.sha256": row["sha256"] for split, row in splits.items()},
        "parity.status": "passed",
        "precision": manifest.precision,
        **{name: str(metrics[name]) for name in _FIGURES if name in metrics},
        "latents": str(manifest.latent_dim),
        **({"init.from": origin} if origin else {}),
    }


def _find_version(run: TrackedRun, name: str, digest: str, signer: str | None) -> str | None:
    query = f"name='{name}' and tags.`{DIGEST_TAG}`='{digest}'"
    if signer is not None:
        query += f" and tags.`{SIGNER_TAG}`='{signer}'"
    found = run.client.search_model_versions(query)
    return str(found[0].version) if found else None


def _create_version(run: TrackedRun, bundle: Bundle, name: str, signer: str | None) -> str:
    import mlflow

    schema = bundle.manifest.schema
    artifacts = {ARTIFACT: str(bundle.path)}
    if schema:
        artifacts[FRAMES] = str(copy_frame_reader(bundle.path.parent))
    info = mlflow.pyfunc.log_model(
        name=name,
        python_model=str(PYFUNC_MODEL),
        artifacts=artifacts,
        signature=predict_signature(schema),
        input_example=_input_example(bundle),
        pip_requirements=_requirements(signed=signer is not None),
        metadata={DIGEST_TAG: bundle.manifest.digest},
    )
    version = run.client.create_model_version(
        name,
        f"models:/{info.model_id}",
        run_id=run.run_id,
        tags=lineage_tags(bundle) | ({SIGNER_TAG: signer} if signer else {}),
        model_id=info.model_id,
    )
    number = str(version.version)
    run.client.update_model_version(name, number, _description(bundle, name, number))
    return number


def _description(bundle: Bundle, name: str, version: str) -> str:
    """Return the figures that matter, then the version's model card without its pictures.

    The registry's page would not find the pictures.
    """
    manifest = bundle.manifest
    try:
        figures = render_figures(bundle.read_json(METRICS), manifest.latent_dim)
    except KeyError as err:  # the gate will refuse it
        figures = f"{METRICS} has no {err.args[0]}"
    origin = f"Data `{manifest.data['source']}`, preset {manifest.config['preset']}"
    card = address_card((bundle.path / CARD).read_text(), name, version)
    lines = (_space_cells(line) for line in card.splitlines() if "![" not in line)
    text = "\n".join(lines)
    return f"{figures}. {origin}, seed {manifest.seed}; parity passed.\n\n{text}"


def _space_cells(line: str) -> str:
    """Keep the cells of a table apart, between which MLflow leaves no space."""
    return line.replace(" | ", "&emsp; | ") if line.startswith("| ") else line


def copy_frame_reader(folder: Path) -> Path:
    """Copy the modules with which a version reads data frames; see `serving.pyfunc_model`."""
    target = folder / FRAMES
    target.mkdir()
    for name in SOURCES:
        shutil.copy(PYFUNC_MODEL.parent / f"{name}.py", target)
    return target


def _input_example(bundle: Bundle) -> Any:
    """Return a row as `predict` takes it."""
    manifest = bundle.manifest
    if manifest.schema is None:
        return np.zeros((1, *manifest.x_shape), manifest.x_dtype)
    import pandas as pd

    return pd.DataFrame(decode_table(manifest.schema, bundle.golden()["encode.x"][:1]))


def predict_signature(schema: Schema | None = None) -> Any:
    """Describe the parameters of `predict`, and the columns of a mixed table.

    `predict` checks the rows itself. MLflow's types of columns would refuse rows that it takes:
    int64 or Decimal for double, a category for string, dates in text or with a zone for datetime.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec
    from mlflow.types import Schema as Inputs
    from mlflow.types.schema import AnyType

    columns = [ColSpec(AnyType(), name) for name in schema.sources] if schema else []

    params = [
        ParamSpec("operation", DataType.string, "reconstruct"),
        ParamSpec("num_samples", DataType.long, 1),
        ParamSpec("seed", DataType.long, 0),
    ]
    return ModelSignature(Inputs(columns) if columns else None, params=ParamSchema(params))


def _requirements(*, signed: bool) -> list[str]:
    """Return what a version needs where MLflow loads it; a signed one can be verified there."""
    import mlflow
    import onnxruntime

    gpu = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    runtime = "onnxruntime-gpu" if gpu else "onnxruntime"
    packages = {"mlflow": mlflow, "numpy": np, runtime: onnxruntime}
    found = [f"{package}=={module.__version__}" for package, module in packages.items()]
    return [*found, *(map(_pinned, _VERIFYING) if signed else ())]


def _pinned(package: str) -> str:
    """Pin a package to its version here; a folder that is signed already needs none here."""
    try:
        return f"{package}=={metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return package
