"""Do what takes seconds once in a process: imports, and the first export to ONNX.

`tests.forks` imports this module in the process that it forks. It must not start Python threads.
"""

import importlib
import logging
import os
import warnings

import torch
from torch import nn

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # mlflow reads it at its import
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

MODULES = (
    "alembic.command",  # from here to mlflow's stores: what mlflow imports at its first use
    "filelock",
    "mlflow.artifacts",
    "mlflow.cli",
    "mlflow.projects.backend.local",
    "mlflow.pyfunc",
    "mlflow.store.artifact.models_artifact_repo",
    "mlflow.store.model_registry.sqlalchemy_workspace_store",
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "matplotlib.pyplot",
    "onnxruntime",
    "pipeline.cli.main",
    "pyarrow.parquet",
    "torch._dynamo",
    "tests.pipeline.training.processes",
)


def preload() -> None:
    """Import all of `MODULES`, map mlflow's tables, export a net."""
    for name in MODULES:
        importlib.import_module(name)
    from sqlalchemy.orm import configure_mappers

    configure_mappers()
    torch.set_num_threads(1)
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh()).eval()
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(net, (torch.zeros(2, 2),), dynamo=True, verbose=False)
    logger.setLevel(level)


preload()
