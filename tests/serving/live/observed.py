"""Look at the observer of a server that runs, and at what it says."""

import contextlib
from pathlib import Path

from serving.live.observer import NAME
from serving.live_status import LiveStatus
from tests.serving.running import Running


def observers(server: Running) -> list[int]:
    """The processes under the server that call themselves observers."""
    tasks = Path(f"/proc/{server.process.pid}/task").glob("*/children")
    pids = [int(pid) for task in tasks for pid in task.read_text().split()]
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == NAME:
                found.append(pid)
    return found


def live_file(server: Running) -> Path:
    """The file that the observer of a server writes."""
    (folder,) = {
        Path(line.split()[-1]).parent
        for line in Path(f"/proc/{server.process.pid}/maps").read_text().splitlines()
        if line.endswith("/counters")
    }
    return folder / "live.json"


def live(server: Running) -> LiveStatus | None:
    return LiveStatus.read(live_file(server))
