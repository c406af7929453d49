"""Data of every kind, as files, and the comparison of streamed data with data in memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from pyarrow import feather, ipc, parquet

from pipeline.data.dataset import Dataset, load_dataset
from pipeline.data.plan import Resources
from pipeline.data.splits import StreamedSplit
from pipeline.data.streamed_rows import MappedRows
from pipeline.data.streaming.loading import load_streamed

Array = NDArray[Any]

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (60, 3, 2), dtype=np.uint8)
FLOATS = RNG.normal(size=(60, 3)).astype(np.float32)


def both(source: Path | str, tmp_path: Path, **settings: Any) -> tuple[Dataset, Dataset]:
    """Return data in memory, and the same data streamed."""
    settings = {"valid_fraction": 0.1, "test_fraction": 0.2, **settings}
    resources = Resources(memory=1, cache=tmp_path / "cache")
    return (
        load_dataset(str(source), **settings),
        load_streamed(str(source), resources, 1000, **settings),
    )


def assert_equal(memory: Dataset, streamed: Dataset) -> None:
    """The streamed rows are those in memory, however they are read."""
    train = streamed.train
    assert isinstance(train, StreamedSplit)
    assert streamed.digests() == memory.digests()
    assert (streamed.x_shape, streamed.x_dtype) == (memory.x_shape, memory.x_dtype)
    assert train.x.shape == memory.sample.shape
    blocks = [train.x.read_block(number) for number in range(len(train.x.blocks))]
    np.testing.assert_array_equal(np.concatenate(blocks), memory.sample, strict=True)
    assert [len(block) for block in blocks] == [len(rows) for rows in train.x.blocks]
    order = np.random.default_rng(1).permutation(memory.train_rows)
    if isinstance(train.x, MappedRows):
        np.testing.assert_array_equal(train.x.take(order), memory.sample[order], strict=True)
    for number in np.random.default_rng(1).permutation(len(blocks)):
        np.testing.assert_array_equal(train.x.read_block(number), blocks[number], strict=True)
    np.testing.assert_array_equal(streamed.sample, memory.sample, strict=True)
    np.testing.assert_array_equal(streamed.valid.x, memory.valid.x, strict=True)
    np.testing.assert_array_equal(streamed.test.x, memory.test.x, strict=True)
    assert (streamed.test.labels is None) == (memory.test.labels is None)
    if memory.test.labels is not None:
        np.testing.assert_array_equal(streamed.test.labels, memory.test.labels)
    assert (streamed.columns, streamed.schema) == (memory.columns, memory.schema)
    found = streamed.describe()
    assert found.pop("streamed") == {"statistics_rows": memory.train_rows}
    assert found == memory.describe()


def save_idx(path: Path, x: Array) -> Path:
    codes = {"uint8": 8, "int32": 12, "float32": 13}
    head = bytes([0, 0, codes[x.dtype.name], x.ndim])
    path.write_bytes(
        head + np.array(x.shape, ">u4").tobytes() + x.astype(x.dtype.newbyteorder(">")).tobytes()
    )
    return path


def save_images(folder: Path, x: Array, labelled: bool = False) -> Path:
    for number, image in enumerate(x):
        path = folder / (f"{number % 3}" if labelled else "") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def to_table(x: Array, names: str = "abc") -> pa.Table:
    return pa.table(dict(zip(names, x.T, strict=True)))


LABELS = pa.array([f"class {number % 4}" for number in range(60)])
LISTS = pa.FixedSizeListArray.from_arrays(pa.array(BYTES.reshape(-1)), 6)
NESTED = pa.FixedSizeListArray.from_arrays(
    pa.FixedSizeListArray.from_arrays(pa.array(BYTES.reshape(-1)), 2), 3
)
RAW = pa.array([row.tobytes() for row in BYTES], pa.binary(6))
TABLES = {
    "columns of floats": to_table(FLOATS),
    "columns of whole numbers": to_table(RNG.integers(-9, 9, (60, 3))),
    "columns of bytes": to_table(BYTES[:, :, 0]),
    "bytes of two ranges": pa.table({"a": BYTES[:, 0, 0], "b": BYTES[:, 1, 0] % 2}),
    "lists": pa.table({"x": LISTS}),
    "lists of any size": pa.table({"x": LISTS.cast(pa.list_(pa.uint8()))}),
    "nested lists": pa.table({"x": NESTED}),
    "fixed bytes": pa.table({"x": RAW}),
    "lists of floats": pa.table({"x": pa.array(FLOATS.tolist())}),
    "words": pa.table({"a": FLOATS[:, 0], "word": LABELS, "b": pa.array([1.5, None] * 30)}),
}


def write_parquet(table: pa.Table, path: Path) -> Path:
    parquet.write_table(table, path / "x.parquet", row_group_size=11)
    return path / "x.parquet"


def write_parquet_parts(table: pa.Table, path: Path) -> Path:
    for number, (start, rows) in enumerate([(0, 23), (23, 1), (24, 36)]):
        parquet.write_table(
            table.slice(start, rows), path / f"part{number}.parquet", row_group_size=7
        )
    return path


def write_arrow(table: pa.Table, path: Path) -> Path:
    feather.write_feather(table, str(path / "x.arrow"), chunksize=13)
    return path / "x.arrow"


def write_stream(table: pa.Table, path: Path) -> Path:
    with ipc.new_stream(path / "x.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=13)
    return path / "x.arrow"
