"""MLflow runs: open a run, or use the one that `mlflow run` opened; log to it and close it.

In: the name of an experiment and, under `mlflow run`, the id of its run. A run that is interrupted
ends as KILLED, one that fails as FAILED.
"""

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.experiments import check_run_open, choose_experiment
from serving.errors import UsageRefused, VerificationFailed
from serving.mlflow_store import check_run, connect, store_errors, store_name, tracking_uri
from serving.sqlite_store import find_move, local_path

if TYPE_CHECKING:
    from mlflow import MlflowClient

STATUS_TAG = "vae.status"
CHECKPOINT = "checkpoint"
FIGURES = "figures"
RESUME = "resume"
"""This and the two above are artifact folders of a training run."""


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """An open MLflow run."""

    client: "MlflowClient"
    run_id: str

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log settings, except those that `mlflow run` has logged already in its own spelling."""
        from mlflow.entities import Param

        with store_errors():
            known = self.client.get_run(self.run_id).data.params
            new = [Param(key, str(value)) for key, value in params.items() if key not in known]
            self.client.log_batch(self.run_id, params=new)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics in one write."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        values = [Metric(key, float(value), now, step) for key, value in metrics.items()]
        with store_errors():
            self.client.log_batch(self.run_id, metrics=values)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags in one write."""
        from mlflow.entities import RunTag

        with store_errors():
            values = [RunTag(key, str(value)) for key, value in tags.items()]
            self.client.log_batch(self.run_id, tags=values)

    def describe(self, text: str) -> None:
        """Set the description that MLflow's pages show, unless a person has written one."""
        from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

        with store_errors():
            if not self.client.get_run(self.run_id).data.tags.get(MLFLOW_RUN_NOTE):
                self.client.set_tag(self.run_id, MLFLOW_RUN_NOTE, text)

    def log_dataset(self, description: Mapping[str, Any]) -> None:
        """Log the splits in a result of `Dataset.describe` as inputs of the run."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"uri": description["source"]})
        inputs = [
            DatasetInput(
                # the store allows 36 characters; the tags hold the whole digest
                Dataset(Path(description["source"]).name, row["sha256"][:36], "local", source),
                [InputTag("mlflow.data.context", split)],
            )
            for split, row in description["splits"].items()
        ]
        with store_errors():
            self.client.log_inputs(self.run_id, inputs)

    def log_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Log a JSON artifact."""
        self.log_text(name, json.dumps(content, indent=1))

    def log_text(self, name: str, text: str) -> None:
        """Log a text artifact."""
        with store_errors():
            self.client.log_text(self.run_id, text, name)

    def log_folder(self, folder: Path, name: str) -> None:
        """Log every file of a folder into the artifact folder `name`."""
        with store_errors():
            self.client.log_artifacts(self.run_id, str(folder), name)

    def log_file(self, path: Path, folder: str) -> None:
        """Log one file into an artifact folder; it replaces a file of the same name."""
        with store_errors():
            self.client.log_artifact(self.run_id, str(path), folder)

    def fetch_folder(self, name: str, folder: Path) -> list[Path]:
        """Download the files of an artifact folder; return no paths if it does not exist."""
        with store_errors():
            check_place(self.client, self.run_id)
            files = [item.path for item in self.client.list_artifacts(self.run_id, name)]
            return [
                Path(self.client.download_artifacts(self.run_id, file, str(folder)))
                for file in files
            ]

    def delete_folder(self, name: str) -> None:
        """Delete an artifact folder, if the store supports deletion."""
        from mlflow.exceptions import MlflowException
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        with store_errors():
            uri = self.client.get_run(self.run_id).info.artifact_uri
        with contextlib.suppress(MlflowException, NotImplementedError, OSError):
            get_artifact_repository(uri).delete_artifacts(name)

    def status(self) -> str:
        """Return the run's status in MLflow: RUNNING, FINISHED, FAILED or KILLED."""
        with store_errors():
            return str(self.client.get_run(self.run_id).info.status)

    def logged_steps(self) -> frozenset[tuple[str, int]]:
        """Return the name and the step of every logged value."""
        with store_errors():
            names = self.client.get_run(self.run_id).data.metrics
            return frozenset(
                (name, value.step)
                for name in names
                for value in self.client.get_metric_history(self.run_id, name)
            )

    def experiment_page(self) -> str | None:
        """Return the address of the page that lists the runs, if a server serves the store.

        Without `workflowType`, MLflow 3.17 opens its view for language models, which lacks runs.
        """
        if not store_name().startswith(("http://", "https://")):
            return None
        number = self.client.get_run(self.run_id).info.experiment_id
        return f"{store_name().rstrip('/')}/#/experiments/{number}?workflowType=machine_learning"

    def artifact_place(self, name: str) -> str:
        """Return where an artifact is: a path for a local store, otherwise a URI."""
        uri = self.client.get_run(self.run_id).info.artifact_uri
        path = local_path(uri)
        return f"{uri}/{name}" if path is None else str(path / name)


