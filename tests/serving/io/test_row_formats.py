"""What is read of a file to read some of its rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc

from serving.io.row_formats import list_blocks
from serving.io.rows import Rows


class Counted:
    """An open Arrow file, and the numbers of the batches that are read of it."""

    def __init__(self, file: Any, read: list[int]) -> None:
        self.file, self.read = file, read
        self.num_record_batches = file.num_record_batches

    def __enter__(self) -> "Counted":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.__exit__(*error)

    def get_batch(self, index: int) -> pa.RecordBatch:
        self.read.append(index)
        return self.file.get_batch(index)


def test_the_batches_of_an_arrow_file_are_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After that, a range of rows reads the batches that it is in, wherever they stand."""
    table = pa.table({"id": np.arange(230)})
    with ipc.new_file(tmp_path / "x.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    rows = Rows(str(tmp_path / "x.arrow"))
    read: list[int] = []
    open_file = ipc.open_file
    monkeypatch.setattr(ipc, "open_file", lambda *args, **kw: Counted(open_file(*args, **kw), read))
    assert list_blocks(rows.files[0]) == [10] * 23
    assert read == [*range(23)]
    read.clear()
    for start, stop in [(220, 230), (0, 10), (115, 131), (229, 230)]:
        batches = rows.read(start, stop, ["id"], 100)
        ids = [row for batch in batches for row in batch.column("id").to_pylist()]
        assert ids == [*range(start, stop)]
    assert read == [22, 0, 11, 12, 13, 22]
