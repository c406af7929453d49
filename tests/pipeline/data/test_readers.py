import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

from pipeline.config import DATA_KINDS
from pipeline.data.dataset import Split, load_dataset
from pipeline.data.readers import MNIST, read_source
from serving.errors import DataRefused, UsageRefused
from serving.io.unread_formats import READ_FORMATS
from tests.pipeline.data.test_dataset import BYTES, FLOATS, count_rows, load, save

Array = NDArray[Any]


def idx_bytes(x: Array, code: int = 0x08) -> bytes:
    header = struct.pack(f">HBB{x.ndim}I", 0, code, x.ndim, *x.shape)
    return header + x.tobytes()


def save_idx_folder(folder: Path, train: bytes, test: bytes, suffix: str = "") -> Path:
    pack = gzip.compress if suffix == ".gz" else bytes
    (folder / f"train-images-idx3-ubyte{suffix}").write_bytes(pack(train))
    (folder / f"t10k-images-idx3-ubyte{suffix}").write_bytes(pack(test))
    return folder


@pytest.mark.parametrize("suffix", ["", ".gz"], ids=["plain", "gz"])
def test_reads_an_idx_folder_with_its_own_test_set(tmp_path: Path, suffix: str) -> None:
    folder = save_idx_folder(tmp_path, idx_bytes(BYTES[:30]), idx_bytes(BYTES[30:]), suffix)
    dataset = load(folder, test_fraction=0.5)
    np.testing.assert_array_equal(dataset.test.x, BYTES[30:])
    assert (len(dataset.sample), len(dataset.valid.x)) == (27, 3)
    assert count_rows(dataset.sample, dataset.valid.x) == count_rows(BYTES[:30])


def test_plain_files_of_an_idx_folder_go_before_zipped_ones(tmp_path: Path) -> None:
    save_idx_folder(tmp_path, idx_bytes(BYTES), idx_bytes(BYTES), ".gz")
    save_idx_folder(tmp_path, idx_bytes(BYTES[:20]), idx_bytes(BYTES[:5]))
    np.testing.assert_array_equal(load(tmp_path, 0).sample, BYTES[:20])


@pytest.mark.parametrize(
    "arrays",
    [{"x": FLOATS, "labels": np.arange(40)}, {"rows": FLOATS}],
    ids=["x among others", "one array"],
)
def test_reads_the_rows_of_an_npz(tmp_path: Path, arrays: dict[str, Array]) -> None:
    np.savez(tmp_path / "x.npz", allow_pickle=False, **arrays)
    expected = load(save(tmp_path / "x.npy", FLOATS))
    assert load(tmp_path / "x.npz").digests() == expected.digests()


def test_reads_an_npz_with_its_own_test_set(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x_train=BYTES[:30], x_test=BYTES[30:], x=BYTES)
    dataset = load(tmp_path / "x.npz", valid_fraction=0, test_fraction=0.5)
    np.testing.assert_array_equal(dataset.sample, BYTES[:30])
    np.testing.assert_array_equal(dataset.test.x, BYTES[30:])


@pytest.mark.parametrize("suffix", ["", ".gz"], ids=["plain", "gz"])
def test_idx_files_go_by_other_spellings_and_what_is_beside_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    pack = gzip.compress if suffix else bytes
    parts = {"Train": BYTES[:20], "t10k": BYTES[20:30], "val": BYTES[30:]}
    for name, x in parts.items():
        (tmp_path / f"{name}-images.idx3-ubyte{suffix}").write_bytes(pack(idx_bytes(x)))
    (tmp_path / "notes.txt").touch()
    dataset = load(tmp_path)
    for split, x in zip((dataset.train, dataset.test, dataset.valid), parts.values(), strict=True):
        np.testing.assert_array_equal(split.x, x)
    assert capsys.readouterr().err == f"{tmp_path}: passed over 1 other file, 1 .txt (notes.txt)\n"


