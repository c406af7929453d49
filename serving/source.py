"""Find a bundle: a folder, or a version in the MLflow registry. Only this file imports mlflow here.

`models:/vae@champion` and `models:/vae/3` are fetched into a cache named by the bundle's digest, by
temporary folder and rename, and verified each time. Raises `VerificationFailed` when the files are
not those that were registered, `VaeError` when the store cannot be reached.
"""

import contextlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.bundle import Bundle, open_bundle
from serving.errors import UsageRefused, VaeError, VerificationFailed

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACT = "bundle"
"""Name of the bundle's folder in a version."""
DIGEST_TAG = "bundle.sha256"

_REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")
_STORE_MODULES = ("mlflow", "sqlalchemy", "sqlite3", "alembic", "urllib3")
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_PRINT_MODEL_URLS_ON_CREATION": "false",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


@dataclass(frozen=True, slots=True)
class Source:
    """A verified bundle and, where it came from a registry, the version's name and number."""

    bundle: Bundle
    name: str | None = None
    version: str | None = None


def open_source(reference: str) -> Source:
    """Open the bundle at a path or a `models:/` reference; an alias is resolved once."""
    if not reference.startswith("models:"):
        return Source(open_bundle(Path(reference)))
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise UsageRefused(
            f"model must be a bundle folder, models:/NAME@ALIAS or models:/NAME/VERSION, "
            f"got {reference!r}"
        )
    client = connect()
    name, version = match["name"], match["version"]
    with store_errors():
        if version is None:
            version = alias_version(client, name, match["alias"])
    if version is None:
        raise UsageRefused(f"{name} has no {match['alias']}: run `vae run`, or promote a version")
    return open_version(client, name, version)


def open_version(client: "MlflowClient", name: str, version: str) -> Source:
    """Fetch a version's bundle into the cache and verify it against the registered digest."""
    with store_errors():
        registered = client.get_model_version(name, version)
        digest = registered.tags.get(DIGEST_TAG)
        if digest is None:
            raise VerificationFailed(f"{name} version {version} was not registered by vae register")
        folder = _cache_folder() / digest
        with contextlib.suppress(VerificationFailed):
            return Source(_open_sealed(folder, digest), name, version)
        shutil.rmtree(folder, ignore_errors=True)  # absent, or damaged in the cache
        _download(registered.source, folder)
    return Source(_open_sealed(folder, digest), name, version)


def verify_version(name: str, version: str) -> str:
    """Fetch a version's files anew, past the cache, and verify them; return the digest."""
    client = connect()
    with store_errors(), tempfile.TemporaryDirectory() as temporary:
        registered = client.get_model_version(name, version)
        folder = Path(temporary) / ARTIFACT
        _download(registered.source, folder)
        return _open_sealed(folder, registered.tags.get(DIGEST_TAG, "")).manifest.digest


def _open_sealed(folder: Path, digest: str) -> Bundle:
    bundle = open_bundle(folder)
    if bundle.manifest.digest != digest:
        raise VerificationFailed(
            f"{folder} holds bundle {bundle.manifest.digest[:12]}, registered was {digest[:12]}"
        )
    return bundle


def alias_version(client: "MlflowClient", name: str, alias: str) -> str | None:
    """The version number that an alias names, if any."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_model_version_by_alias(name, alias).version)
    except MlflowException as err:
        if err.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
            return None
        raise


def connect() -> "MlflowClient":
    """Open the store of `MLFLOW_TRACKING_URI`, or `mlflow.db` in the working folder."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    uri = os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{Path.cwd() / 'mlflow.db'}")
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with store_errors():
        try:
            import mlflow
        except ImportError as err:
            raise UsageRefused("models:/ needs mlflow: pip install 'vae-pipeline[train]'") from err
        logging.getLogger("mlflow").setLevel(logging.ERROR)  # its import sets it to INFO
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # logs what it raises
        mlflow.set_tracking_uri(uri)
        with _first_use(uri):
            client = mlflow.MlflowClient()
            client.search_experiments(max_results=1)
    return client


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Turn what mlflow, SQLAlchemy and the system raise into one line that names the store."""
    try:
        yield
    except (VaeError, KeyboardInterrupt):
        raise
    except Exception as err:
        module = type(err).__module__.split(".")[0]
        if not isinstance(err, OSError) and module not in _STORE_MODULES:
            raise
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        cause = getattr(err.__cause__, "orig", err)  # of an SQL error, what the driver said
        first_line = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise VaeError(f"the MLflow store {uri} refused: {first_line}") from err


def _first_use(uri: str) -> contextlib.AbstractContextManager[Any]:
    """A lock around opening an sqlite store: two processes that create it at once break it."""
    path = uri.removeprefix("sqlite:///")
    if path == uri or "?" in path:
        return contextlib.nullcontext()
    import filelock

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(f"{path}.lock")


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root) / "vae-pipeline"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _download(model_uri: str, folder: Path) -> None:
    from mlflow.artifacts import download_artifacts

    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".download."))
    try:
        fetched = Path(download_artifacts(artifact_uri=model_uri, dst_path=str(temporary)))
        if not folder.exists():  # else another process was first
            (fetched / "artifacts" / ARTIFACT).rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
