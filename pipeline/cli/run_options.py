"""Options that say where a run is kept in MLflow, and under which name."""

import click

experiment_option = click.option(
    "--experiment",
    help="MLflow experiment that the run belongs to  [default: MLFLOW_EXPERIMENT_NAME, "
    "MLFLOW_EXPERIMENT_ID, or vae]",
)
run_name_option = click.option(
    "--run-name", help="Name of the run in MLflow  [default: preset, data and seed]"
)
