"""Measure, from /proc, how much other programs use the two cores: a busy core spoils figures."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from tests.benchmarks.serve.servers import Server

QUIET = 0.1
"""Cores that other programs may use."""
TRIES = 3
WAIT_S = 10
BUDGET_S = 300
"""Seconds for all waits and repetitions; on a machine that is never quiet, go on then."""
LOOK_S = 0.3

T = TypeVar("T")


@dataclass(slots=True)
class Quiet:
    """Repeats measurements that other programs disturbed."""

    cores: tuple[int, int]
    budget_s: float = BUDGET_S

    def measure(self, work: Callable[[], T], server: Server | None = None) -> tuple[T, float]:
        """Return the least disturbed of a few results, and the cores that others used."""
        found: list[tuple[T, float]] = []
        for _ in range(TRIES):
            self._wait(server)
            started = time.perf_counter()
            found.append(self.once(work, server))
            if found[-1][1] <= QUIET or self.budget_s <= 0:
                break
            self.budget_s -= time.perf_counter() - started
        return min(found, key=lambda pair: pair[1])

    def once(self, work: Callable[[], T], server: Server | None = None) -> tuple[T, float]:
        """Return the result, and the cores that others used meanwhile."""
        before, started = self._others(server), time.perf_counter()
        result = work()
        taken = (self._others(server) - before) / (time.perf_counter() - started)
        return result, max(taken, 0.0)

    def _wait(self, server: Server | None) -> None:
        """Wait until others leave the cores alone, up to a limit."""
        look, started = partial(time.sleep, LOOK_S), time.perf_counter()
        limit_s = min(WAIT_S, self.budget_s)
        while self.once(look, server)[1] > QUIET and time.perf_counter() - started < limit_s:
            pass
        self.budget_s -= max(time.perf_counter() - started - LOOK_S, 0)

    def _others(self, server: Server | None) -> float:
        """Return the busy seconds of the cores, without the server, this process and its loads."""
        busy = 0.0
        for line in Path("/proc/stat").read_text().splitlines():
            name, *ticks = line.split()
            if name in {f"cpu{core}" for core in self.cores}:
                user, nice, system, _, _, _, _, steal = map(int, ticks[:8])
                busy += (user + nice + system + steal) / os.sysconf("SC_CLK_TCK")
        if server:
            busy -= server.cpu_s()
        own = os.times()  # with its children: wrk, h2load
        spent = own.user + own.system + own.children_user + own.children_system
        return busy - spent
