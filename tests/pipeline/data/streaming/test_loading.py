"""Streamed data against the same data in memory: the same rows, digests and held-out rows."""

import gzip
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pyarrow import csv, parquet

from pipeline.data.dataset import load_dataset
from pipeline.data.plan import Resources
from pipeline.data.splits import StreamedSplit, digest
from pipeline.data.streamed_rows import MappedRows
from pipeline.data.streaming.loading import load_streamed
from pipeline.data.streaming.table_rows import BlockRows
from serving.errors import DataRefused
from tests.pipeline.data.streaming.sources import (
    BYTES,
    FLOATS,
    LABELS,
    RNG,
    TABLES,
    assert_equal,
    both,
    save_idx,
    save_images,
    to_table,
    write_arrow,
    write_parquet,
    write_parquet_parts,
    write_stream,
)

Array = NDArray[Any]


@pytest.mark.parametrize(
    "x",
    [BYTES, FLOATS, FLOATS.astype(np.float64), RNG.integers(-9, 9, (60, 4)), FLOATS > 0],
    ids=["bytes", "float32", "float64", "int64", "bool"],
)
def test_an_npy_file_is_mapped(tmp_path: Path, x: Array) -> None:
    np.save(tmp_path / "x.npy", x)
    memory, streamed = both(tmp_path / "x.npy", tmp_path)
    assert_equal(memory, streamed)
    assert isinstance(streamed.train.x, MappedRows)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("x", [BYTES, FLOATS, FLOATS.astype(np.int32)], ids=["u1", "f4", "i4"])
def test_an_idx_file_is_mapped(tmp_path: Path, x: Array) -> None:
    assert_equal(*both(save_idx(tmp_path / "x-idx3-ubyte", x), tmp_path))


def test_rows_that_lack_a_value_are_left_out(tmp_path: Path) -> None:
    x = FLOATS.copy()
    x[[0, 7, 8, 59], [0, 1, 2, 0]] = np.nan
    np.save(tmp_path / "x.npy", x)
    assert_equal(*both(tmp_path / "x.npy", tmp_path, drop_missing=True))


def test_rows_are_read_in_the_shape_of_a_model(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", BYTES.reshape(60, 6))
    memory, streamed = both(tmp_path / "x.npy", tmp_path, x_shape=(3, 2), x_dtype="float32")
    assert streamed.x_shape == (3, 2)
    assert_equal(memory, streamed)


@pytest.mark.parametrize("name", ["lists", "fixed bytes"])
@pytest.mark.parametrize("write", [write_parquet, write_stream])
def test_rows_of_a_table_are_read_in_the_shape_of_a_model(
    tmp_path: Path, name: str, write: Callable[[pa.Table, Path], Path]
) -> None:
    np.save(tmp_path / "x.npy", BYTES)
    memory, _ = both(tmp_path / "x.npy", tmp_path)
    _, streamed = both(write(TABLES[name], tmp_path), tmp_path, x_shape=(3, 2), x_dtype="uint8")
    assert_equal(memory, replace(streamed, source=memory.source))


@pytest.fixture(params=[64 << 20, 12], ids=["row groups", "slices of row groups"])
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.streaming.table_rows.BLOCK_BYTES", request.param)


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize("write", [write_parquet, write_parquet_parts, write_arrow])
@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_read_by_blocks(
    tmp_path: Path, name: str, write: Callable[[pa.Table, Path], Path]
) -> None:
    (tmp_path / "in").mkdir()
    path = write(TABLES[name], tmp_path / "in")
    memory, streamed = both(path, tmp_path, likelihood="auto")
    assert_equal(memory, streamed)
    assert isinstance(streamed.train, StreamedSplit)
    assert isinstance(streamed.train.x, BlockRows)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["columns of floats", "words", "fixed bytes"])
