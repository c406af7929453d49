"""The blocks of a table, and how many rows are decoded to read them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pyarrow import ipc, parquet

from pipeline.data.plan import Resources
from pipeline.data.splits import StreamedSplit
from pipeline.data.streamed_rows import StreamedRows
from pipeline.data.streaming.loading import load_streamed
from serving.io import row_formats
from tests.pipeline.data.streaming.sources import assert_equal, both, to_table

Array = NDArray[Any]

X = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
SLICE, BATCH = 100, 10
"""Rows of a slice of a group of many rows, and of a batch."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.streaming.table_rows.BLOCK_BYTES", SLICE * 12)
    monkeypatch.setattr("pipeline.data.streaming.table_rows._BATCH_BYTES", BATCH * 12)
    monkeypatch.setattr("pipeline.data.streaming.table_rows._LEAST_ROWS", BATCH)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which the rows of each batch are added when it is decoded."""
    counts: list[int] = []
    cut = row_formats._cut

    def counted(batches: row_formats.Batches, *args: Any) -> row_formats.Batches:
        def count() -> row_formats.Batches:
            for batch in batches:
                counts.append(batch.num_rows)
                yield batch

        return cut(count(), *args)

    monkeypatch.setattr(row_formats, "_cut", counted)
    return counts


def write_groups(path: Path, x: Array, groups: Sequence[int]) -> Path:
    """Write a Parquet file of row groups of these sizes."""
    table = to_table(x)
    with parquet.ParquetWriter(path / "x.parquet", table.schema) as writer:
        for stop, rows in zip(np.cumsum(groups).tolist(), groups, strict=True):
            writer.write_table(table.slice(stop - rows, rows))
    return path / "x.parquet"


def write_batches(path: Path, x: Array, batches: Sequence[int]) -> Path:
    """Write an Arrow file of batches of these sizes."""
    table = to_table(x).combine_chunks()
    with ipc.new_file(path / "x.arrow", table.schema) as writer:
        for stop, rows in zip(np.cumsum(batches).tolist(), batches, strict=True):
            writer.write_table(table.slice(stop - rows, rows))
    return path / "x.arrow"


def open_rows(path: Path) -> StreamedRows:
    """Return the rows of a file that are not held out."""
    data = load_streamed(str(path), Resources(memory=1), valid_fraction=0.1, test_fraction=0.1)
    assert isinstance(data.train, StreamedSplit)
    return data.train.x


def test_slices_of_a_row_group_that_are_read_forward_are_decoded_once(
    tmp_path: Path, decoded: list[int]
) -> None:
    x = open_rows(write_groups(tmp_path, X, [1000]))
    assert len(x.blocks) == 10
    decoded.clear()
    for block in (0, 1, 4, 6, 9):
        x.read_block(block)
    assert sum(decoded) == 1000
    decoded.clear()
    for block in (3, 2):  # back to the first row, for each
        x.read_block(block)
    assert sum(decoded) == 400 + 300


def test_rows_of_the_last_group_are_not_decoded_on_the_way_to_another(
    tmp_path: Path, decoded: list[int]
) -> None:
    x = open_rows(write_groups(tmp_path, X, [500, 500]))
    decoded.clear()
    for block in (0, 6):
        x.read_block(block)
    assert sum(decoded) == 100 + 200
    decoded.clear()
    for block in (4, 5):  # what follows is read on
        x.read_block(block)
    assert sum(decoded) == 500 + 100


def test_slices_of_a_batch_that_are_read_forward_read_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = open_rows(write_batches(tmp_path, X, [200, 800]))
    opened: list[int] = []
    open_file = ipc.open_file

    def counted(*args: Any, **settings: Any) -> Any:
        opened.append(1)
        return open_file(*args, **settings)

    monkeypatch.setattr(ipc, "open_file", counted)
    for block in (2, 4, 5, 9):
        x.read_block(block)
    assert len(opened) == 1


@pytest.mark.parametrize("write", [write_groups, write_batches])
@pytest.mark.parametrize(
    "groups", [(5, 995), (995, 5), (5, 300, 40, 60, 595)], ids=["small first", "last", "mixed"]
)
def test_small_and_large_groups_of_a_file_are_read_in_any_order(
    tmp_path: Path, write: Any, groups: Sequence[int]
) -> None:
    (tmp_path / "in").mkdir()
    assert_equal(*both(write(tmp_path / "in", X, groups), tmp_path))


def test_any_order_of_blocks_gives_the_same_rows(tmp_path: Path) -> None:
    x = open_rows(write_groups(tmp_path, X, [5, 300, 40, 60, 595]))
    blocks = [x.read_block(block) for block in range(len(x.blocks))]
    for block in np.random.default_rng(0).integers(0, len(blocks), 200).tolist():
        np.testing.assert_array_equal(x.read_block(block), blocks[block], strict=True)
