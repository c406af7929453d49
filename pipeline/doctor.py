"""Look at this machine: what works, what is missing, and the command that mends it.

In: nothing. Out: findings. A finding that fails keeps the main job from running; one that warns
does not.
"""

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from serving.errors import VaeError

MIN_DISK_GB = 2.0
_ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it is, and how to mend it."""

    subject: str
    status: Literal["ok", "warning", "failed"]
    detail: str
    mend: str = ""


def examine() -> list[Finding]:
    """Look at Python, packages, devices, store and disk."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python,
        _packages,
        _cuda,
        _store,
        _disk,
    )
    return [finding for check in checks for finding in check()]


def _python() -> Iterator[Finding]:
    yield Finding("Python", "ok", f"{platform.python_version()} at {sys.executable}")


def _packages() -> Iterator[Finding]:
    for requirement in map(Requirement, _requirements()):
        marker = requirement.marker
        if requirement.name == "vae-pipeline" or (
            marker is not None
            and not any(marker.evaluate({"extra": extra}) for extra in ("train", "files"))
        ):
            continue
        mend = f"pip install '{requirement.name}{requirement.specifier}'"
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(requirement.name, "failed", "is not installed", mend)
            continue
        if requirement.specifier.contains(version, prereleases=True):
            yield Finding(requirement.name, "ok", version)
        else:
            detail = f"{version}, wanted {requirement.specifier}"
            yield Finding(requirement.name, "failed", detail, mend)


def _requirements() -> list[str]:
    """From the installed package's metadata or, in a checkout, from pyproject.toml."""
    try:
        return importlib.metadata.requires("vae-pipeline") or []
    except importlib.metadata.PackageNotFoundError:
        project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
        extras = project["optional-dependencies"]
        return [*project["dependencies"], *extras["files"], *extras["train"]]


def _cuda() -> Iterator[Finding]:
    from serving.engine import require_cuda

    try:
        require_cuda()
    except VaeError as err:
        yield Finding("CUDA", "warning", str(err), "only --device cuda needs it")
    else:
        yield Finding("CUDA", "ok", "driver and libraries load")


def _store() -> Iterator[Finding]:
    from serving.source import connect

    try:
        connect()
    except VaeError as err:
        yield Finding("MLflow store", "failed", str(err), "set MLFLOW_TRACKING_URI")
    else:
        yield Finding("MLflow store", "ok", os.environ["MLFLOW_TRACKING_URI"])


def _disk() -> Iterator[Finding]:
    for subject, folder in (("working folder", Path.cwd()), ("temporary folder", _temporary())):
        free = shutil.disk_usage(folder).free / 1e9
        detail = f"{free:.1f} GB free in {folder}"
        if free < MIN_DISK_GB:
            yield Finding(subject, "failed", detail, f"free {MIN_DISK_GB:g} GB")
        elif not os.access(folder, os.W_OK):
            yield Finding(subject, "failed", f"cannot write to {folder}", f"chmod u+w {folder}")
        else:
            yield Finding(subject, "ok", detail)


def _temporary() -> Path:
    return Path(tempfile.gettempdir())