def test_mnist_has_the_digits_of_its_test_set() -> None:
    rest, test, _ = read_source("mnist")
    content = gzip.decompress((MNIST / "t10k-labels-idx1-ubyte.gz").read_bytes())
    assert rest.labels is None
    assert test is not None
    np.testing.assert_array_equal(test.labels, np.frombuffer(content, np.uint8)[8:])


def test_labels_of_an_npz_go_with_their_rows(tmp_path: Path) -> None:
    x = np.arange(40, dtype=np.float32).reshape(-1, 1)
    np.savez(tmp_path / "one.npz", x=x, y=np.arange(40))
    np.savez(tmp_path / "two.npz", x_train=x, x_test=x, y_test=np.arange(40)[:, None].astype(str))
    plain = load(save(tmp_path / "x.npy", x))
    one, two = load(tmp_path / "one.npz"), load(tmp_path / "two.npz")
    np.testing.assert_array_equal(one.test.labels, one.test.x[:, 0])
    np.testing.assert_array_equal(two.test.labels, np.arange(40).astype(str))
    assert one.digests() == plain.digests()
    assert isinstance(one.train, Split)
    assert (one.train.labels, one.valid.labels, plain.test.labels) == (None, None, None)


@pytest.mark.parametrize(
    "y", [FLOATS[:, 0], np.eye(40, dtype=np.uint8)], ids=["numbers", "one-hot codes"]
)
def test_a_target_that_is_no_class_is_no_label(tmp_path: Path, y: Array) -> None:
    np.savez(tmp_path / "x.npz", x=FLOATS, y=y)
    assert load(tmp_path / "x.npz").test.labels is None


@pytest.mark.parametrize("settings", [{"columns": ("a",)}, {"label": "a"}], ids=str)
def test_columns_are_chosen_of_tables_alone(tmp_path: Path, settings: dict[str, Any]) -> None:
    path = save(tmp_path / "x.npy", FLOATS)
    with pytest.raises(UsageRefused) as caught:
        load_dataset(str(path), valid_fraction=0, test_fraction=0.1, **settings)
    assert str(caught.value) == f"--columns and --label choose from a table, and {path} is not one"


def spoil(*cells: tuple[int, int, float]) -> Array:
    x = FLOATS.astype(np.float64)
    for row, column, value in cells:
        x[row, column] = value
    return x


def write(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def write_npy(x: Array, name: str = "x.npy") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with (folder / name).open("wb") as file:
            np.save(file, x)
        return folder / name

    return make


def write_npz(name: str = "x.npz", **arrays: Array) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with (folder / name).open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        return folder / name

    return make


def write_folder(train: bytes, test: bytes) -> Callable[[Path], Path]:
    return lambda folder: save_idx_folder(folder, train, test)


def test_no_name_is_not_the_working_folder() -> None:
    with pytest.raises(UsageRefused, match="no data at '': give mnist"):
        read_source("")


def test_a_missing_path_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageRefused) as caught:
        read_source(str(tmp_path / "none.npy"))
    assert str(caught.value) == f"no data at '{tmp_path / 'none.npy'}': give {DATA_KINDS}"
    assert caught.value.exit_code == 2


