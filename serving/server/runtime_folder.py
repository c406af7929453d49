"""The folder of files that the processes of a server share.

It is removed when the server ends. What a server that was killed left behind is removed by the next
one: the folder of a server is locked while it lives.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from serving.errors import VaeError

PREFIX = "vae-server-"
"""Other than that of the versions which held no lock."""
_NEW_S = 60.0
"""Age up to which a folder without a lock may be about to get one."""


@contextlib.contextmanager
def runtime_folder() -> Iterator[Path]:
    """Make a folder, and remove it when the block ends, and those of servers that were killed.

    Raises:
        VaeError: there is no temporary folder that can be written to.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix=PREFIX)
    except OSError as err:
        raise VaeError(
            f"cannot make a temporary folder: {err.strerror}; name one in TMPDIR"
        ) from err
    with made as name, _locked(folder := Path(name)):
        _remove_abandoned(folder.parent)
        yield folder


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; the system gives it up if this process dies.

    Raises:
        BlockingIOError: another process holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _remove_abandoned(beside: Path) -> None:
    for folder in beside.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # it is in use, of another user, or gone
            if time.time() - folder.stat().st_mtime > _NEW_S:
                with _locked(folder):
                    shutil.rmtree(folder)
