"""How many threads to use, and how they should wait.

OpenMP threads that spin long at a barrier lose a factor of ten when a neighbour shares the cores;
a short spin keeps most of the speed of an idle machine. It must be set before torch is imported.
"""

import math
import os
from pathlib import Path

_NO_QUOTA = 1e9


def limit_spinning() -> None:
    """Let OpenMP threads sleep soon while they wait, unless the user chose otherwise."""
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def available_cores() -> int:
    """Cores this process may really use: its affinity, capped by the cgroup's quota."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every platform
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(cores, math.ceil(_cgroup_quota())))


def _cgroup_quota() -> float:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return _NO_QUOTA
    return _NO_QUOTA if quota == "max" else int(quota) / int(period)
