"""Refuse what this machine's memory cannot hold, before any of it is read."""

import os
from collections.abc import Iterator
from pathlib import Path

from serving.errors import DataRefused

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def require_memory(what: object, size: int) -> None:
    """Refuse `what` if its `size` in bytes is more than the memory of the machine or container.

    A small compressed file can say that it holds any number of values.
    """
    if size > (limit := memory_limit()):
        raise DataRefused(
            f"{what} needs {size / 1e9:,.1f} GB of memory, and there are {limit / 1e9:,.1f} GB"
        )


def memory_limit() -> int:
    """Return the bytes of memory that the machine or the container has."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _limit_files():
        text = path.read_text().strip() if path.is_file() else ""
        limit = min(limit, int(text)) if text.isdigit() else limit
    return limit


def _limit_files() -> Iterator[Path]:
    """Yield the files of this process's cgroup, and of those around it, that may hold a limit.

    Lines of `/proc/self/cgroup` are `0::/path`, or `4:memory:/path` in the first version; in a
    container the path may be one that only its host knows.
    """
    for line in _OWN.read_text().splitlines() if _OWN.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, name = (
            _CGROUPS / controllers,
            "memory.limit_in_bytes" if controllers else "memory.max",
        )
        folder = root / path.lstrip("/")
        yield from (each / name for each in (folder, *folder.parents) if each.is_relative_to(root))
