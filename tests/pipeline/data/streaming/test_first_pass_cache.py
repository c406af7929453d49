"""What a first pass found is found again, as long as the files are the same."""

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import csv, parquet

from pipeline.data.plan import Resources
from pipeline.data.streaming.loading import load_streamed
from serving.errors import DataRefused
from tests.pipeline.data.streaming.sources import (
    FLOATS,
    LABELS,
    TABLES,
    assert_equal,
    both,
    save_images,
    to_table,
)


@pytest.fixture(autouse=True)
def remember_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.streaming.first_pass_cache.LEAST_BYTES", 0)


def write_npy(folder: Path) -> Path:
    x = FLOATS.copy()
    x[[3, 17]] = np.nan
    np.save(folder / "x.npy", x)
    return folder / "x.npy"


def write_parquet(folder: Path) -> Path:
    table = TABLES["words"].append_column("label", LABELS)
    parquet.write_table(table, folder / "x.parquet", row_group_size=7)
    return folder / "x.parquet"


def write_csv(folder: Path) -> Path:
    csv.write_csv(to_table(FLOATS), folder / "x.csv")
    return folder / "x.csv"


def write_images(folder: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (30, 5, 4), dtype=np.uint8)
    return save_images(folder / "x", images, labelled=True)


SETTINGS: dict[str, dict[str, Any]] = {
    "x.npy": {"drop_missing": True},
    "x.parquet": {"likelihood": "auto", "label": "label"},
}


@pytest.mark.parametrize("write", [write_npy, write_parquet, write_csv, write_images])
def test_a_second_pass_is_not_needed(
    tmp_path: Path, write: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    for word in ("rows once, to check", "which were read before"):
        memory, streamed = both(path, tmp_path, **SETTINGS.get(path.name, {}))
        assert_equal(memory, streamed)
        assert word in capsys.readouterr().err


def test_other_shares_and_other_files_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for x, share in ((FLOATS, 0.2), (FLOATS, 0.3), (FLOATS[:50], 0.3), (-FLOATS[:50], 0.3)):
        np.save(tmp_path / "x.npy", x)
        assert_equal(*both(tmp_path / "x.npy", tmp_path, test_fraction=share))
        assert "read before" not in capsys.readouterr().err


def load(path: Path) -> None:
    cache = path.parent / "cache"
    load_streamed(
        str(path), Resources(memory=1, cache=cache), valid_fraction=0.1, test_fraction=0.1
    )


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", FLOATS)
    load(tmp_path / "x.npy")
    (file,) = (tmp_path / "cache").iterdir()
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataRefused, match=rf"cannot read {file}, which can be deleted"):
        load(tmp_path / "x.npy")


def test_without_space_rows_are_read_again(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", FLOATS)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        load(tmp_path / "x.npy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [*(tmp_path / "cache").iterdir()] == []
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").write_text("a file where the folder should be")
    load(tmp_path / "x.npy")
