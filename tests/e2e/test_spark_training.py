"""Spark's TorchDistributor trains one model on two executors."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from tests.e2e.conftest import TINY, run_vae
from tests.e2e.refusals import run_statuses
from tests.integration.java import make_java_home
from tests.trained_models import draw_images


@pytest.mark.slow(60)
def test_two_executors_train_one_model(tmp_path: Path, empty_store: Path) -> None:
    np.save(tmp_path / "x.npy", draw_images(300))
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    result = run_vae(
        tmp_path,
        *("train", "--data", str(tmp_path / "x.npy"), "--epochs", "3", *TINY),
        command=(sys.executable, "-m", "tests.integration.distributed_spark"),
        JAVA_HOME=str(make_java_home(tmp_path / "java")),
        PYTHONPATH=os.pathsep.join(sys.path),
        PYSPARK_PYTHON=sys.executable,
        MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path / 'mlflow.db'}",
    )
    assert result.returncode == 0, result.stderr
    assert run_statuses(tmp_path) == ["FINISHED"]
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs(["1"])
    assert len(client.get_metric_history(run.info.run_id, "valid_elbo")) == 3
