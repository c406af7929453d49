import gzip
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from pipeline.config import Binarize
from pipeline.data.dataset import Dataset, binarize, digest, load_dataset
from pipeline.data.readers import MNIST
from serving.errors import DataRefused

Array = NDArray[Any]

BYTES = np.arange(40 * 3 * 2, dtype=np.uint8).reshape(40, 3, 2)
FLOATS = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)


def load(source: Path | str, valid_fraction: float = 0.1, test_fraction: float = 0.1) -> Dataset:
    return load_dataset(str(source), valid_fraction=valid_fraction, test_fraction=test_fraction)


def test_columns_of_bytes_with_ranges_of_their_own_are_read_as_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As from CSV, each has a scale of its own; bytes of one range, as of pixels, stay bytes."""
    x = np.random.default_rng(0).integers(0, 256, (90, 4), dtype=np.uint8)
    path, names = tmp_path / "x.parquet", list("abcd")
    pd.DataFrame(x, columns=names).to_parquet(path)
    assert load(path).sample.dtype == np.uint8
    x[:, 0] %= 2
    x[:, 1] //= 3
    pd.DataFrame(x, columns=names).to_parquet(path)
    found = load(path)
    assert "ranges of their own ('a' reaches 1, " in capsys.readouterr().err
    pd.DataFrame(x, columns=names).to_csv(tmp_path / "x.csv", index=False)
    assert found.digests() == load(tmp_path / "x.csv").digests()
    bytes_again = load_dataset(
        str(tmp_path / "x.csv"), valid_fraction=0, test_fraction=0.5, x_shape=(4,), x_dtype="uint8"
    )
    kept = load_dataset(
        str(path), valid_fraction=0, test_fraction=0.5, x_shape=(4,), x_dtype="uint8"
    )
    assert bytes_again.digests() == kept.digests()
    assert kept.sample.dtype == np.uint8


def test_columns_of_later_files_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.DataFrame(FLOATS, columns=list("abc"))
    frame.to_parquet(tmp_path / "1.parquet")
    frame.assign(d=1.5).to_parquet(tmp_path / "2.parquet")
    assert load(tmp_path).columns == ("a", "b", "c")
    said = "1 columns that the first file lacks are not used: 'd'"
    assert capsys.readouterr().err.splitlines() == [f"{tmp_path}: {said}"]


def count_rows(*arrays: Array) -> Counter[bytes]:
    return Counter(row.tobytes() for x in arrays for row in x)


def save(path: Path, x: Array) -> Path:
    np.save(path, x)
    return path


def read_mnist(name: str) -> Array:
    """The images of a file of MNIST, read without the code under test."""
    content = gzip.decompress((MNIST / f"{name}-images-idx3-ubyte.gz").read_bytes())
    return np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28)


@pytest.fixture(scope="module")
def mnist() -> Dataset:
    return load("mnist")


def test_mnist_has_its_rows_and_a_tenth_for_validation(mnist: Dataset) -> None:
    assert [len(part) for part in mnist.rows] == [
        54_000,
        6_000,
        10_000,
    ]
    assert mnist.x_shape == (28, 28)
    assert mnist.sample.dtype == mnist.test.x.dtype == np.uint8


def test_mnist_splits_are_disjoint_and_complete(mnist: Dataset) -> None:
    assert count_rows(mnist.sample, mnist.valid.x) == count_rows(read_mnist("train"))
    np.testing.assert_array_equal(mnist.test.x, read_mnist("t10k"))


def test_mnist_loads_the_same_from_another_path_under_another_seed(
    mnist: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.random.seed(1)
    assert load(MNIST).digests() == mnist.digests()
    assert len(set(mnist.digests().values())) == 3


@pytest.mark.parametrize("x", [BYTES, FLOATS], ids=["uint8 images", "float32 table"])
def test_cuts_npy_rows_into_three_parts(tmp_path: Path, x: Array) -> None:
    dataset = load(save(tmp_path / "x.npy", x), valid_fraction=0.25, test_fraction=0.2)
    parts = dataset.rows
    assert [len(part) for part in parts] == [24, 8, 8]
    assert count_rows(*parts) == count_rows(x)
    assert all(part.dtype == x.dtype for part in parts)
    assert dataset.x_shape == x.shape[1:]


def test_without_a_valid_fraction_all_rows_train(tmp_path: Path) -> None:
    dataset = load(save(tmp_path / "x.npy", BYTES), valid_fraction=0, test_fraction=0.1)
    assert dataset.valid.x.shape == (0, 3, 2)
    assert count_rows(dataset.sample, dataset.test.x) == count_rows(BYTES)


def test_a_split_is_random_and_keeps_the_order_of_rows(tmp_path: Path) -> None:
    x = np.arange(1000, dtype=np.float32).reshape(-1, 1)
    dataset = load(save(tmp_path / "x.npy", x))
    for part in dataset.rows:
        assert (np.diff(part[:, 0]) > 0).all()
    assert abs(dataset.test.x.mean() - x.mean()) < 100
    assert abs(dataset.valid.x.mean() - x.mean()) < 100


def test_a_small_fraction_takes_at_least_one_row(tmp_path: Path) -> None:
    dataset = load(save(tmp_path / "x.npy", BYTES[:3]), 0.001, 0.001)
    assert [len(part) for part in dataset.rows] == [1, 1, 1]


def test_splits_depend_on_the_rows_alone(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    first = load(save(tmp_path / "a.npy", FLOATS))
    np.random.seed(7)
    second = load(save(tmp_path / "elsewhere" / "b.npy", FLOATS))
    changed = FLOATS.copy()
    changed[0, 0] += 1
    third = load(save(tmp_path / "c.npy", changed))
    assert first.digests() == second.digests()
    assert sum(first.digests()[name] != third.digests()[name] for name in first.digests()) == 1


def test_float64_is_rounded_to_float32(tmp_path: Path) -> None:
    dataset = load(save(tmp_path / "x.npy", FLOATS.astype(np.float64) + 1e-12))
    assert dataset.sample.dtype == np.float32
    assert dataset.digests() == load(save(tmp_path / "y.npy", FLOATS)).digests()


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(np.array([[-(2**24)], [0], [2**24]]), id="int64"),
        pytest.param(np.array([[-3], [0], [7]], np.int32), id="int32"),
        pytest.param(np.array([[0], [65535], [3]], np.uint16), id="uint16"),
        pytest.param(np.array([[-128], [127], [3]], ">i2"), id="big-endian int16"),
        pytest.param(np.array([[True], [False], [True]]), id="bool"),
        pytest.param(np.array([[0.1], [-7.5], [6e4]], np.float16), id="float16"),
        pytest.param(np.array([[0.1], [-7.5], [6e30]], ">f4"), id="big-endian float32"),
        pytest.param(np.array([[0.5], [-7.5], [2.0**90]], ">f8"), id="big-endian float64"),
    ],
)
def test_other_numbers_become_float32_with_the_same_values(tmp_path: Path, x: Array) -> None:
    dataset = load(save(tmp_path / "x.npy", x), 0)
    parts = [dataset.sample, dataset.test.x]
    assert all(part.dtype == np.float32 and part.dtype.isnative for part in parts)
    assert sorted(np.concatenate(parts)[:, 0].tolist()) == sorted(x[:, 0].tolist())


def test_describe_names_source_rows_and_digests(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npy", BYTES)
    dataset = load(path)
    assert dataset.describe() == {
        "source": str(path),
        "range": [BYTES.min(), BYTES.max()],
        "splits": {
            "train": {"rows": 32, "sha256": digest(dataset.sample)},
            "valid": {"rows": 4, "sha256": digest(dataset.valid.x)},
            "test": {"rows": 4, "sha256": digest(dataset.test.x)},
        },
    }


@pytest.mark.parametrize(
    ("x", "name"),
    [
        (BYTES, "uint8(40, 3, 2)"),
        (FLOATS, "float32(40, 3)"),
        (FLOATS[::2, ::-1], "float32(20, 3)"),
        (FLOATS.astype(">f4"), "float32(40, 3)"),
        (FLOATS[:0], "float32(0, 3)"),
    ],
    ids=["bytes", "floats", "strided", "big-endian", "empty"],
)
def test_digest_is_sha256_of_dtype_shape_and_bytes(x: Array, name: str) -> None:
    little_endian = x.astype(x.dtype.newbyteorder("<")).tobytes()
    assert digest(x) == hashlib.sha256(name.encode() + little_endian).hexdigest()


def test_digest_tells_dtypes_and_shapes_with_the_same_bytes_apart() -> None:
    views = (BYTES, BYTES.reshape(40, 2, 3), BYTES.reshape(40, 6), BYTES.view(np.int8))
    assert len({digest(view) for view in views}) == 4


GRAY = np.tile(np.arange(256, dtype=np.uint8), (9000, 1))
UNIT = (GRAY / np.float32(255)).astype(np.float32)


@pytest.mark.parametrize(("x", "one"), [(GRAY, 255), (UNIT, 1)], ids=["bytes", "floats"])
def test_a_binarized_value_is_one_with_the_chance_that_it_says(x: Array, one: int) -> None:
    drawn = binarize(x, np.random.default_rng(0))
    assert drawn.dtype == x.dtype
    assert set(np.unique(drawn)) == {0, one}
    assert (drawn[:, 0] == 0).all()
    assert (drawn[:, 255] == one).all()
    p = np.arange(1, 255) / 255
    z = ((drawn[:, 1:255] == one).mean(0) - p) / np.sqrt(p * (1 - p) / len(x))
    assert np.abs(z).max() < 4.5  # 254 values
    assert 0.85 < z.std() < 1.15
    assert abs(np.corrcoef(drawn[:-1, 128], drawn[1:, 128])[0, 1]) < 0.05


def load_binarized(path: Path, how: Binarize) -> Dataset:
    return load_dataset(str(path), valid_fraction=0.2, test_fraction=0.2, binarize=how)


def test_static_binarization_is_drawn_once_and_dynamic_leaves_training_gray(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npy", GRAY[:50])
    none, static, dynamic = (load_binarized(path, how) for how in ("none", "static", "dynamic"))
    assert static.digests() == load_binarized(path, "static").digests()
    np.testing.assert_array_equal(dynamic.sample, none.sample)
    for part, sha256 in zip(static.rows, static.digests().values(), strict=True):
        assert set(np.unique(part)) == {0, 255}
        assert sha256 == digest(part)
    assert dynamic.digests() == {**static.digests(), "train": none.digests()["train"]}
    draws = [part[:8] for part in static.rows]
    assert not any((a == b).all() for a, b in ((draws[0], draws[1]), (draws[1], draws[2])))


@pytest.mark.parametrize("how", ["static", "dynamic"])
def test_only_what_can_be_a_chance_is_binarized(tmp_path: Path, how: Binarize) -> None:
    with pytest.raises(DataRefused) as caught:
        load_binarized(save(tmp_path / "x.npy", UNIT[:50] * 2 - 1), how)
    assert str(caught.value) == (
        "to be binarized, data must be bytes, or floats from 0 to 1; got -1 to 1: "
        "use --binarize none"
    )
    assert caught.value.exit_code == 3
