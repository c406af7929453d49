"""Run a command in a memory cgroup, so that the kernel itself enforces the limit.

The limit counts all memory of the processes, and the pages of files that they read, which the
kernel takes back when it needs room. It needs root; both versions of cgroups will do.
"""

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_LOOK_S = 0.02
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended."""

    status: int
    """Its exit status; -9 if the kernel killed it for want of memory."""
    own_mib: float
    """The most memory at a time that was the processes' own, and no page of a file."""
    seconds: float
    stderr: str


def run_limited(command: Sequence[str], limit_mib: float, cwd: Path) -> Ended:
    """Run a command in a cgroup of `limit_mib`.

    Raises:
        OSError: no cgroup can be made here.
    """
    started = time.perf_counter()
    with _cgroup(limit_mib) as folder, (cwd / "stderr.txt").open("w+") as errors:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            preexec_fn=lambda: _enter(folder),
        )
        most = 0.0
        while process.poll() is None:
            most = max(most, _own_mib(process.pid))
            time.sleep(_LOOK_S)
        errors.seek(0)
        return Ended(process.returncode, most, time.perf_counter() - started, errors.read())


def _enter(folder: Path) -> None:
    (folder / "cgroup.procs").write_text(str(os.getpid()))


@contextmanager
def _cgroup(limit_mib: float) -> Iterator[Path]:
    old = _ROOT / "memory"
    folder = (old if old.is_dir() else _ROOT) / f"vae-scale-{os.getpid()}"
    folder.mkdir()
    try:
        name = "memory.limit_in_bytes" if old.is_dir() else "memory.max"
        (folder / name).write_text(str(int(limit_mib * MIB)))
        yield folder
    finally:
        for _ in range(100):
            with suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.05)


def _own_mib(pid: int) -> float:
    """Return the memory of a process that is no page of a file."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
    return 0.0
