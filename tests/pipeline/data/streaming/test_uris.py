"""Data at a URI, in memory and streamed, are the data of a folder."""

import atexit
import json
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem
from numpy.typing import NDArray
from pyarrow import csv, parquet

from pipeline.data.dataset import load_dataset
from pipeline.data.plan import Resources
from pipeline.data.splits import Dataset
from pipeline.data.streaming.loading import load_streamed
from pipeline.data.streaming.measuring import measure_source
from serving.errors import DataRefused, UsageRefused
from serving.io.filesystems import locate
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

Array = NDArray[Any]


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
        every_row(data)


def every_row(data: Dataset) -> Array:
    """Read all rows to train on, which are streamed."""
    assert not isinstance(data.train.x, np.ndarray)
    return np.concatenate([data.train.x.read_block(n) for n in range(len(data.train.x.blocks))])


def write_again(uri: str, x: Array, suffix: str) -> str:
    """Write a file of the same size at the same place."""
    path = f"{uri}/x{suffix}"
    with fsspec.filesystem("memory").open(path, "wb") as file:
        if suffix == ".csv":
            csv.write_csv(pa.table({"a": x}), file)
        else:
            np.save(file, x[:, None])
    return path


def load(source: str, tmp_path: Path) -> set[float]:
    resources = Resources(memory=1, cache=tmp_path / "cache")
    data = load_streamed(source, resources, valid_fraction=0.1, test_fraction=0.1)
    rows = every_row(data)
    return {float(x) for x in (*rows[:, 0], *data.valid.x[:, 0], *data.test.x[:, 0])}


@pytest.mark.parametrize("suffix", [".csv", ".npy"])
@pytest.mark.parametrize("told", [True, False])
def test_a_file_that_is_written_again_is_read_again(
    tmp_path: Path, bucket: str, suffix: str, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the file system tells neither a time of change nor a checksum of it."""
    monkeypatch.setattr("pipeline.data.streaming.first_pass_cache.LEAST_BYTES", 0)
    if not told:
        monkeypatch.setattr(MemoryFileSystem, "modified", AbstractFileSystem.modified)
    for first in (100.5, 300.5):
        x = np.arange(40) + first
        path = write_again(bucket, x, suffix)
        assert load(path, tmp_path) == {*x}


@pytest.mark.parametrize("told", [True, False])
def test_what_cannot_be_told_from_others_is_deleted_at_the_end(
    tmp_path: Path, bucket: str, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_end: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "register", lambda act, *given: at_end.append(partial(act, *given)))
    monkeypatch.setattr("pipeline.data.streaming.first_pass_cache.LEAST_BYTES", 0)
    if not told:
        monkeypatch.setattr(MemoryFileSystem, "modified", AbstractFileSystem.modified)
    load(write_again(bucket, np.arange(40) + 0.5, ".csv"), tmp_path)
    kept = {path.suffix for path in (tmp_path / "cache").iterdir()}
    assert kept == {".npy", ".json", *([".npz"] if told else [])}
    for act in at_end:
        act()
    assert len([*(tmp_path / "cache").iterdir()]) == (3 if told else 0)


def test_a_file_at_a_uri_that_is_written_again_in_training_is_refused(
    tmp_path: Path, bucket: str
) -> None:
    parquet.write_table(pa.table({"a": FLOATS[:, 0]}), tmp_path / "x.parquet")
    upload(tmp_path, bucket)
    data = load_streamed(bucket, Resources(memory=1), valid_fraction=0.1, test_fraction=0.1)
    assert not isinstance(data.train.x, np.ndarray)
    upload(tmp_path, bucket)
    with pytest.raises(DataRefused, match=r"x\.parquet has changed .* or it was written again"):
        every_row(data)


@pytest.mark.parametrize("field", ["ETag", "Last-Modified", "generation"])
def test_a_file_system_tells_a_file_by_what_it_knows(
    bucket: str, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of HTTP knows what the server tells, and that of memory when a file was written."""
    location = locate(write_again(bucket, np.arange(4), ".npy"))
    version = location.version(location.info())
    write_again(bucket, np.arange(4), ".npy")
    assert version != location.version(location.info()) != ""
    monkeypatch.setattr(MemoryFileSystem, "modified", AbstractFileSystem.modified)
    assert location.version(location.info()) == ""
    info = MemoryFileSystem.info
    for told in ("one", "two"):
        tell = lambda system, path, told=told: {**info(system, path), field: told}  # noqa: E731
        monkeypatch.setattr(MemoryFileSystem, "info", tell)
        assert json.loads(location.version(location.info())) == {field: told}
