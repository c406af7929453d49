"""Experiments of the MLflow store: which one a run belongs to, and whether it can be used.

In: a name, or what MLflow's variables say. Out: the id of an experiment that can take new runs.
Raises `UsageRefused` if the experiment was deleted, and `VerificationFailed` if the store was
moved, because new files would then be written to its old folder.
"""

import os
import re
from typing import TYPE_CHECKING, Any

from serving.errors import UsageRefused, VerificationFailed
from serving.mlflow_store import find_in_store, store_errors, store_name, tracking_uri
from serving.sqlite_store import database_path, find_moves, local_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DEFAULT = "vae"


def choose_experiment(client: "MlflowClient", name: str | None) -> str:
    """Return the id of the experiment `name`, or of the one that MLflow's variables name."""
    name = name or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    number = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if name or not number:
        return open_experiment(client, name or DEFAULT)
    found = find_in_store(client.get_experiment, number)
    if found is None:
        raise UsageRefused(
            f"{store_name()} has no experiment {number}, which MLFLOW_EXPERIMENT_ID names"
        )
    return _usable(found)


def open_experiment(client: "MlflowClient", name: str) -> str:
    """Return the id of an experiment, creating it if needed.

    On an sqlite store a new experiment keeps its artifacts in a folder beside the database.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        database, location = database_path(tracking_uri()), None
        if database is not None:
            folder = re.sub(r"[^\w.-]+", "_", name).strip(".") or "_"
            location = (database.parent / "mlartifacts" / folder).as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:  # another process may have created it first
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return _usable(found)


def check_experiment(client: "MlflowClient", name: str) -> None:
    """Refuse an experiment that exists and cannot take new runs."""
    with store_errors():
        found = client.get_experiment_by_name(name)
    if found is not None:
        _usable(found)


def check_run_open(client: "MlflowClient", run_id: str, experiment: str | None) -> "Run":
    """Return a run; refuse one that cannot be continued, or that is of another experiment."""
    run = client.get_run(run_id)
    found = client.get_experiment(run.info.experiment_id)
    _usable(found)
    if run.info.lifecycle_stage == "deleted":
        raise UsageRefused(
            f"run {run_id} was deleted: restore it with mlflow runs restore --run-id {run_id}"
        )
    if experiment not in (None, "", found.name):
        raise UsageRefused(
            f"run {run_id} belongs to the experiment {found.name!r}, not to {experiment!r}; under "
            "mlflow run, give --experiment-name to it"
        )
    return run


def _usable(found: Any) -> str:
    if found.lifecycle_stage == "deleted":
        raise UsageRefused(
            f"experiment {found.name!r} was deleted: restore it with "
            f"mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    place = local_path(str(found.artifact_location))
    for move in find_moves(tracking_uri()):
        if place is not None and place.is_relative_to(move.old):
            raise VerificationFailed(
                f"experiment {found.name!r} keeps its files at {place}, but {move}"
            )
    return str(found.experiment_id)
