"""What a refused command says, and what it leaves behind."""

import hashlib
import subprocess
from pathlib import Path

WAITING = ("loading ", "reading ", "opening ", "fetching ")


def tree(folder: Path) -> dict[str, str]:
    """Return every path in a folder, with the digest of each file."""
    return {
        str(path.relative_to(folder)): ""
        if path.is_dir()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
    }


def refusal(
    result: "subprocess.CompletedProcess[str]", exit_code: int, before: tuple[str, ...] = ()
) -> str:
    """Check exit code and output, and return the one line of the error.

    `before` are the lines of progress that come before it, without those that name what the
    command waits for.
    """
    assert result.returncode == exit_code, result.stderr
    assert result.stdout == ""
    *progress, line = result.stderr.splitlines()
    assert tuple(line for line in progress if not line.startswith(WAITING)) == before
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def run_statuses(folder: Path) -> list[str]:
    """Return the status of every training run in the store of `folder`, the newest first."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("vae")
    assert experiment is not None
    return [str(run.info.status) for run in client.search_runs([experiment.experiment_id])]


def versions(folder: Path) -> list[str]:
    from mlflow import MlflowClient

    client = MlflowClient(registry_uri=f"sqlite:///{folder / 'mlflow.db'}")
    return [str(version.version) for version in client.search_model_versions("name='vae'")]
