"""A store with versions of a model, good and bad, and a tracking server."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mlflow import MlflowClient

from serving.bundle import GOLDEN
from serving.engine import Engine
from serving.mlflow_store import DIGEST_TAG
from tests.e2e.versions import reseal
from tests.serving.conftest import SEALED


@dataclass(frozen=True, slots=True)
class Store:
    """An sqlite store with two good versions of `vae`, 1 and 2."""

    folder: Path
    client: MlflowClient
    engines: dict[str, Engine]

    @property
    def uri(self) -> str:
        """For `MLFLOW_TRACKING_URI`."""
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def point(self, version: str) -> None:
        """Move the alias."""
        self.client.set_registered_model_alias("vae", "champion", version)

    def add(self, name: str, spoil: Callable[[Path], str | None]) -> str:
        """Add a version whose bundle `spoil` changes; `spoil` returns the digest to register."""
        folder = self.folder / name / "artifacts" / "bundle"
        shutil.copytree(SEALED, folder)
        digest = spoil(folder)
        tags = {DIGEST_TAG: digest} if digest else {}
        source = str(self.folder / name)
        return str(self.client.create_model_version("vae", source, tags=tags).version)


@dataclass(slots=True)
class Remote:
    """An MLflow server with its own store, whose alias names version 1."""

    uri: str
    client: MlflowClient
    process: "subprocess.Popen[bytes]"
    engines: dict[str, Engine]
    log: Path

    def kill(self) -> None:
        """End all of its processes."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def damage(folder: Path) -> str:
    """Change one byte of a graph after the bundle was registered."""
    bundle = reseal(folder, seed=1001)
    content = bytearray((folder / "decoder.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "decoder.onnx").write_bytes(content)
    return bundle.manifest.digest


def put_golden_off(folder: Path) -> str:
    """Make a bundle whose digests fit, and whose outputs differ from torch's."""
    with np.load(folder / GOLDEN) as arrays:
        golden = dict(arrays)
    golden["decode.x_loc"] = golden["decode.x_loc"] + 1
    np.savez(folder / GOLDEN, **golden)
    return reseal(folder).manifest.digest


def replace(folder: Path) -> str:
    """Make a valid bundle that is not the registered one."""
    return "0" * len(reseal(folder, seed=1002).manifest.digest)


def untag(folder: Path) -> None:
    """Make a version that `vae register` did not register."""
