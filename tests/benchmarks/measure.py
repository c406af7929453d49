"""Time functions in turns, so that a noisy neighbour meets them all."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison; times in seconds."""

    what: str
    measured_s: float
    beside_s: float
    goal: str

    def __str__(self) -> str:
        """A line of the table."""
        ratio = self.measured_s / self.beside_s
        times = f"{_show(self.measured_s):>10}  {_show(self.beside_s):>10}"
        return f"{self.what:<58} {times}  {ratio:>6.3f}x  {self.goal}"


def best_in_turns(*functions: Callable[[], object], rounds: int) -> list[float]:
    """The shortest time of each function in seconds, over `rounds` rounds after one to warm up."""
    best = [float("inf")] * len(functions)
    for turn in range(rounds + 1):
        for index, function in enumerate(functions):
            started = time.perf_counter()
            function()
            if turn:
                best[index] = min(best[index], time.perf_counter() - started)
    return best


def _show(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"
