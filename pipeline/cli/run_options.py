"""Options that say where a run is kept in MLflow, and under which name."""

import os
from typing import Any

import click


class Name(click.ParamType[str]):
    """A name in MLflow."""

    name = "text"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """Refuse an empty name, for which MLflow would take another."""
        if not value.strip():
            self.fail(f"it must be a name, got {value!r}", param, ctx)
        return str(value)


experiment_option = click.option(
    "--experiment",
    type=Name(),
    help="MLflow experiment that the run belongs to  [default: MLFLOW_EXPERIMENT_NAME, "
    "MLFLOW_EXPERIMENT_ID, or vae]",
)
run_name_option = click.option(
    "--run-name", type=Name(), help="Name of the run in MLflow  [default: preset, data and seed]"
)


def project_run() -> str | None:
    """Return the id of the run that `mlflow run` made for this process, if it did."""
    return os.environ.get("MLFLOW_RUN_ID")
