"""Choose how many threads to use, and how they wait.

OpenMP threads that spin long at a barrier run ten times slower when another process shares the
cores; a short spin keeps most of the speed of an idle machine. The limit must be set before torch
is imported.
"""

import math
import os
from pathlib import Path

_NO_QUOTA = 1e9


def limit_spinning() -> None:
    """Make waiting OpenMP threads sleep soon, unless the user has set `GOMP_SPINCOUNT`."""
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def available_cores() -> int:
    """Return how many cores this process may use: its affinity, capped by the cgroup's quota."""
    affinity = getattr(os, "sched_getaffinity", None)  # absent on some platforms
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(cores, math.ceil(_cgroup_quota())))


def _cgroup_quota() -> float:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return _NO_QUOTA
    return _NO_QUOTA if quota == "max" else int(quota) / int(period)
