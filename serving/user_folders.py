"""The folders of this user: home and cache, or a private temporary folder in their place.

In containers a process often has a user without a name or a home, or a home that is read-only.
"""

import contextlib
import logging
import os
import stat
import tempfile
from functools import cache
from pathlib import Path

from serving.errors import VaeError

LOG = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the folder for downloaded models, or a temporary one if it cannot be written."""
    ensure_home()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vae-pipeline"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        return _private_folder(f"cannot make {folder} ({err.strerror})", "XDG_CACHE_HOME")
    if os.access(folder, os.W_OK | os.X_OK):
        return folder
    return _private_folder(f"cannot write to {folder}", "XDG_CACHE_HOME")


def ensure_home() -> None:
    """Give this process a home if its user has none; mlflow cannot be imported without one."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(_private_folder("this user has no home folder", "HOME"))


@cache
def _private_folder(reason: str, variable: str) -> Path:
    """Make this user's folder among the temporary files, where others may have laid a trap."""
    advice = f"set {variable} to a folder that this user can write to"
    try:
        folder = Path(tempfile.gettempdir(), f"vae-pipeline-{os.geteuid()}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
    except OSError as err:
        raise VaeError(f"{reason}, and no temporary folder can be written: {advice}") from err
    private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    if not private or found.st_uid != os.geteuid():
        raise VaeError(f"{reason}, and {folder} does not belong to this user alone: {advice}")
    LOG.warning("%s: using %s; %s", reason, folder, advice)
    return folder
