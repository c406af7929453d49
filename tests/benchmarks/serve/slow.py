"""Give a server less of its core, so that a load can be many times what it can do.

The processes move into a group of the kernel (cgroup, version 1 or 2) that may run for a
millisecond of so many, which only root may set up. Latencies then hold those pauses, calm or not.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.serve.servers import NotMeasured

QUOTA_US = 1000
_ROOT = Path("/sys/fs/cgroup")


@contextmanager
def slowed(processes: Iterable[int], times: int) -> Iterator[None]:
    """Let these processes run for one millisecond of each `times`, while the block runs.

    Raises:
        NotMeasured: the system does not allow it.
    """
    first = (_ROOT / "cpu").is_dir()
    parent = _ROOT / "cpu" if first else _ROOT
    group = parent / f"vae-benchmark-{os.getpid()}"
    period = QUOTA_US * times
    limits = {"cpu.max": f"{QUOTA_US} {period}"}
    if first:
        limits = {"cpu.cfs_period_us": str(period), "cpu.cfs_quota_us": str(QUOTA_US)}
    try:
        group.mkdir()
        for name, value in limits.items():
            (group / name).write_text(value)
        _move(processes, group)
    except OSError as err:
        raise NotMeasured(f"cannot slow the server down: {err}") from err
    try:
        yield
    finally:
        _move(map(int, (group / "cgroup.procs").read_text().split()), parent)
        group.rmdir()


def _move(processes: Iterable[int], group: Path) -> None:
    for pid in processes:
        (group / "cgroup.procs").write_text(str(pid))
