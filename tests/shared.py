"""Folders that are made once in a run of the tests, and that all of its workers share."""

from collections.abc import Callable
from pathlib import Path

import filelock
import pytest


def make_once(
    tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]
) -> Path:
    """Return the folder `name`, which `make` fills in the worker that asks for it first.

    The other workers wait. If `make` fails, the next one that asks tries it again.
    """
    base = tmp_path_factory.getbasetemp()
    # each worker of xdist has a folder of its own, in one that belongs to the run
    shared = base.parent if base.name.startswith("popen-") else base
    folder, done = shared / "once" / name, shared / "once" / f"{name}.done"
    folder.parent.mkdir(exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        if not done.exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            done.touch()
    return folder
