"""The plan of a training's data: how many rows, where they are meanwhile, and why.

In: what was found out about the source, and what memory is allowed. Out: lines for a person, and
params for MLflow. Nothing here reads data.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from serving.io.memory import memory_limit

HELD_OUT_BYTES = 32 << 20
"""The most bytes of rows to validate on, and of rows to test on, that are taken from streamed data.
The same on every machine, so that models are compared on the same rows."""
SAMPLE_BYTES = 32 << 20
"""The most bytes of training rows from which the statistics of streamed data are taken."""

Shuffle = Literal["rows", "blocks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What the loading of data may use."""

    memory: int
    """Bytes that decoded rows may take; what needs more is streamed."""
    cache: Path | None = None
    """The folder for rows that are decoded once; None for the user's cache folder."""
    streamed: bool | None = None
    """Whether rows are streamed, if that is settled: a model's data are read as in training."""


def process_memory(allowed: int | None = None) -> int:
    """Return the share of a process of torchrun, or all, of the memory that rows may take.

    By default they may take half of the memory of the machine or container.
    """
    beside = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return (allowed or memory_limit() // 2) // beside


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlan:
    """Where the rows of a training are, and why."""

    rows: int
    """Rows to train on."""
    row_bytes: int
    valid_rows: int
    test_rows: int
    memory: int
    """Bytes that decoded rows may take."""
    needed: int
    """Bytes that decoding all rows in memory would take."""
    streamed: bool
    shuffle: Shuffle = "rows"
    """Whether an epoch's order is a permutation of all rows, or of blocks and within windows."""
    capped: bool = False
    """Whether a smaller share than asked for is held out, see `HELD_OUT_BYTES`."""
    statistics_rows: int = 0
    """Training rows from which scaling, output bias and the ranges of int8 are taken."""
    cache: Path | None = None
    """The file of rows that were decoded once, if the source itself cannot be mapped."""

    @property
    def total_bytes(self) -> int:
        """Bytes of the rows to train on."""
        return self.rows * self.row_bytes

    @property
    def reason(self) -> str:
        """Why the rows are streamed or not."""
        size, allowed = format_bytes(self.needed), format_bytes(self.memory)
        if self.streamed != (self.needed > self.memory):
            return f"as in the training that was recorded; it takes {size}, allowed are {allowed}"
        verb = "exceeds" if self.streamed else "fits in"
        return f"{size} {verb} the {allowed} of --memory"

    def lines(self) -> list[str]:
        """Return the plan for a person; data in memory takes one line."""
        place = "streamed" if self.streamed else "in memory"
        rows = f"{self.rows:,} rows of {self.row_bytes:,} bytes to train on"
        held_out = f"held out: {self.valid_rows:,} rows to validate and {self.test_rows:,} to test"
        lines = [f"{rows}, {place}: {self.reason}"]
        if not self.streamed:
            return lines
        if self.capped:
            held_out += f", each at most {format_bytes(HELD_OUT_BYTES)}"
        order = {
            "rows": "each epoch in a new order of all rows",
            "blocks": "each epoch in a new order of blocks, and of the rows of several blocks",
        }
        source = "all rows" if self.statistics_rows == self.rows else "a fixed sample"
        lines += [
            f"{held_out}, in memory",
            f"shuffle: {order[self.shuffle]}",
            f"scaling, output bias and ranges of int8: from {source}, {self.statistics_rows:,} "
            "training rows",
        ]
        return [*lines, f"decoded rows: {self.cache}"] if self.cache else lines

    def params(self) -> Mapping[str, Any]:
        """Return what MLflow keeps of the plan."""
        place: dict[str, Any] = {
            "plan.rows": self.rows,
            "plan.bytes": self.total_bytes,
            "plan.memory": self.memory,
            "plan.streamed": self.streamed,
        }
        if not self.streamed:
            return place
        return place | {
            "plan.shuffle": self.shuffle,
            "plan.statistics_rows": self.statistics_rows,
            "plan.cached": self.cache is not None,
        }


def format_bytes(size: float) -> str:
    """Write a number of bytes in a unit of its size, such as `1.5 GB`."""
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, max(0, int(math.log10(max(1, size))) // 3))
    value = size / 1000**power
    return f"{value:.0f} {units[0]}" if not power else f"{value:.3g} {units[power]}"
