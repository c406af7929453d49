"""Examine this machine: what works, what is missing, and the command that fixes it.

In: nothing. Out: findings. A failed one means that something installed does not work; a warning
names something that this machine cannot do.
"""

import contextlib
import importlib.metadata
import os
import platform
import shutil
import sqlite3
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from serving.console import say
from serving.errors import UsageRefused, VaeError

MIN_DISK_GB = 2.0
_ROOT = Path(__file__).parents[2]
_EXTRAS = {
    "files": ("pyarrow", "Parquet and picture files cannot be read or written"),
    "registry": ("mlflow", "models:/ references, vae register and vae promote do not work"),
    "train": ("torch", "vae train, vae export and vae check do not work"),
}
"""For each extra, a package that all of it needs, and what does not work without it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The subject, its status, and how to fix it."""

    subject: str
    status: Literal["ok", "warning", "failed"]
    detail: str
    fix: str = ""


def examine() -> list[Finding]:
    """Examine Python, packages, devices, store and disk."""
    checks = (_python, _packages, _cuda, _store, _disk)
    return [finding for check in checks for finding in check()]


def _python() -> Iterator[Finding]:
    yield Finding("Python", "ok", f"{platform.python_version()} at {sys.executable}")


def _packages() -> Iterator[Finding]:
    wanted: list[str] = []
    for extra, (package, effect) in _EXTRAS.items():
        if _version(package) is not None:
            wanted.append(extra)
        else:
            detail = f"{package} is not installed: {effect}"
            yield Finding(f"[{extra}]", "warning", detail, f"pip install 'vae-pipeline[{extra}]'")
    for requirement in map(Requirement, list_requirements()):
        marker = requirement.marker
        if requirement.name == "vae-pipeline" or (
            marker is not None and not any(marker.evaluate({"extra": e}) for e in ("", *wanted))
        ):
            continue
        fix = f"pip install '{requirement.name}{requirement.specifier}'"
        version = _version(requirement.name)
        if version is None:
            yield Finding(requirement.name, "failed", "is not installed", fix)
        elif requirement.specifier.contains(version, prereleases=True):
            yield Finding(requirement.name, "ok", version)
        else:
            detail = f"{version}, wanted {requirement.specifier}"
            yield Finding(requirement.name, "failed", detail, fix)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def list_requirements() -> list[str]:
    """Return them from the installed package's metadata or, in a checkout, from pyproject.toml."""
    try:
        return importlib.metadata.requires("vae-pipeline") or []
    except importlib.metadata.PackageNotFoundError:
        project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
        extras = project["optional-dependencies"]
        marked = [f"{line}; extra == '{extra}'" for extra in _EXTRAS for line in extras[extra]]
        return [*project["dependencies"], *marked]


def _cuda() -> Iterator[Finding]:
    try:
        import onnxruntime

        from serving.sessions import require_cuda
    except ImportError:
        return  # `_packages` reports it
    yield Finding("ORT providers", "ok", ", ".join(onnxruntime.get_available_providers()))
    try:
        require_cuda()
    except VaeError as err:
        fix = "for a GPU: install its driver and pip install 'onnxruntime-gpu[cuda,cudnn]'"
        yield Finding("CUDA", "warning", str(err), fix)
    else:
        yield Finding("CUDA", "ok", "driver and libraries load")


def _store() -> Iterator[Finding]:
    from serving.mlflow_store import connect, store_name, tracking_uri
    from serving.sqlite_store import database_path, find_moves, is_begun

    if _version("mlflow") is None:
        return  # `_packages` reports it
    fix = "export MLFLOW_TRACKING_URI=sqlite:////path/that/can/be/written/mlflow.db"
    try:
        database = database_path(tracking_uri())
        if database is not None and not is_begun(database):
            yield _missing_store(database, fix)
            return
        connect()
    except VaeError as err:
        if not store_name().startswith("sqlite:"):
            fix = f"start the server of {store_name()}, or set MLFLOW_TRACKING_URI to another"
        yield Finding("MLflow store", "failed", str(err), fix)
        return
    path = store_name().removeprefix("sqlite:///").removeprefix("file:").split("?")[0]
    if store_name().startswith("sqlite:") and not can_write(Path(path)):
        yield Finding("MLflow store", "failed", f"cannot write to {store_name()}", fix)
    elif moves := find_moves(store_name()):
        repair = "vae doctor --repair-store"
        for move in moves:
            detail = f"{store_name()} was moved or copied: its paths name {move.old}"
            yield Finding("MLflow store", "failed", detail, repair)
    else:
        yield Finding("MLflow store", "ok", store_name())


def _missing_store(database: Path, fix: str) -> Finding:
    """Report a store that is still to be made: `vae run` makes it."""
    parent = next(parent for parent in database.parents if parent.exists())
    if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
        return Finding("MLflow store", "ok", f"vae run will make {database}")
    return Finding("MLflow store", "failed", f"cannot make {database} in {parent}", fix)


def repair_store() -> None:
    """Rewrite the paths in a store that was moved, and print how many there were.

    Raises:
        UsageRefused: the store is no sqlite file, or was not moved.
    """
    from serving.mlflow_store import store_name, tracking_uri
    from serving.sqlite_store import find_moves, repair_paths

    uri = tracking_uri()
    moves = find_moves(uri)
    if not moves:
        raise UsageRefused(f"nothing to repair: {store_name() or uri} was not moved")
    count = repair_paths(uri)
    for move in moves:
        say(f"{move.old} is now {move.new} in {uri}")
    say(f"{count} paths rewritten")


def can_write(database: Path) -> bool:
    """Whether an sqlite database can be written now."""
    try:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
    except sqlite3.Error:
        return False
    return os.access(database, os.W_OK)


def _disk() -> Iterator[Finding]:
    folders = {"working folder": Path.cwd(), "temporary folder": Path(tempfile.gettempdir())}
    for subject, folder in folders.items():
        free = shutil.disk_usage(folder).free / 1e9
        detail = f"{free:.1f} GB free in {folder}"
        if free < MIN_DISK_GB:
            yield Finding(subject, "failed", detail, f"free {MIN_DISK_GB:g} GB")
        elif not os.access(folder, os.W_OK):
            yield Finding(subject, "failed", f"cannot write to {folder}", f"chmod u+w {folder}")
        else:
            yield Finding(subject, "ok", detail)