def test_a_folder_that_holds_a_link_to_its_files_is_read(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.csv").write_text("a,b\n1,2\n3,4\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    assert read_source(str(tmp_path / "data")).train.x.tolist() == [[1, 2], [3, 4]]


def test_gray_images_are_read_in_colour_beside_a_training_set_in_colour(tmp_path: Path) -> None:
    for split, colour in (("train", (1, 2, 3)), ("test", (1, 1, 1))):
        (tmp_path / split).mkdir()
        Image.new("RGB", (2, 2), colour).save(tmp_path / split / "x.png")
    splits = read_source(str(tmp_path))
    assert splits.test is not None
    assert (splits.train.x.shape, splits.test.x.shape) == ((1, 2, 2, 3), (1, 2, 2, 3))


@pytest.mark.parametrize(("small", "dtype"), [(9, "float32"), (250, "uint8")])
def test_bytes_of_a_table_become_numbers_in_all_sets_or_in_none(
    tmp_path: Path, small: int, dtype: str
) -> None:
    """As the training set decides: `a` reaches `small` there, and the other number elsewhere."""
    for split, largest in (("train", small), ("test", 259 - small)):
        (tmp_path / split).mkdir()
        columns = {"a": np.array([0, largest], np.uint8), "b": np.array([255, 0], np.uint8)}
        parquet.write_table(pa.table(columns), tmp_path / split / "x.parquet")
    splits = read_source(str(tmp_path))
    assert splits.test is not None
    assert [str(part.x.dtype) for part in (splits.train, splits.test)] == [dtype, dtype]


IMAGES = idx_bytes(BYTES[:4])
REFUSALS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "folder with half of IDX": (
        lambda folder: write("t10k-images-idx3-ubyte", b"")(folder).parent,
        "{path} has no train-images-idx3-ubyte or train-images-idx3-ubyte.gz",
    ),
    "empty folder": (lambda folder: folder, "no files in {path}"),
    "wrong magic": (
        write("x-idx1-ubyte", b"\x89\0\r\n\x1a\n"),
        "{path} is not an IDX file: it starts with 0x89000d0a1a0a",
    ),
    "unknown IDX type": (
        write("x-idx3-ubyte", idx_bytes(BYTES, code=7)),
        "{path} is not an IDX file: it starts with 0x0000070300000028",
    ),
    "empty file": (write("x", b""), "{path} is empty"),
    "empty npy": (write("x.npy", b""), "{path} is empty"),
    "IDX header cut off": (
        write("x", IMAGES[:10]),
        "cannot read {path}: the IDX header is cut off after 10 bytes",
    ),
    "IDX too short": (
        write("x", IMAGES[:-1]),
        "{path} is cut off: shape (4, 3, 2) needs 24 bytes of values, got 23",
    ),
    "IDX too long": (
        write("x", IMAGES + b"\0"),
        "{path} has more data after its array of shape (4, 3, 2)",
    ),
    "npz without x": (
        write_npz(a=BYTES, b=BYTES),
        "{path} must hold one array of rows, or x, or x_train and x_test; it has a, b: name the "
        "one to read by --array",
    ),
    "NaN": (
        write_npy(spoil((3, 1, np.nan), (9, 0, np.nan))),
        "{path} must be finite: 2 of 40 rows are not, the first is row 3, "
        "feature 1; --drop-missing leaves out rows with a NaN",
    ),
    "infinite": (
        write_npy(spoil((5, 0, -np.inf))),
        "{path} must be finite: 1 of 40 rows are not, the first is row 5, feature 0",
    ),
    "too large for float32": (
        write_npy(spoil((7, 2, 1e300))),
        "{path} must be finite: 1 of 40 rows are not, the first is row 7, feature 2",
    ),
    "complex numbers": (
        write_npy(FLOATS.astype(np.complex64)),
        "{path} must be numbers, got complex64",
    ),
    "words": (write_npy(np.full((40, 3), "a")), "{path} must be numbers, got <U1"),
    "integers that float32 would round": (
        write_npy(np.array([[-5], [2**24 + 1]])),
        "{path}: feature 0 must be whole numbers from -16777216 to 16777216, which float32 holds "
        "exactly; got up to 16777217: use a larger unit, subtract an offset",
    ),
    "an integer below": (
        write_npy(np.array([[-(2**63)], [1]])),
        "{path}: feature 0 must be whole numbers from -16777216 to 16777216, which float32 holds "
        "exactly; got up to 9.22337203685478e+18: use a larger unit, subtract an offset",
    ),
    "npy cut off": (
        lambda folder: write("x.npy", write_npy(BYTES)(folder).read_bytes()[:-1])(folder),
        "{path} is cut off: shape (40, 3, 2) needs 240 bytes of values, got 239",
    ),
    "more after an array": (
        lambda folder: write("x.npy", write_npy(BYTES)(folder).read_bytes() * 2)(folder),
        "{path} has more data after its array of shape (40, 3, 2)",
    ),
    "objects": (
        write_npy(np.array([{"a": 1}], object)),
        "{path} holds Python objects, which are never unpickled: save numbers",
    ),
    "no rows": (
        write_npy(FLOATS[:0]),
        "{path} must be rows of features, at least one of each; got (0, 3)",
    ),
    "no features": (
        write_npy(FLOATS[:, :0]),
        "{path} must be rows of features, at least one of each; got (40, 0)",
    ),
    "one-dimensional": (
        write_npy(FLOATS[0]),
        "{path} must be rows of features, at least one of each; got (3,)",
    ),
    "one row": (write_npy(FLOATS[:1]), "{path} has 1 rows, too few to split"),
    "nothing left for validation": (
        write_npz(x_train=FLOATS[:1], x_test=FLOATS),
        "{path} has 1 rows, too few to split",
    ),
    "test rows of another shape": (
        write_npz(x_train=BYTES, x_test=BYTES.reshape(40, 2, 3)),
        "{path}: test rows are uint8 (2, 3), training rows uint8 (3, 2)",
    ),
    "test rows of another shape in a folder": (
        write_folder(IMAGES, idx_bytes(BYTES.reshape(40, 2, 3))),
        "{path}: test rows are uint8 (2, 3), training rows uint8 (3, 2)",
    ),
    "test rows of another dtype": (
        write_npz(x_train=FLOATS, x_test=FLOATS.astype(np.uint8)),
        "{path}: test rows are uint8 (3,), training rows float32 (3,)",
    ),
    "validation rows of another shape": (
        write_npz(x_train=BYTES, x_val=BYTES.reshape(40, 2, 3)),
        "{path}: validation rows are uint8 (2, 3), training rows uint8 (3, 2)",
    ),
    "NaN in the validation rows": (
        write_npz(x_train=FLOATS, x_val=spoil((2, 0, np.nan))),
        "{path} (validation) must be finite: 1 of 40 rows are not, the first is row 2, "
        "feature 0; --drop-missing leaves out rows with a NaN",
    ),
    "one image": (
        write("x.jpg", b"\xff\xd8\xff"),
        "{path} is a single image: give a folder of them",
    ),
    "HDF5": (
        write("x.h5", b"\x89HDF\r\n\x1a\n"),
        "{path} is not read: it is an HDF5 file; open it by h5py and save the array by "
        "numpy.save; a table by pandas.read_hdf and to_parquet",
    ),
    "text": (
        write("x.txt", b"1;2\n3;4\n"),
        f"{{path}} is none of the files that are read, {READ_FORMATS}: it starts with '1;2'; the "
        "name of a CSV file must end in .csv or .tsv",
    ),
    "fewer labels than rows": (
        write_npz(x_train=FLOATS, x_test=FLOATS, y_test=np.arange(39)),
        "{path} has 39 labels for 40 rows",
    ),
    "NaN in the test rows": (
        write_npz(x_train=FLOATS, x_test=spoil((0, 0, np.nan))),
        "{path} (test) must be finite: 1 of 40 rows are not, the first is row 0, "
        "feature 0; --drop-missing leaves out rows with a NaN",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refuses_and_says_why(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    path = make(tmp_path)
    with pytest.raises(DataRefused) as caught:
        load(path)
    assert str(caught.value) == message.format(path=path)
    assert caught.value.exit_code == 3


UNREADABLE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "truncated gz": (write("x.gz", gzip.compress(IMAGES)[:-9]), "ended before the end"),
    "damaged gz": (write("x.gz", gzip.compress(IMAGES)[:-8] + bytes(8)), "CRC check failed"),
    "npz cut off": (
        lambda folder: write("x.npz", write_npz(x=BYTES)(folder).read_bytes()[:-30])(folder),
        "not a zip file",
    ),
}
"""What a library says of a file; the words are its own."""


@pytest.mark.parametrize(("make", "said"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_refuses_what_a_library_cannot_read(
    tmp_path: Path, make: Callable[[Path], Path], said: str
) -> None:
    path = make(tmp_path)
    with pytest.raises(DataRefused) as caught:
        load(path)
    assert str(caught.value).startswith(f"cannot read {path}: ")
    assert said in str(caught.value)
    assert caught.value.exit_code == 3
