"""Rows to train on that are not held in memory, or look so."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config import Config
from pipeline.data.dataset import Dataset
from pipeline.data.plan import DataPlan
from pipeline.data.splits import Split, StreamedSplit
from pipeline.data.streamed_rows import MappedRows, StreamedRows
from pipeline.training.loop import TrainResult
from tests.trained_models import tiny_config

Array = NDArray[Any]


@dataclass
class BlockRows:
    """Rows that can only be read in blocks, and what was read of them."""

    x: Array
    block_rows: int
    before_read: Callable[[int], None] = lambda block: None
    """Receives the number of each block before it is read; may raise."""
    read: list[int] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.x.dtype

    @property
    def blocks(self) -> Sequence[range]:
        rows, step = len(self.x), self.block_rows
        return [range(start, min(start + step, rows)) for start in range(0, rows, step)]

    def read_block(self, block: int) -> Array:
        self.before_read(block)
        self.read.append(block)
        rows = self.blocks[block]
        return self.x[rows.start : rows.stop]


class SmallBlocks(MappedRows):
    """Mapped rows whose blocks have 16 rows."""

    _block_rows = 16


def in_blocks(dataset: Dataset, block_rows: int = 16, **settings: Any) -> Dataset:
    """Return a dataset whose training rows are read in blocks."""
    return stream(dataset, BlockRows(dataset.sample, block_rows), **settings)


def blocks_of(dataset: Dataset) -> BlockRows:
    """Return the training rows of `in_blocks`."""
    x = dataset.train.x
    assert isinstance(x, BlockRows)
    return x


def mapped(dataset: Dataset, **settings: Any) -> Dataset:
    """Return a dataset whose training rows are read in any order."""
    return stream(dataset, SmallBlocks(dataset.sample, np.arange(0)), **settings)


def stream(dataset: Dataset, x: StreamedRows, memory: int = 1 << 30) -> Dataset:
    """Return a dataset whose training rows are `x`, with statistics of all of its rows."""
    train = dataset.train
    assert isinstance(train, Split)
    rows, row_bytes = len(train.x), train.x[0].nbytes
    return replace(
        dataset,
        train=StreamedSplit(x, train.sha256, train.x, train.x[:0]),
        plan=DataPlan(
            rows=rows,
            row_bytes=row_bytes,
            valid_rows=len(dataset.valid.x),
            test_rows=len(dataset.test.x),
            memory=memory,
            needed=rows * row_bytes,
            streamed=True,
            statistics_rows=rows,
        ),
    )


def memory_for(window_rows: int, row_bytes: int) -> int:
    """Return the memory of which a window of so many rows takes its share."""
    return 8 * window_rows * (row_bytes + 8)


SMALL = memory_for(54, 30)
"""Memory for windows of 54 rows of `images`, and too little for an order of its 270 rows."""
KINDS = {
    "mapped": mapped,
    "mapped windows": lambda dataset: mapped(dataset, memory=SMALL),
    "windows": lambda dataset: in_blocks(dataset, memory=SMALL),
    "one window": in_blocks,
}
each_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def never() -> bool:
    return False


def weights(result: TrainResult) -> bytes:
    return b"".join(value.numpy().tobytes() for value in result.model.state_dict().values())


def ready(dataset: Dataset, **settings: Any) -> Config:
    return tiny_config(dataset, **{"epochs": 3, "binarize": "dynamic", **settings})
