"""Rows of a mapped file, against numpy's own deletion and indexing."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.data import streamed_rows
from pipeline.data.streamed_rows import MappedRows


@pytest.mark.parametrize("held_out", [[], [0], [6], [0, 1, 2], [2, 3, 6], [0, 2, 4, 6]])
def test_a_mapped_file_gives_the_rows_that_are_not_held_out(
    tmp_path: Path, held_out: list[int]
) -> None:
    x = np.arange(14, dtype=np.float32).reshape(7, 2)
    np.save(tmp_path / "x.npy", x)
    left_out = np.array(held_out, np.int64)
    rows = MappedRows(np.load(tmp_path / "x.npy", mmap_mode="r"), left_out)
    wanted = np.delete(x, left_out, axis=0)
    assert rows.shape == wanted.shape
    chosen = np.random.default_rng(0).permutation(len(wanted))
    assert np.array_equal(rows.take(chosen), wanted[chosen])
    blocks = [rows.read_block(number) for number in range(len(rows.blocks))]
    assert np.array_equal(np.concatenate(blocks), wanted)


def test_what_is_held_out_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, held_out = np.arange(14, dtype=np.float32).reshape(7, 2), np.array([1, 4])
    rows = MappedRows(x, held_out)
    monkeypatch.setattr(streamed_rows, "_count_before", None)
    assert np.array_equal(rows.take(np.array([1, 4, 0])), x[[2, 6, 0]])
