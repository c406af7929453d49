"""Streamed data against the same data in memory: the same rows, digests and held-out rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.data.dataset import Dataset, load_dataset
from pipeline.data.plan import Resources
from pipeline.data.splits import StreamedSplit, digest
from pipeline.data.streaming.loading import load_streamed
from serving.errors import DataRefused

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
    np.testing.assert_array_equal(train.x.take(order), memory.sample[order], strict=True)
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


@pytest.mark.parametrize(
    "x",
    [BYTES, FLOATS, FLOATS.astype(np.float64), RNG.integers(-9, 9, (60, 4)), FLOATS > 0],
    ids=["bytes", "float32", "float64", "int64", "bool"],
)
def test_an_npy_file_is_mapped(tmp_path: Path, x: Array) -> None:
    np.save(tmp_path / "x.npy", x)
    memory, streamed = both(tmp_path / "x.npy", tmp_path)
    assert_equal(memory, streamed)
    assert streamed.train.x.random_access  # type: ignore[union-attr]
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
    for change in (None, 0.25, 1.75, -3.0):
        if change is not None:
            x[33, 1] = change
        np.save(tmp_path / "x.npy", x)
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
    assert streamed.train.sha256 == digest(rows.take(np.arange(rows.shape[0])))
