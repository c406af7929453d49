"""The command line in a folder of its own, and one tiny model that it made."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.forks import run_fork
from tests.shared import make_once

VAE = (sys.executable, "-m", "pipeline.cli")
TINY = ("--hidden-dims", "16", "--latent-dim", "3", "--nll-samples", "2", "--threads", "1")


def clean_environment(folder: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without settings of the user, with a cache in `folder`.

    pytest's own variables go as well: mlflow behaves differently where it sees them.
    """
    foreign = ("MLFLOW_", "PYTEST_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    return {**env, "XDG_CACHE_HOME": str(folder / "cache"), "NO_PROXY": "127.0.0.1", **variables}


def run_vae(
    folder: Path, *arguments: str, command: tuple[str, ...] = (), **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Run `vae` in `folder` to its end, in a fork; or another command, in a new process."""
    env = clean_environment(folder, variables)
    if not command:
        return run_fork(("vae", *arguments), folder, env)
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=env, capture_output=True, text=True
    )


def draw_images(rows: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, 6, 5), dtype=np.uint8)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `x.npy`, the store `mlflow.db` and `bundle`, the champion of `vae`.

    No test may change it.
    """
    return make_once(tmp_path_factory, "made", run_main_job)


def run_main_job(folder: Path) -> None:
    np.save(folder / "x.npy", draw_images(300))
    arguments = ("--data", str(folder / "x.npy"), "--epochs", "1", "--out", "bundle", *TINY)
    unjudged = ("--min-active-units", "0")  # after one epoch no latent is active yet
    result = run_vae(folder, "run", *arguments, *unjudged)
    assert result.returncode == 0, result.stderr


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    """Return a copy of the bundle, which a test may change."""
    return shutil.copytree(made / "bundle", tmp_path / "bundle")


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """Return a copy of the store, where the command line looks for it."""
    return Path(shutil.copy(made / "mlflow.db", tmp_path / "mlflow.db"))