def test_what_has_no_blocks_is_decoded_once(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_stream(TABLES[name], tmp_path)
    for said in (1, 0):
        memory, streamed = both(path, tmp_path, likelihood="auto")
        assert_equal(memory, streamed)
        assert capsys.readouterr().err.count("decoding the rows once") == said
    assert isinstance(streamed.train, StreamedSplit)
    assert isinstance(streamed.train.x, MappedRows)


@pytest.mark.parametrize("name", ["columns of floats", "columns of whole numbers", "words"])
@pytest.mark.parametrize("drop_missing", [False, True])
def test_a_csv_file_is_decoded_once(tmp_path: Path, name: str, drop_missing: bool) -> None:
    csv.write_csv(TABLES[name].append_column("label", LABELS), tmp_path / "x.csv")
    settings = {"likelihood": "auto", "label": "label", "drop_missing": drop_missing}
    for _ in range(2):
        memory, streamed = both(tmp_path / "x.csv", tmp_path, **settings)
        assert_equal(memory, streamed)
        assert memory.test.labels is not None


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("channels", [(), (3,)], ids=["gray", "colour"])
def test_a_folder_of_images_is_decoded_once(
    tmp_path: Path, channels: tuple[int, ...], labelled: bool
) -> None:
    x = RNG.integers(0, 256, (30, 5, 4, *channels), dtype=np.uint8)
    folder = save_images(tmp_path / "images", x, labelled)
    for _ in range(2):
        memory, streamed = both(folder, tmp_path)
        assert_equal(memory, streamed)
    assert len([*(tmp_path / "cache").glob("*.npy")]) == 1


def test_one_image_in_colour_makes_all_of_them_so(tmp_path: Path) -> None:
    gray, colour = tmp_path / "images/a", tmp_path / "images/b"
    save_images(gray, BYTES)
    save_images(colour, RNG.integers(0, 256, (1, 3, 2, 3), dtype=np.uint8))
    for _ in range(2):
        memory, streamed = both(tmp_path / "images", tmp_path)
        assert streamed.x_shape == (3, 2, 3)
        assert_equal(memory, streamed)
    assert len([*(tmp_path / "cache").iterdir()]) == 3  # the rows, their labels and facts


@pytest.mark.parametrize("drop_missing", [False, True])
def test_labels_and_rows_that_lack_a_value(tmp_path: Path, drop_missing: bool) -> None:
    x = FLOATS.copy()
    x[[0, 7, 8, 59] if drop_missing else [], 1] = np.nan
    table = to_table(x).append_column("label", LABELS)
    (tmp_path / "in").mkdir()
    for write in (write_parquet_parts, write_arrow):
        path = write(table, tmp_path / "in")
        assert_equal(*both(path, tmp_path, label="label", drop_missing=drop_missing))
        for file in (tmp_path / "in").iterdir():
            file.unlink()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("suffix", [".npy", ".npy.gz", ".npz", "-idx3-ubyte.gz"])
def test_arrays_of_any_kind(tmp_path: Path, suffix: str, order: Literal["C", "F"]) -> None:
    path, x = tmp_path / f"x{suffix}", np.asarray(BYTES, order=order)
    if suffix == ".npz":
        np.savez_compressed(
            path, x_train=x, x_test=x[:7], y_train=np.arange(60), y_test=np.arange(7)
        )
    elif suffix == "-idx3-ubyte.gz":
        path.write_bytes(gzip.compress(save_idx(tmp_path / "plain", BYTES).read_bytes()))
    else:
        np.save(tmp_path / "plain.npy", x)
        content = (tmp_path / "plain.npy").read_bytes()
        path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    for _ in range(2):
        assert_equal(*both(path, tmp_path))


def test_the_rows_of_an_npz_file_keep_their_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=FLOATS, y=np.arange(60))
    memory, streamed = both(tmp_path / "x.npz", tmp_path)
    assert memory.test.labels is not None
    assert_equal(memory, streamed)


def test_folders_of_splits_keep_their_sets(tmp_path: Path) -> None:
    for name, x in (("train", BYTES), ("val", BYTES[:9]), ("test", BYTES[9:20])):
        save_images(tmp_path / "images" / name, x, labelled=True)
        (tmp_path / "tables" / name).mkdir(parents=True)
        table = to_table(x[:, 0, :].astype(np.float32), "ab").append_column("w", LABELS[: len(x)])
        parquet.write_table(table, tmp_path / "tables" / name / "x.parquet")
    assert_equal(*both(tmp_path / "images", tmp_path))
    assert_equal(*both(tmp_path / "tables", tmp_path, likelihood="auto"))
    assert_equal(*both(tmp_path / "tables", tmp_path, label="w"))


def test_the_keys_of_a_partitioned_folder_are_columns(tmp_path: Path) -> None:
    for year, x in ((2025, FLOATS[:20]), (2026, FLOATS[20:])):
        (tmp_path / f"in/year={year}").mkdir(parents=True)
        parquet.write_table(to_table(x), tmp_path / f"in/year={year}/x.parquet", row_group_size=7)
    memory, streamed = both(tmp_path / "in", tmp_path, columns=("a", "year", "c"))
    assert memory.columns == ("a", "year", "c")
    assert_equal(memory, streamed)


