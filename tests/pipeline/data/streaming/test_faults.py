"""What goes wrong with files while they are streamed is refused by the name of the file."""

import os
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import csv, parquet

from pipeline.data.dataset import Dataset
from pipeline.data.plan import Resources
from pipeline.data.streaming.loading import load_streamed
from serving.errors import DataRefused, VaeError

X = np.random.default_rng(0).normal(size=(3, 40, 4)).astype(np.float32)


def load(path: Path) -> Dataset:
    cache = path.parent / "cache"
    return load_streamed(
        str(path), Resources(memory=1, cache=cache), valid_fraction=0.1, test_fraction=0.1
    )


def write_part(path: Path, x: np.ndarray, names: str = "abcd") -> None:
    table = pa.table({name: x[:, index] for index, name in enumerate(names)})
    parquet.write_table(table, path, row_group_size=9)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A folder of three Parquet files."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for number, x in enumerate(X):
        write_part(folder / f"{number}.parquet", x)
    return folder


def read_all(dataset: Dataset) -> None:
    rows = dataset.train.x
    assert not isinstance(rows, np.ndarray)
    for block in range(len(rows.blocks)):
        rows.read_block(block)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8:200] = bytes(192)
    path.write_bytes(content)


@pytest.mark.parametrize("spoil", [truncate, damage])
def test_a_damaged_part_is_refused(parts: Path, spoil: Callable[[Path], None]) -> None:
    spoil(parts / "1.parquet")
    with pytest.raises(DataRefused, match=r"cannot read .*/1\.parquet: "):
        load(parts)


def shrink(path: Path) -> None:
    write_part(path, X[1, :20])


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "word"),
    [(shrink, "changed"), (touch, "changed"), (truncate, "changed"), (Path.unlink, "gone")],
)
def test_a_part_that_changes_between_epochs_is_refused(
    parts: Path, change: Callable[[Path], None], word: str
) -> None:
    dataset = load(parts)
    read_all(dataset)
    change(parts / "1.parquet")
    with pytest.raises(DataRefused, match=rf"/1\.parquet (is|has) {word}"):
        read_all(dataset)


def test_rows_that_can_no_longer_be_used_are_refused(tmp_path: Path) -> None:
    """Size and time are those of the file whose rows were checked."""
    path, x = tmp_path / "x.parquet", X[0, :, 0].copy()
    for value in (1.5, np.nan):
        x[5:20] = value
        plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        parquet.write_table(pa.table({"a": x}), path, **plain)
        os.utime(path, ns=(1, 1))
        if value == 1.5:
            dataset = load(path)
    with pytest.raises(DataRefused, match=r"/x\.parquet has changed since its rows were checked"):
        read_all(dataset)


@pytest.mark.parametrize(
    ("change", "word"), [(touch, "changed"), (truncate, "changed"), (Path.unlink, "gone")]
)
def test_a_mapped_file_that_changes_between_epochs_is_refused(
    tmp_path: Path, change: Callable[[Path], None], word: str
) -> None:
    np.save(tmp_path / "x.npy", X[0])
    dataset = load(tmp_path / "x.npy")
    read_all(dataset)
    change(tmp_path / "x.npy")
    with pytest.raises(DataRefused, match=rf"/x\.npy (is|has) {word}"):
        read_all(dataset)


def test_a_column_that_changes_its_type_is_refused(parts: Path) -> None:
    table = parquet.read_table(parts / "1.parquet")
    words = pa.array(["a"] * len(table))
    parquet.write_table(table.set_column(2, "c", words), parts / "1.parquet")
    with pytest.raises(DataRefused, match=r"/1\.parquet: .*'?c'? ?\(?.*string"):
        load(parts)


def test_a_part_without_a_column_is_refused(parts: Path) -> None:
    write_part(parts / "1.parquet", X[1], "abc")
    with pytest.raises(DataRefused, match=r"/1\.parquet has no column 'd'"):
        load(parts)


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(9):
        image = np.zeros((4, 5 if number == 7 else 4), np.uint8)
        Image.fromarray(image).save(tmp_path / "in" / f"{number}.png")
    with pytest.raises(DataRefused, match=r"/7\.png has 5x4"):
        load(tmp_path / "in")
    assert [*(tmp_path / "cache").iterdir()] == []


def test_an_image_that_cannot_be_decoded_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 64, 64), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "in" / f"{number}.png")
    bad = tmp_path / "in" / "7.png"
    bad.write_bytes(bad.read_bytes()[:2000])
    with pytest.raises(DataRefused, match=r"cannot read .*/7\.png"):
        load(tmp_path / "in")
    assert [*(tmp_path / "cache").iterdir()] == []


def test_a_full_disk_leaves_nothing_and_names_the_file(tmp_path: Path) -> None:
    """A limit of a file's size stands for a full disk: both are errors of a write."""
    x = np.random.default_rng(0).normal(size=(2000, 8))
    csv.write_csv(
        pa.table({name: x[:, i] for i, name in enumerate("abcdefgh")}), tmp_path / "x.csv"
    )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        with pytest.raises(VaeError, match=r"cannot write .*\.npy: .*: name .* by --cache"):
            load(tmp_path / "x.csv")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [*(tmp_path / "cache").iterdir()] == []


def test_too_little_space_is_told_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(9):
        Image.fromarray(X[0, :4] > number).save(tmp_path / "in" / f"{number}.png")
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(VaeError, match=r"take 144 bytes, and 100 bytes are free: name another"):
        load(tmp_path / "in")


def test_a_cache_that_was_damaged_is_refused(tmp_path: Path) -> None:
    csv.write_csv(pa.table({"a": X[0, :, 0], "b": X[0, :, 1]}), tmp_path / "x.csv")
    load(tmp_path / "x.csv")
    (file,) = (tmp_path / "cache").glob("*.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataRefused, match="is damaged: delete it"):
        load(tmp_path / "x.csv")


def test_what_a_killed_process_left_is_deleted(tmp_path: Path) -> None:
    csv.write_csv(pa.table({"a": X[0, :, 0], "b": X[0, :, 1]}), tmp_path / "x.csv")
    load(tmp_path / "x.csv")
    (file,) = (tmp_path / "cache").glob("*.npy")
    file.rename(file.with_name(f".{file.name}.0a1b2c3d"))
    load(tmp_path / "x.csv")
    assert sorted((tmp_path / "cache").iterdir()) == sorted([file, file.with_suffix(".json")])


def test_several_at_once_decode_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The lock is one of an open file, so that threads stand for processes."""
    csv.write_csv(pa.table({"a": X[0, :, 0], "b": X[0, :, 1]}), tmp_path / "x.csv")
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(load, [tmp_path / "x.csv"] * 4)]
    assert len({data.train.sha256 for data in found}) == 1
    assert capsys.readouterr().err.count("decoding the rows once") == 1
    assert len([*(tmp_path / "cache").iterdir()]) == 2


def test_a_source_that_changes_is_decoded_again(tmp_path: Path) -> None:
    for x in X[:2]:
        csv.write_csv(pa.table({"a": x[:, 0], "b": x[:, 1]}), tmp_path / "x.csv")
        rows = load(tmp_path / "x.csv")
        values = {*rows.sample[:, 0], *rows.valid.x[:, 0], *rows.test.x[:, 0]}
        assert values == {*x[:, 0]}