@contextlib.contextmanager
def tracked_run(
    experiment: str | None = None,
    *,
    run_id: str | None = None,
    name: str | None = None,
    default_name: str | None = None,
) -> Iterator[TrackedRun]:
    """Open a new run, or the run `run_id`, and close it when the block ends.

    A new one belongs to `experiment`; without it to the one that MLFLOW_EXPERIMENT_NAME or
    MLFLOW_EXPERIMENT_ID names, or to `vae`. `default_name` replaces a name that MLflow made up.
    """
    client = connect(create=True)
    import mlflow

    with store_errors():
        if run_id is None:
            number = choose_experiment(client, experiment)
            mlflow.start_run(experiment_id=number, run_name=name or default_name)
        else:
            run = check_run_open(client, run_id, experiment)
            made_up = default_name is not None and _is_made_up(run.info.run_name)
            mlflow.start_run(run_id=run_id, run_name=name or (default_name if made_up else None))
        active = mlflow.active_run()
    status = "FAILED"
    try:
        yield TrackedRun(client, active.info.run_id)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        with store_errors():
            # under `mlflow run`, MLflow 3.17 turns any status into FAILED when the command ends
            client.set_tag(active.info.run_id, STATUS_TAG, status)
            mlflow.end_run(status)


def fetch_artifact(run_id: str, name: str, folder: Path) -> Path:
    """Download a run's artifact into `folder`.

    Raises:
        UsageRefused: there is no such run, or it does not have the artifact yet.
    """
    client = connect()
    check_run(client, run_id)
    check_place(client, run_id)
    with store_errors():
        names = {item.path for item in client.list_artifacts(run_id)}
        if name not in names:
            why = "no training has finished in it"
            if RESUME in names:
                why = f"its training has not finished; continue it with vae train --resume {run_id}"
            raise UsageRefused(f"run {run_id} has no {name}: {why}")
        return Path(client.download_artifacts(run_id, name, str(folder)))


def check_place(client: "MlflowClient", run_id: str) -> None:
    """Raise `VerificationFailed` if the run's files are elsewhere, because the store was moved."""
    with store_errors():
        uri = str(client.get_run(run_id).info.artifact_uri)
    path = local_path(uri)
    if path is not None and not path.exists() and (move := find_move(uri, tracking_uri())):
        raise VerificationFailed(f"run {run_id} has no files at {path}: {move}")


def fetch_json(run_id: str, name: str) -> Any:
    """Read a run's JSON artifact."""
    with tempfile.TemporaryDirectory() as temporary:
        return json.loads(fetch_artifact(run_id, name, Path(temporary)).read_bytes())


def _is_made_up(name: str) -> bool:
    """Whether MLflow made up the name of a run, such as angry-pig-299."""
    from mlflow.utils import name_utils

    words = tuple(name.split("-"))
    known = [getattr(name_utils, f"_GENERATOR_{kind}", ()) for kind in ("PREDICATES", "NOUNS")]
    return len(words) == 3 and words[0] in known[0] and words[1] in known[1]


def git_state() -> dict[str, Any]:
    """Return the commit of the source tree, and whether there are uncommitted changes."""
    sha = _git("rev-parse", "HEAD")
    return {"sha": sha or "unknown", "dirty": bool(sha and _git("status", "--porcelain"))}


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
