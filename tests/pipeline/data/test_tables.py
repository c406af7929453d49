"""Tables as data: what Parquet, Arrow and CSV hold comes out as it went in, or is refused."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image
from pyarrow import feather, parquet

from pipeline.cli.data_loading import load_data
from pipeline.config import configure
from pipeline.data.dataset import load_dataset
from pipeline.data.labelled_rows import LabelledRows
from pipeline.data.readers import read_source
from pipeline.data.selection import Selection
from serving.errors import DataRefused, UsageRefused, VaeError

Array = NDArray[Any]

BYTES = np.random.default_rng(0).integers(0, 256, (6, 2, 3), dtype=np.uint8)
FLOATS = np.random.default_rng(1).normal(size=(6, 2, 3)).astype(np.float32)
NUMBERS: Mapping[str, Any] = {
    "a": pa.array([1, 2, 3, 4, 5, 6], pa.int64()),
    "b": pa.array([0.5, -1.5, 2.25, 3.0, 4.0, 5.0], pa.float64()),
    "flag": pa.array([True, False] * 3),
}
KIND = pa.array(["x", "y", "x", "z", "x", "y"])


def write(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path, row_group_size=2)
    return path


def read(path: Path, *columns: str, label: str = "") -> LabelledRows:
    rest, test, _ = read_source(str(path), Selection(columns=columns, label=label))
    assert test is None
    return rest


def png(pixels: Array) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def test_columns_of_numbers_are_the_features_in_their_order(tmp_path: Path) -> None:
    part = read(write(tmp_path / "x.parquet", **NUMBERS))
    expected = np.stack([column.to_numpy(zero_copy_only=False) for column in NUMBERS.values()], 1)
    np.testing.assert_array_equal(part.x, expected.astype(np.float32), strict=True)
    assert part.labels is None


def test_an_arrow_file_is_read_as_parquet_is(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", **NUMBERS)
    feather.write_feather(pa.table(NUMBERS), tmp_path / "x.arrow", compression="uncompressed")
    np.testing.assert_array_equal(read(tmp_path / "x.arrow").x, read(path).x, strict=True)


def test_named_columns_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", **NUMBERS, kind=KIND)
    part = read(path, "b", "a", label="kind")
    np.testing.assert_array_equal(
        part.x, np.stack([NUMBERS["b"], NUMBERS["a"]], 1).astype(np.float32), strict=True
    )
    np.testing.assert_array_equal(part.labels, KIND.to_numpy(zero_copy_only=False).astype(str))


@pytest.mark.parametrize(
    ("column", "labels"),
    [
        (KIND, ["x", "y", "x", "z", "x", "y"]),
        (KIND.dictionary_encode(), ["x", "y", "x", "z", "x", "y"]),
        (pa.array([3, 1, 2, 2, 1, 3], pa.int8()), [3, 1, 2, 2, 1, 3]),
        (pa.array([3, None, 2, 2, 1, 3]), ["3", "missing", "2", "2", "1", "3"]),
        (pa.array([True, False] * 3), ["True", "False"] * 3),
    ],
    ids=["text", "dictionary", "integers", "a missing one", "booleans"],
)
def test_labels_are_integers_or_text(tmp_path: Path, column: pa.Array, labels: list[Any]) -> None:
    part = read(write(tmp_path / "x.parquet", a=NUMBERS["a"], kind=column), label="kind")
    np.testing.assert_array_equal(part.labels, np.array(labels), strict=True)
    assert part.x.shape == (6, 1)


def test_labels_go_with_their_rows_into_the_test_split(tmp_path: Path) -> None:
    rows = np.arange(100)
    path = write(tmp_path / "x.parquet", a=rows, file=rows, row=rows, kind=rows.astype(str))
    dataset = load_dataset(str(path), valid_fraction=0.1, test_fraction=0.2, label="kind")
    np.testing.assert_array_equal(dataset.test.labels, dataset.test.x[:, 0].astype(int).astype(str))
    assert len(dataset.test.x) == 20


@pytest.mark.parametrize("x", [BYTES, FLOATS], ids=["bytes", "floats"])
@pytest.mark.parametrize("kind", ["columns", "lists", "sized lists", "nested lists", "sized nests"])
def test_every_layout_of_a_row_gives_the_same_numbers(tmp_path: Path, x: Array, kind: str) -> None:
    number = pa.from_numpy_dtype(x.dtype)
    flat, nested = x.reshape(6, 6), kind.endswith(("nests", "nested lists"))
    sizes = (2, 3) if nested else (6,)
    if kind == "columns":
        table = {f"x{index}": flat[:, index] for index in range(6)}
    else:
        of = number
        for size in reversed(sizes):
            of = pa.list_(of, size) if "sized" in kind else pa.list_(of)
        table = {"x": pa.array((x if nested else flat).tolist(), of)}
    part = read(write(tmp_path / "x.parquet", **table))
    np.testing.assert_array_equal(part.x, x if nested else flat, strict=True)


@pytest.mark.parametrize("colours", [(), (3,)], ids=["gray", "colour"])
def test_a_column_of_images_gives_their_pixels(tmp_path: Path, colours: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 5, *colours), dtype=np.uint8)
    images = [{"bytes": png(image), "path": None} for image in pixels]
    path = write(tmp_path / "x.parquet", image=images, digit=NUMBERS["a"])
    np.testing.assert_array_equal(read(path, label="digit").x, pixels, strict=True)


def test_files_of_a_folder_follow_their_names(tmp_path: Path) -> None:
    for name, rows in (("b.parquet", 2), ("a.parquet", 3), ("c/a.parquet", 1)):
        write(tmp_path / name, x=np.full(rows, rows, np.uint8))
    (tmp_path / "_SUCCESS").touch()
    np.testing.assert_array_equal(
        read(tmp_path).x[:, 0], np.array([3, 3, 3, 2, 2, 1], np.uint8), strict=True
    )


def test_one_file_of_wider_numbers_makes_floats_of_all(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", x=np.array([1, 2], np.uint8))
    write(tmp_path / "b.parquet", x=np.array([300, -4]))
    np.testing.assert_array_equal(
        read(tmp_path).x[:, 0], np.array([1, 2, 300, -4], np.float32), strict=True
    )


def test_the_test_folder_is_read_by_the_names_of_the_training_columns(tmp_path: Path) -> None:
    for half, order in (("train", "ab"), ("test", "ba")):
        (tmp_path / half).mkdir()
        values = {"a": [1.5, 2.5, 3.5], "b": [10.0, 20.0, 30.0]}
        table = pa.table({name: values[name] for name in order})
        parquet.write_table(table, tmp_path / half / "x.parquet")
    dataset = load_dataset(str(tmp_path), valid_fraction=0.4, test_fraction=0)
    assert dataset.columns == ("a", "b")
    assert dataset.describe()["columns"] == ["a", "b"]
    assert dataset.test.x.tolist() == [[1.5, 10], [2.5, 20], [3.5, 30]]


def test_folders_train_and_test_are_splits(tmp_path: Path) -> None:
    write(tmp_path / "train" / "x.parquet", a=NUMBERS["a"], kind=KIND)
    write(tmp_path / "test" / "x.parquet", a=NUMBERS["b"], kind=KIND)
    rest, test, _ = read_source(str(tmp_path), Selection(label="kind"))
    assert test is not None
    np.testing.assert_array_equal(rest.x[:, 0], NUMBERS["a"].to_numpy())
    np.testing.assert_array_equal(test.x[:, 0], NUMBERS["b"].to_numpy())
    assert test.labels is not None


def test_csv_gives_floats_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('a,"b, in m",class,code\n1,0.5,x,7\n-2,1e3,"y, z",8\n3,4.25,x,9\n')
    part = read(path, "a", "b, in m", label="class")
    np.testing.assert_array_equal(
        part.x, np.array([[1, 0.5], [-2, 1e3], [3, 4.25]], np.float32), strict=True
    )
    np.testing.assert_array_equal(part.labels, np.array(["x", "y, z", "x"]), strict=True)
    codes = read(path, "a", label="code").labels
    np.testing.assert_array_equal(codes, np.array([7, 8, 9]), strict=True)


def test_csv_that_looks_like_integers_at_first_is_read_to_its_end(tmp_path: Path) -> None:
    values = np.concatenate([np.arange(250_000), [0.5]])
    path = tmp_path / "x.csv"
    path.write_text("a\n" + "\n".join(f"{value:g}" for value in values) + "\n")
    assert path.stat().st_size > 1 << 20  # what is looked at first
    np.testing.assert_allclose(read(path).x[:, 0], values, rtol=1e-5)


def test_a_model_s_data_may_lie_elsewhere_in_another_format(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float64)
    path = write(tmp_path / "x.parquet", a=numbers[0], b=numbers[1], kind=["x"] * 50, n=range(50))
    config = configure(data=str(path), columns=("b", "a"), label="kind")
    found = load_data(config)
    known = SimpleNamespace(x_shape=found.x_shape, x_dtype="float32", data=found.describe())
    lines = [f"{b!r},{a!r},y" for a, b in numbers.T.tolist()]
    (tmp_path / "x.csv").write_text("\n".join(["b,a,kind", *lines]))
    assert load_data(config, known, str(tmp_path / "x.csv")).digests() == {
        name: split["sha256"] for name, split in known.data["splits"].items()
    }
    (tmp_path / "x.csv").write_text("\n".join(["a,b,kind", *lines]))
    with pytest.raises(DataRefused, match="is not the data that the model was trained with"):
        load_data(config, known, str(tmp_path / "x.csv"))


def table(**columns: Any) -> Callable[[Path], Path]:
    return lambda folder: write(folder / "x.parquet", **columns)


def text(content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "x.csv").write_text(content)
        return folder / "x.csv"

    return make


def two_files(folder: Path) -> Path:
    write(folder / "a.parquet", a=NUMBERS["a"], b=NUMBERS["b"])
    write(folder / "b.parquet", a=NUMBERS["a"])
    return folder


NULLS = pa.array([1.0, None, float("nan"), 4.0, 5.0, 6.0])
MEND = ": fill them in, leave such rows out by --drop-missing, or name other columns by --columns"
CHOOSE = "; name the columns to learn from by --columns, and a column of classes by --label"
COLUMNS = "a (int64), b (double), flag (bool)"
REFUSALS: dict[str, tuple[Callable[[Path], Path], Mapping[str, Any], str]] = {
    "missing": (
        table(a=NULLS, b=NUMBERS["b"], c=pa.array([1, None, 3, 4, 5, 6])),
        {},
        "{path} has missing values, a: 2 missing, c: 1 missing" + MEND,
    ),
    "missing in CSV": (
        text("a,b\n1,2\n,3\nNA,4\nnan,5\n6,\n"),
        {},
        "{path} has missing values, a: 3 missing, b: 1 missing" + MEND,
    ),
    "missing lists": (
        table(x=pa.array([[1, 2], None, [3, 4]])),
        {},
        "{path} has missing values, x: 1 missing" + MEND,
    ),
    "null in a list": (
        table(x=pa.array([[1, 2], [1, None], [3, 4]])),
        {},
        "{path} has missing values, x: 1 missing" + MEND,
    ),
    "lists of two lengths": (
        table(x=pa.array([[1, 2], [1], [3, 4, 5]])),
        {},
        "{path} cannot be used, x has the wrong size: 2 rows; the first is row 1",
    ),
    "empty lists": (
        table(x=pa.array([[], [1.0]], pa.list_(pa.float32()))),
        {},
        "{path}: x must hold at least one value per row, got (0,)",
    ),
    "nothing but nulls": (
        table(x=pa.array([None, None], pa.list_(pa.float32()))),
        {},
        "{path}: x is missing in the first 2 rows",
    ),
    "no image": (
        table(image=[b"text"]),
        {},
        "{path}: the first row of image cannot be read: it is not an image (PNG, "
        "JPEG, WebP, BMP, GIF, TIFF, PNM), or it is damaged",
    ),
    "infinite": (
        table(a=pa.array([1e300, 1.0]), b=pa.array([1.0, float("inf")])),
        {},
        "{path} cannot be used, x is not finite: 2 rows; the first is row 0, where 'a' is 1e+300",
    ),
    "text": (
        table(**NUMBERS, kind=KIND),
        {},
        "{path} has columns that are not numbers: kind (string)" + CHOOSE,
    ),
    "text in CSV": (
        text("a,kind\n1,x\n"),
        {},
        "{path} has columns that are not numbers: kind (string, such as 'x')" + CHOOSE,
    ),
    "lists beside numbers": (
        table(x=pa.array([[1, 2]]), digit=pa.array([1])),
        {},
        "{path} has columns that are not numbers: x (list<element: int64>)" + CHOOSE,
    ),
    "unknown column": (
        table(**NUMBERS),
        {"columns": ("a", "c")},
        "{path} has no column 'c'; it has " + COLUMNS,
    ),
    "unknown label": (
        table(**NUMBERS),
        {"label": "kind"},
        "{path} has no column 'kind'; it has " + COLUMNS,
    ),
    "label as a feature": (
        table(**NUMBERS),
        {"columns": ("a", "b"), "label": "b"},
        "column 'b' cannot be the label and a feature",
    ),
    "label alone": (
        table(a=NUMBERS["a"]),
        {"label": "a"},
        "{path} has no columns but the label 'a'",
    ),
    "a file without the column": (two_files, {}, "{path}/b.parquet has no column 'b'"),
    "numbers for a header": (
        text("1,2.5\n3,4\n"),
        {},
        "the first line of {path} must name the columns, got 1, 2.5: put a line of names above it",
    ),
    "two columns of a name": (
        text("a,b,a\n1,2,3\n"),
        {},
        "{path} has columns of the same name: a",
    ),
    "a header alone": (text("a,b\n"), {}, "{path} must hold at least one row, it has none"),
    "no row": (
        table(a=pa.array([], pa.int64())),
        {},
        "{path} must hold at least one row, it has none",
    ),
}


@pytest.mark.parametrize(("make", "settings", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refuses_and_says_why(
    tmp_path: Path, make: Callable[[Path], Path], settings: Mapping[str, Any], message: str
) -> None:
    path = make(tmp_path)
    with pytest.raises(VaeError) as caught:
        load_dataset(str(path), valid_fraction=0, test_fraction=0.1, **settings)
    assert str(caught.value) == message.format(path=path)
    assert type(caught.value) is (UsageRefused if settings else DataRefused)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", b"\n\n"),
        ("x.csv", b"a,b\n1\n"),
        ("x.csv", b"a\n" + b"1\n" * 600_000 + b"!\n"),
        ("x.parquet", b"PAR1"),
    ],
    ids=["empty", "short line", "text past the first megabyte", "cut off"],
)
def test_refuses_what_a_library_cannot_read(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataRefused, match=f"^cannot read {path}: "):
        read(path)
