"""Refuse what this machine's memory cannot hold, before any of it is read."""

import os
from pathlib import Path

from serving.errors import DataRefused

_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


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
    for path in map(Path, _CGROUPS):
        text = path.read_text().strip() if path.is_file() else ""
        limit = min(limit, int(text)) if text.isdigit() else limit
    return limit
