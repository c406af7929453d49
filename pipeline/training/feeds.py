"""Batches of the rows to train on, from memory or from where the rows stay outside it.

In: the state of a training, which tells how far its epoch has come. Out: the batches that are left
of it. In each pass over the rows every row is in one batch, and the last batch may be smaller. Rows
in memory, and mapped rows that have one order for an epoch, come in the same order for the same
seed. Reading goes ahead of training, and changes nothing in what is trained on.
"""

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from itertools import islice
from threading import Event
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.splits import Dataset, Split
from pipeline.data.streamed_rows import MappedRows, StreamedRows
from pipeline.training.batches import Batch, Division, Feed, Stop
from pipeline.training.read_ahead import read_ahead
from pipeline.training.resident import place_rows, take_rows
from pipeline.training.schedules import passes_per_epoch
from pipeline.training.state import TrainState
from pipeline.training.windows import Window, read_windows
from serving.errors import DataRefused

Array = NDArray[Any]

_READ_BYTES, _READS_AHEAD = 4 << 20, 2
"""Bytes of batches that are gathered at once from mapped rows, and how many such reads go ahead."""


def open_feed(state: TrainState, dataset: Dataset) -> Feed:
    """Return what gives this process its share of the batches; it must be closed.

    Raises:
        DataRefused: a training that began with mapped rows cannot go on with what is there now.
    """
    train, settings = dataset.train, state.settings
    rank, world = state.processes.rank, state.processes.world
    passes = passes_per_epoch(dataset.train_rows, settings)
    division = Division(dataset.train_rows, passes, settings.batch_size, rank, world)
    if isinstance(train, Split):
        return MemoryFeed(place_rows(train.x, state.device), division)
    if state.window_rows:
        return WindowFeed(train.x, division)
    if not isinstance(train.x, MappedRows):
        raise DataRefused(
            f"{dataset.source} can only be read in blocks, but the training began with mapped "
            "rows, which have another order: train anew"
        )
    return MappedFeed(train.x, division)


@dataclass(frozen=True, slots=True)
class MemoryFeed:
    """Rows in memory, of the device if they fit; the state holds the order of the epoch."""

    x: Tensor
    division: Division

    def batches(self, state: TrainState, stop: Stop) -> Iterator[Batch]:
        """Yield the batches that are left of the epoch."""
        if state.position == 0:
            state.order = self.division.draw_order(state.generator)
        for places in self.division.batches_after(state.position):
            own = self.division.own(places)
            rows = take_rows(self.x, state.order[own.start : own.stop : own.step])
            yield Batch(rows, len(places))

    def close(self) -> None:
        """Do nothing."""


@dataclass(slots=True)
class MappedFeed:
    """Rows that can be read in any order: in the order that they would have in memory.

    The state does not hold the order, which may be long, but the numbers that it is drawn from.
    """

    x: MappedRows
    division: Division
    _reading: Generator[list[Batch], None, None] | None = field(init=False, default=None)

    def batches(self, state: TrainState, stop: Stop) -> Iterator[Batch]:
        """Yield the batches that are left of the epoch."""
        self.close()
        order = self._order(state)
        self._reading = read_ahead(self._read(order, state.position), _READS_AHEAD, stop, Event())
        for batches in self._reading:
            for batch in batches:
                yield Batch(batch.rows.to(state.device), batch.size)

    def close(self) -> None:
        """End the thread that reads."""
        if self._reading is not None:
            self._reading.close()

    def _order(self, state: TrainState) -> Array:
        """Draw the order of the epoch where it would be drawn in memory; or draw it again."""
        generator = state.generator
        if len(state.drawn_from):
            generator = torch.Generator(state.device)
            generator.set_state(state.drawn_from)
        else:
            state.drawn_from = generator.get_state()
        small = state.device == "cpu" and self.division.rows < 1 << 31
        order = self.division.draw_order(generator, torch.int32 if small else torch.int64)
        return order.cpu().numpy()

    def _read(self, order: Array, position: int) -> Iterator[list[Batch]]:
        """Gather the rows of several batches at once."""
        division = self.division
        row_bytes = math.prod(self.x.shape[1:]) * self.x.dtype.itemsize
        batch_bytes = max(1, division.batch_size * row_bytes // division.world)
        left = division.batches_after(position)
        while places := list(islice(left, max(1, _READ_BYTES // batch_bytes))):
            owns = [division.own(batch) for batch in places]
            numbers = [order[own.start : own.stop : own.step] for own in owns]
            rows = self.x.take(np.concatenate(numbers))
            parts = np.split(rows, np.cumsum([len(own) for own in owns])[:-1])
            yield [Batch(_copy(part), len(b)) for part, b in zip(parts, places, strict=True)]


@dataclass(slots=True)
class WindowFeed:
    """Rows that are read in blocks, a window of them at a time; the next one is read meanwhile."""

    x: StreamedRows
    division: Division
    _closing: Event = field(init=False, default_factory=Event)
    _window: Window | None = field(init=False, default=None)
    _reading: Generator[Window, None, None] | None = field(init=False, default=None)

    def batches(self, state: TrainState, stop: Stop) -> Iterator[Batch]:
        """Yield the batches that are left of the epoch."""
        if self._reading is None:
            self._reading = read_ahead(self._read(state), 1, stop, self._closing)
        for places in self.division.batches_after(state.position):
            rows = self._gather(self._reading, state.epoch, self.division.own(places))
            yield Batch(rows.to(state.device), len(places))

    def close(self) -> None:
        """End the thread that reads, after the block that it is at."""
        if self._reading is not None:
            self._reading.close()

    def _read(self, state: TrainState) -> Iterator[Window]:
        """Read the windows of this epoch and of those that follow."""
        settings, position = state.settings, state.position
        for epoch in range(state.epoch, settings.epochs + 1):
            yield from read_windows(
                self.x,
                state.window_rows,
                seed=settings.seed,
                epoch=epoch,
                passes=self.division.passes,
                position=position,
                closing=self._closing,
            )
            position = 0

    def _gather(self, windows: Iterator[Window], epoch: int, places: range) -> Tensor:
        """Copy the rows at some places of an epoch's order, which may be in several windows."""
        parts = []
        while places:
            window = self._window
            if window is None or (window.epoch, window.stop) <= (epoch, places[0]):
                self._window = window = None  # so that it is gone before the next but one is read
                self._window = next(windows)
                continue
            here = range(places.start, min(places.stop, window.stop), places.step)
            order = window.order[here.start - window.start : here.stop - window.start : here.step]
            parts.append(torch.from_numpy(window.x).index_select(0, torch.from_numpy(order)))
            places = places[len(here) :]
        if not parts:
            return torch.from_numpy(np.empty((0, *self.x.shape[1:]), self.x.dtype))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _copy(rows: Array) -> Tensor:
    """Copy rows without torch, whose threads belong to the training, into memory that it aligns."""
    copy = torch.empty(rows.shape, dtype=torch.from_numpy(rows[:0]).dtype)
    copy.numpy()[...] = rows
    return copy