@pytest.mark.parametrize("seed", range(20))
def test_tables_of_any_size_and_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Sizes, shares, row groups, slices and gaps are drawn."""
    rng = np.random.default_rng(seed)
    rows, features = int(rng.integers(4, 300)), int(rng.integers(1, 5))
    x = rng.normal(size=(rows, features)).astype(np.float32 if seed % 2 else np.float64)
    drop = bool(rng.random() < 0.5)
    x[rng.random(x.shape) < (0.2 if drop else 0)] = np.nan
    x[:3] = 1.5
    monkeypatch.setattr(
        "pipeline.data.streaming.table_rows.BLOCK_BYTES", int(rng.integers(1, 60)) * 4 * features
    )
    folder = tmp_path / "in"
    folder.mkdir()
    edges = np.unique([0, rows, *rng.integers(0, rows, 3)])
    for start, stop in pairwise(edges):
        size = int(rng.integers(1, 80))
        table = to_table(x[start:stop], "abcd"[:features])
        parquet.write_table(table, folder / f"{start:03}.parquet", row_group_size=size)
    fractions = {"valid_fraction": rng.choice([0, 0.1, 0.3]), "test_fraction": rng.random() * 0.4}
    assert_equal(*both(folder, tmp_path, drop_missing=drop, **fractions))


def test_words_that_are_not_in_the_sample_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.data.streaming.opening._SAMPLE_ROWS", 64)
    words = ["a", "b"] * 1000 + ["new"] * 7 + ["a"]
    table = pa.table({"word": words, "x": np.arange(2008) % 7 / 3})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=100)
    settings: dict[str, Any] = {"valid_fraction": 0.1, "test_fraction": 0.1, "likelihood": "auto"}
    streamed = load_streamed(str(tmp_path / "x.parquet"), Resources(memory=1), **settings)
    assert streamed.schema is not None
    assert streamed.schema.columns[0].words == ("a", "b")
    assert "words not seen in training count as" in capsys.readouterr().err
    assert streamed.train_rows == 2008 - 201 - 181


def spoil(row: int, value: float) -> Callable[[Array], Array]:
    def change(x: Array) -> Array:
        x = x.astype(np.float64)
        x[row, 1] = value
        return x

    return change


@pytest.mark.parametrize(
    "change",
    [
        spoil(41, np.nan),
        spoil(41, np.inf),
        spoil(41, 1e9),
        spoil(41, 1e300),
        lambda x: x.astype(np.float64) + 1e9,
        lambda x: np.arange(180).reshape(60, 3) + 2**40,
        lambda x: x.astype("U5"),
        lambda x: x[:, 0],
    ],
    ids=["nan", "inf", "outlier", "too large", "offset", "large whole", "text", "no rows"],
)
def test_rows_are_refused_for_the_same_reason(
    tmp_path: Path, change: Callable[[Array], Array]
) -> None:
    np.save(tmp_path / "x.npy", change(FLOATS))
    with pytest.raises(DataRefused) as memory:
        load_dataset(str(tmp_path / "x.npy"), valid_fraction=0.1, test_fraction=0.1)
    with pytest.raises(DataRefused) as streamed:
        load_streamed(
            str(tmp_path / "x.npy"), Resources(memory=1), valid_fraction=0.1, test_fraction=0.1
        )
    assert str(streamed.value) == str(memory.value)


def test_dynamic_binarization_leaves_the_rows_to_train_on_gray(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", BYTES % 17)
    assert_equal(*both(tmp_path / "x.npy", tmp_path, binarize="dynamic"))


def test_mnist_has_its_own_test_set(tmp_path: Path) -> None:
    memory, streamed = both("mnist", tmp_path, valid_fraction=0.1)
    assert streamed.digests() == memory.digests()
    np.testing.assert_array_equal(streamed.test.labels, memory.test.labels)


def test_the_sample_and_the_extremes_show_what_all_rows_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rare values outside the sample decide the likelihood just as they do in memory."""
    from pipeline.model.likelihoods import choose_likelihood

    monkeypatch.setattr("pipeline.data.streaming.first_pass.SAMPLE_BYTES", 10 * 12)
    monkeypatch.setattr("pipeline.data.streaming.first_pass.HELD_OUT_BYTES", 5 * 12)
    x = (FLOATS > 0).astype(np.float32)
    for row, change in product(range(0, 60, 3), (1.0, 0.25, 1.75, 2.0, -3.0)):
        spoiled = x.copy()
        spoiled[row, 1] = change
        np.save(tmp_path / "x.npy", spoiled)
        memory, streamed = both(tmp_path / "x.npy", tmp_path, valid_fraction=0.3)
        assert (len(streamed.sample), len(streamed.valid.x), len(streamed.test.x)) == (10, 5, 5)
        assert streamed.train_rows == 50
        assert streamed.value_range == memory.value_range
        assert choose_likelihood("none", *streamed.rows) == choose_likelihood("none", *memory.rows)
        assert streamed.plan is not None
        assert "each at most" in "".join(streamed.plan.lines())


def test_the_digest_of_rows_in_parts_is_that_of_all(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", FLOATS)
    _, streamed = both(tmp_path / "x.npy", tmp_path)
    assert isinstance(streamed.train, StreamedSplit)
    rows = streamed.train.x
    assert isinstance(rows, MappedRows)
    assert streamed.train.sha256 == digest(rows.take(np.arange(rows.shape[0])))
