"""Register and promote bundles as the commands do, and read the aliases and files afterwards."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.config import PromoteConfig
from pipeline.data.dataset import Split
from pipeline.registry.audit_log import Decision
from pipeline.registry.promotion import promote
from pipeline.registry.versions import register_bundle
from pipeline.tracking import tracked_run
from serving.bundle import Bundle, Manifest
from serving.mlflow_store import alias_version, connect
from tests.trained_models import Trained

GATE = PromoteConfig(min_active_units=0)  # `worse` is a collapsed model
STRICT = PromoteConfig(margin=0, min_active_units=0)


def register(bundle: Bundle, name: str = "vae") -> str:
    with tracked_run("test") as run:
        return register_bundle(run, bundle, name)


def promote_with(
    trained: Trained,
    version: str,
    gate: PromoteConfig = STRICT,
    *,
    force: str | None = None,
    dry_run: bool = False,
    **changes: Any,
) -> Decision:
    """Promote with the held-out split of `trained`, to which `changes` are made."""

    def load_test(manifest: Manifest) -> Split:
        return replace(trained[1].test, **changes)

    return promote("vae", version, load_test, gate, threads=1, force=force, dry_run=dry_run)


def alias(name: str) -> str | None:
    return alias_version(connect(), "vae", name)


def champion() -> str | None:
    return alias("champion")


def stored_files(version: str) -> Path:
    """The folder in which the store keeps the bundle of a version."""
    client = connect()
    source = client.get_model_version("vae", version).source
    model = client.get_logged_model(source.removeprefix("models:/"))
    return Path(model.artifact_location.removeprefix("file://")) / "artifacts" / "bundle"


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
