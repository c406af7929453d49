"""Choose how many threads to use, and how they wait.

OpenMP threads that spin long at a barrier run ten times slower when another process shares the
cores; a short spin keeps most of the speed of an idle machine. The limit must be set before torch
is imported.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
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
    """Return the least quota, in cores, of this process's cgroup and of those around it."""
    return min(map(_quota, _cgroups()))


def _cgroups() -> Iterator[Path]:
    """Yield the folders of the cgroups of both versions that this process may be in.

    In a container, the path may be the host's, and the mounted root is the process's own cgroup.
    """
    lines = ["0::/", "0:cpu:/"]
    with contextlib.suppress(OSError, ValueError):
        lines += MEMBERSHIP.read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounts: tuple[str, ...] = (".", "unified")
        elif "cpu" in controllers.split(","):
            mounts = ("cpu", controllers)
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        for folder in (inner, *inner.parents):
            yield from (CGROUPS / mount / folder for mount in mounts)


def _quota(folder: Path) -> float:
    """Return the quota of one cgroup, in cores: version 2 has one file, version 1 has two."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            if quota != "max" and int(quota) > 0:  # version 1 writes -1 for none
                return int(quota) / int(period)
    return _NO_QUOTA
