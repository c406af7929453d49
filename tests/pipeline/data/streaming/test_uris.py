"""Data at a URI, in memory and streamed, are the data of a folder."""

import uuid
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from pipeline.data.dataset import load_dataset
from pipeline.data.plan import Resources
from pipeline.data.streaming.loading import load_streamed
from pipeline.data.streaming.measuring import measure_source
from serving.errors import DataRefused, UsageRefused
from tests.pipeline.data.streaming.sources import (
    BYTES,
    FLOATS,
    TABLES,
    assert_equal,
    both,
    save_idx,
    save_images,
    write_arrow,
    write_parquet_parts,
)


@pytest.fixture
def bucket() -> str:
    """A folder of fsspec's file system in memory."""
    return f"memory://{uuid.uuid4().hex}"


def upload(folder: Path, uri: str) -> None:
    fsspec.filesystem("memory").put(f"{folder}/", uri, recursive=True)


def fill_parquet(folder: Path) -> None:
    write_parquet_parts(TABLES["words"], folder)


def fill_arrow(folder: Path) -> None:
    write_arrow(TABLES["columns of floats"], folder)


def fill_images(folder: Path) -> None:
    for name, x in (("train", BYTES), ("test", BYTES[:9])):
        save_images(folder / name, x, labelled=True)


def fill_idx(folder: Path) -> None:
    save_idx(folder / "train-images-idx3-ubyte", BYTES)
    save_idx(folder / "t10k-images-idx3-ubyte", BYTES[:8])


FOLDERS = [fill_parquet, fill_arrow, fill_images, fill_idx]


@pytest.mark.parametrize("fill", FOLDERS)
def test_a_folder_at_a_uri(tmp_path: Path, bucket: str, fill: object) -> None:
    assert callable(fill)
    folder = tmp_path / "in"
    folder.mkdir()
    fill(folder)
    upload(folder, bucket)
    here, _ = both(folder, tmp_path, likelihood="auto")
    memory, streamed = both(bucket, tmp_path, likelihood="auto")
    assert memory.digests() == here.digests()
    assert_equal(memory, streamed)
    assert measure_source(bucket) == measure_source(str(folder))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".parquet"])
def test_a_file_at_a_uri(tmp_path: Path, bucket: str, suffix: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    if suffix == ".npy":
        np.save(folder / "x.npy", FLOATS)
    elif suffix == ".npz":
        np.savez(folder / "x.npz", train=FLOATS, test=FLOATS[:7])
    else:
        write = csv.write_csv if suffix == ".csv" else parquet.write_table
        write(TABLES["columns of floats"], folder / f"x{suffix}")
    upload(folder, bucket)
    here, _ = both(folder / f"x{suffix}", tmp_path)
    memory, streamed = both(f"{bucket}/x{suffix}", tmp_path)
    assert memory.digests() == here.digests()
    assert_equal(memory, streamed)


def test_a_uri_of_this_machine_is_a_path(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", FLOATS)
    memory, streamed = both(f"file://{tmp_path}/x.npy", tmp_path)
    assert_equal(memory, streamed)
    assert not (tmp_path / "cache").exists()


def test_nothing_at_a_uri_is_refused(bucket: str) -> None:
    with pytest.raises(UsageRefused, match="no data at 'memory://"):
        load_dataset(bucket, valid_fraction=0.1, test_fraction=0.1)


def test_a_part_at_a_uri_that_changes_is_refused(tmp_path: Path, bucket: str) -> None:
    write_parquet_parts(pa.table({"a": FLOATS[:, 0]}), tmp_path)
    upload(tmp_path, bucket)
    data = load_streamed(bucket, Resources(memory=1), valid_fraction=0.1, test_fraction=0.1)
    assert not isinstance(data.train.x, np.ndarray)
    fsspec.filesystem("memory").rm(f"{bucket}/part1.parquet")
    last_of_part0 = 22 // 7
    data.train.x.read_block(last_of_part0)
    with pytest.raises(DataRefused, match=r"part1\.parquet is gone"):
        [data.train.x.read_block(block) for block in range(len(data.train.x.blocks))]
