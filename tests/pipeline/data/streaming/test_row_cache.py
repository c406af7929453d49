"""Files of decoded rows are for their user alone, and those of other users are not read."""

import os
import stat
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv

from pipeline.data.dataset import Dataset
from pipeline.data.plan import Resources
from pipeline.data.streaming import row_cache
from pipeline.data.streaming.loading import load_streamed

X = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    labels = [f"class {number % 4}" for number in range(40)]
    csv.write_csv(pa.table({"a": X[:, 0], "b": X[:, 1], "label": labels}), tmp_path / "x.csv")
    return tmp_path / "x.csv"


def load(source: Path) -> Dataset:
    resources = Resources(memory=1, cache=source.parent / "cache")
    return load_streamed(
        str(source), resources, valid_fraction=0.1, test_fraction=0.2, label="label"
    )


def modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def test_others_cannot_read_what_is_kept(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.streaming.first_pass_cache.LEAST_BYTES", 0)
    before = os.umask(0)
    try:
        load(source)
        cache = source.parent / "cache"
        with row_cache.locked(cache / "x.npy"):
            assert {path.suffix for path in cache.iterdir()} == {
                *(".npy", ".json", ".labels", ".npz", ".lock")
            }
            assert modes(cache) == {0o600}
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_a_folder_that_was_there_keeps_its_mode(source: Path) -> None:
    cache = source.parent / "cache"
    cache.mkdir(mode=0o755)
    load(source)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o755
    assert modes(cache) == {0o600}


@pytest.mark.parametrize("suffix", [".npy", ".json", ".labels"])
def test_a_file_of_another_user_is_not_read(
    source: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user who writes to the folder cannot choose what is learned."""
    expected = load(source)
    (planted,) = (source.parent / "cache").glob(f"*{suffix}")
    planted.write_bytes(b"planted")
    number, is_own = planted.stat().st_ino, row_cache.is_own
    monkeypatch.setattr(
        row_cache,
        "is_own",
        lambda path: is_own(path) and path.stat().st_ino != number,
    )
    found = load(source)
    assert found.digests() == expected.digests()


def test_the_owner_is_this_user_or_whom_the_disk_gives_new_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").touch()
    assert row_cache.is_own(tmp_path / "x")
    assert not row_cache.is_own(tmp_path / "y")
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    assert row_cache.is_own(tmp_path / "x")
    monkeypatch.setattr(row_cache, "_owner_of_new_files", lambda folder: 4321)
    assert not row_cache.is_own(tmp_path / "x")


def test_leftovers_that_cannot_be_deleted_remain(tmp_path: Path) -> None:
    (tmp_path / ".x.npy.of another user").mkdir()
    with row_cache.locked(tmp_path / "x.npy"):
        assert (tmp_path / ".x.npy.of another user").exists()


@pytest.mark.parametrize("look", [1, 2])
def test_a_lock_that_is_deleted_meanwhile_is_taken_anew(
    tmp_path: Path, look: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process deletes it before one of two looks at it."""
    stat_of, lock, looks = Path.stat, tmp_path / "x.lock", 0

    def count(path: Path, **options: bool) -> os.stat_result:
        nonlocal looks
        looks += path == lock
        if path == lock and looks == look:
            path.unlink()
        return stat_of(path, **options)

    monkeypatch.setattr(Path, "stat", count)
    with row_cache.locked(tmp_path / "x.npy"):
        assert looks
    assert not os.path.lexists(lock)
