"""The MLflow store: connect to it, look things up in it, and report its refusals in one line.

Apart from `pyfunc_model`, no other module of `serving` imports mlflow.
"""

import contextlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from serving.console import say
from serving.errors import UsageRefused, VaeError, VerificationFailed
from serving.signals import deferred_signals
from serving.sqlite_store import database_path, find_move, is_begun, is_made, local_path
from serving.user_folders import ensure_home

if TYPE_CHECKING:
    from mlflow import MlflowClient as MlflowClient


_Answer = TypeVar("_Answer")

ARTIFACT = "bundle"
"""Name of the bundle's folder in a version."""

DIGEST_TAG = "bundle.sha256"

EXISTS = "RESOURCE_ALREADY_EXISTS"
MISSING = "RESOURCE_DOES_NOT_EXIST"
GONE = (MISSING, "INVALID_PARAMETER_VALUE")
"""Some stores give the latter for an id that cannot exist, and for a run marked as deleted."""

_STORE_MODULES = ("mlflow", "sqlalchemy", "sqlite3", "alembic", "requests", "urllib3")

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


def registered_version(client: "MlflowClient", name: str, version: str) -> tuple[str, str]:
    """Return the digest and the model URI of a version.

    Raises:
        UsageRefused: there is no such version.
        VerificationFailed: it is not ready, or was not registered by `vae register`.
    """
    registered = find_in_store(client.get_model_version, name, version)
    if registered is None:
        raise UsageRefused(f"{name} has no version {version} in {store_name()}")
    if registered.status != "READY":
        raise VerificationFailed(
            f"{name} version {version} is {registered.status}, not READY: register it again"
        )
    digest = registered.tags.get(DIGEST_TAG, "")
    if not re.fullmatch("[0-9a-f]{64}", digest):  # it becomes the name of a folder
        raise VerificationFailed(
            f"{name} version {version} has no digest in its tag {DIGEST_TAG}: "
            "it was not registered by vae register"
        )
    return digest, str(registered.source)


def alias_version(client: "MlflowClient", name: str, alias: str) -> str | None:
    """Return the number of the version that an alias names, or None if there is no such alias."""
    version = find_in_store(client.get_model_version_by_alias, name, alias)
    return None if version is None else str(version.version)


def list_aliases(client: "MlflowClient", name: str) -> list[str]:
    """Return all aliases of a model; an empty list if there is no such model."""
    model = find_in_store(client.get_registered_model, name)
    return [] if model is None else sorted(model.aliases)


def find_in_store(look_up: Callable[..., _Answer], *ids: str) -> _Answer | None:
    """Return what the store has under `ids`, or None if it has no such thing."""
    with store_errors(), ignoring(*GONE):
        return look_up(*ids)
    return None


@contextlib.contextmanager
def ignoring(*codes: str) -> Iterator[None]:
    """Suppress the store's error if it has one of these codes."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as err:
        if err.error_code not in codes:
            raise


def connect(*, create: bool = False) -> "MlflowClient":
    """Open the store of `MLFLOW_TRACKING_URI`, or `mlflow.db` in the working folder.

    Raises:
        UsageRefused: there is no such file, and it is not to be created.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    uri = os.environ.setdefault("MLFLOW_TRACKING_URI", tracking_uri())
    database = database_path(uri)
    if database is not None and not create and not is_begun(database):
        raise UsageRefused(
            f"there is no MLflow store {database}: set MLFLOW_TRACKING_URI to an existing one, or "
            "make one with vae run"
        )
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ensure_home()
    if "mlflow" not in sys.modules and sys.stderr.isatty():
        say(f"opening the store {store_name()}")  # to import mlflow takes seconds
    with store_errors():
        try:
            import mlflow
        except ImportError as err:
            raise UsageRefused(
                "models:/ needs mlflow: pip install 'vae-pipeline[registry]'"
            ) from err
        logging.getLogger("mlflow").setLevel(logging.ERROR)  # importing mlflow sets INFO
        # this logger repeats every error that is raised
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        mlflow.set_tracking_uri(uri)
        with _first_use(database):
            client = mlflow.MlflowClient()
            client.search_experiments(max_results=1)
    return client


