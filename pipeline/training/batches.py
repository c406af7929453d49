"""What a training takes its rows from, and how the order of an epoch is divided into batches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from pipeline.training.state import TrainState

Stop = Callable[[], bool]
"""Returns whether training is to stop."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows to make a step on."""

    rows: Tensor
    """Those of this process (rows, *x_shape), on the device of the training."""
    size: int
    """The number of rows of all processes together."""


class Feed(Protocol):
    """Gives a training its batches, epoch after epoch."""

    def batches(self, state: TrainState, stop: Stop) -> Iterator[Batch]:
        """Yield the batches that are left of the epoch of `state`; draw its order if it has none.

        Raises:
            DataRefused: a file has changed, or is gone.
            TrainingStopped: `stop` returned true while rows were read.
        """

    def close(self) -> None:
        """End the thread that reads, if there is one."""


@dataclass(frozen=True, slots=True)
class Division:
    """How an epoch's rows are divided into batches, and each batch among processes."""

    rows: int
    """Rows to train on."""
    passes: int
    """How often an epoch passes over them."""
    batch_size: int
    rank: int = 0
    """Which of the processes this is, from 0."""
    world: int = 1
    """The number of processes."""

    def batches_after(self, position: int) -> Iterator[range]:
        """Yield the places of each batch that is left; no batch has rows of two passes."""
        while position < self.rows * self.passes:
            rest_of_pass = self.rows - position % self.rows
            stop = position + min(self.batch_size, rest_of_pass)
            yield range(position, stop)
            position = stop

    def own(self, places: range) -> range:
        """Return the places of a batch whose rows this process takes."""
        return places[self.rank :: self.world]

    def draw_order(self, generator: torch.Generator, dtype: torch.dtype = torch.int64) -> Tensor:
        """Draw the order of the rows in each pass of an epoch, (passes * rows,).

        On a CPU it is the same for each dtype.
        """
        draw = partial(
            torch.randperm, self.rows, generator=generator, device=generator.device, dtype=dtype
        )
        return draw() if self.passes == 1 else torch.cat([draw() for _ in range(self.passes)])