def check_run(client: "MlflowClient", run_id: str) -> None:
    """Raise `UsageRefused` if there is no such run."""
    if find_in_store(client.get_run, run_id) is None:
        raise UsageRefused(f"no run {run_id!r} in {store_name()}")


def open_run(run_id: str) -> Callable[[Path, Mapping[str, float]], None]:
    """Return a function that logs a file and metrics to a run, which must exist."""
    client = connect()
    check_run(client, run_id)

    def log(path: Path, metrics: Mapping[str, float]) -> None:
        with store_errors():
            client.log_artifact(run_id, str(path))
            for name, value in metrics.items():
                client.log_metric(run_id, name, value)

    return log


def tracking_uri() -> str:
    """Return the store's URI: `MLFLOW_TRACKING_URI`, or `mlflow.db` in the working folder.

    Raises:
        UsageRefused: the path of the working folder cannot be part of an sqlite URI.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    path = Path.cwd() / "mlflow.db"
    if "?" in str(path):
        raise UsageRefused(
            f"no MLflow store can be at {path}, because its path holds a '?': rename the folder, "
            "or set MLFLOW_TRACKING_URI"
        )
    return f"sqlite:///{path}"


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Turn what mlflow and SQLAlchemy raise into a `VaeError` of one line that names the store.

    For an error of the operating system, such as a full disk, the line names the file instead.
    """
    try:
        yield
    except (VaeError, KeyboardInterrupt):
        raise
    except Exception as err:
        module = type(err).__module__.split(".")[0]
        unreachable = isinstance(err, ConnectionError | TimeoutError)
        if module not in _STORE_MODULES and not unreachable:
            if not isinstance(err, OSError):
                raise
            place = f"cannot use {err.filename}: " if err.filename else ""
            raise VaeError(f"{place}{err.strerror or err}") from err
        cause = getattr(err.__cause__, "orig", err)  # SQLAlchemy keeps the driver's error there
        first_line = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise VaeError(
            f"the MLflow store {store_name()} refused: {_without_password(first_line)}"
        ) from err


def store_name() -> str:
    """Return the store's URI without its password."""
    return _without_password(tracking_uri())


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)


@contextlib.contextmanager
def _first_use(database: Path | None) -> Iterator[None]:
    """Open an sqlite store alone and uninterrupted: one that is half made never opens again."""
    if database is None or is_made(database):
        yield
        return
    import filelock

    try:
        database.parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise VaeError(f"the MLflow store {store_name()} refused: {err.strerror}") from err
    with filelock.FileLock(f"{database}.lock"), deferred_signals():
        yield


def download_bundle(subject: str, model_uri: str, folder: Path) -> None:
    """Download the bundle of a version from `model_uri` to `folder`, whole or not at all.

    Raises:
        VerificationFailed: the store has no such files; `subject` names the version.
    """
    from mlflow.artifacts import download_artifacts

    with store_errors(), tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        bundle = None
        with ignoring(MISSING):
            fetched = download_artifacts(artifact_uri=model_uri, dst_path=temporary)
            bundle = Path(fetched, "artifacts", ARTIFACT)
        if bundle is None or not bundle.exists():
            raise VerificationFailed(f"{subject} {_explain_absence(model_uri)}")
        bundle.rename(folder)


def _explain_absence(model_uri: str) -> str:
    """Say where the files of a version should be, and what to do about it."""
    from mlflow import MlflowClient

    location = model_uri
    if model_uri.startswith("models:/"):
        model = find_in_store(MlflowClient().get_logged_model, model_uri.removeprefix("models:/"))
        location = "" if model is None else str(model.artifact_location)
    path = local_path(location)
    if path is None or path.exists():
        return "no longer has files in the store: register it again"
    move = find_move(location, tracking_uri())
    return f"has no files at {path}: {move or 'bring them back, or register it again'}"
