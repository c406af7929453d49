import gzip
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image
from pyarrow import ipc, parquet

from serving.errors import DataRefused, UsageRefused
from serving.io.column_choice import RowLayout
from serving.io.columns import read_x
from serving.io.rows import Rows

Array = NDArray[Any]

ROWS = 230
X = np.random.default_rng(0).integers(0, 256, (ROWS, 2, 3), dtype=np.uint8)
LAYOUT = RowLayout((2, 3), np.dtype("u1"), unit_range=False)


def table(start: int = 0, stop: int = ROWS) -> pa.Table:
    x = pa.array([row.tobytes() for row in X[start:stop]], pa.binary(6))
    return pa.table({"x": x, "id": np.arange(start, stop), "label": np.arange(start, stop) % 10})


def write_parquet(path: Path) -> None:
    parquet.write_table(table(), path, row_group_size=70)


def write_ipc_file(path: Path) -> None:
    with ipc.new_file(path, table().schema) as writer:
        writer.write_table(table(), max_chunksize=70)


def write_ipc_stream(path: Path) -> None:
    with ipc.new_stream(path, table().schema) as writer:
        writer.write_table(table(), max_chunksize=70)


def write_npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, X)


def write_npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, y=X[:1], x=X)


def idx(x: Array = X, code: int = 8, dtype: str = ">u1") -> bytes:
    return struct.pack(f">HBB{x.ndim}I", 0, code, x.ndim, *x.shape) + x.astype(dtype).tobytes()


FORMATS: dict[str, Callable[[Path], object]] = {
    "parquet": write_parquet,
    "ipc file": write_ipc_file,
    "ipc stream": write_ipc_stream,
    "npy": write_npy,
    "npz": write_npz,
    "idx": lambda path: path.write_bytes(idx()),
    "idx of int32": lambda path: path.write_bytes(idx(code=0x0C, dtype=">i4")),
    "idx.gz": lambda path: path.write_bytes(gzip.compress(idx())),
}


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS.keys())
@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, ROWS), (0, 1), (69, 71), (140, ROWS), (ROWS - 1, ROWS)],
    ids=["all", "first", "over a group's end", "from a group's start", "last"],
)
def test_any_range_of_any_format_is_read(
    tmp_path: Path, write: Callable[[Path], object], start: int, stop: int
) -> None:
    """The format shows in the first bytes, not in the name."""
    write(tmp_path / "data")
    rows = Rows(str(tmp_path / "data"))
    assert (rows.total, rows.ids) == (ROWS, ("file", "row"))
    batches = list(rows.read(start, stop, ["x"], 32))
    assert max(batch.num_rows for batch in batches) <= 32
    x = np.concatenate([read_x(batch, ["x"], LAYOUT)[0] for batch in batches])
    np.testing.assert_array_equal(x, X[start:stop])
    ids = [row for batch in batches for row in batch.select(["file", "row"]).to_pylist()]
    assert ids == [{"file": "data", "row": row} for row in range(start, stop)]


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (2, 3), (3, 5)], ids=str)
def test_any_range_of_a_csv_is_read(tmp_path: Path, start: int, stop: int) -> None:
    lines = [f"{i},{i / 8},{'low' if i < 3 else 'high'}" for i in range(5)]
    (tmp_path / "x.csv").write_text("\n".join(["a,b,kind", *lines]))
    rows = Rows(str(tmp_path / "x.csv"), ["kind"])
    assert rows.total == 5
    (batch,) = rows.read(start, stop, ["b", "a"], 100)
    x, codes = read_x(batch, ["b", "a"], RowLayout((2,), np.dtype("f4"), unit_range=False))
    assert x.tolist() == [[i / 8, i] for i in range(start, stop)]
    assert codes.tolist() == [0] * (stop - start)
    kinds = batch.column("kind").to_pylist()
    assert kinds == ["low", "low", "low", "high", "high"][start:stop]


def test_numbers_of_a_csv_are_floats_however_they_begin(tmp_path: Path) -> None:
    """The types are those of the first megabyte, where `a` is whole and `b` is empty."""
    (tmp_path / "x.CSV").write_text("id,a,b\n" + "007,1,\n" * 200_000 + "8,1.5,2\n")
    rows = Rows(str(tmp_path / "x.CSV"), ["id"])
    last = list(rows.read(199_999, 200_001, ["a", "b"], 100))
    found = [row for batch in last for row in batch.to_pylist()]
    assert found == [{"a": 1.0, "b": None, "id": "007"}, {"a": 1.5, "b": 2.0, "id": "8"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n3,4\n", "the first line of .* must name the columns, got 1, 2"),
        ("a,b,a\n1,2,3\n", "columns of the same name: a"),
    ],
    ids=["no header", "twice"],
)
def test_a_csv_without_names_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataRefused, match=message):
        Rows(str(tmp_path / "x.csv"))


def test_a_value_of_another_type_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n" + "1,2\n" * 400_000 + "1,x\n")
    with pytest.raises(DataRefused, match=r"cannot read .*x\.csv: column 'b': invalid value 'x'"):
        Rows(str(tmp_path / "x.csv"))


def test_a_folder_of_pictures_is_a_row_each_by_name(tmp_path: Path) -> None:
    for index, x in enumerate(X[:3]):
        Image.fromarray(x).save(tmp_path / f"{2 - index}.png")
    Image.fromarray(X[3]).save(tmp_path / "3.jpg", format="JPEG")
    rows = Rows(str(tmp_path))
    batches = list(rows.read(0, 4, ["x"], 100))
    found = [read_x(batch, ["x"], LAYOUT)[0] for batch in batches]
    with Image.open(tmp_path / "3.jpg") as lossy:
        expected = [X[2], X[1], X[0], np.asarray(lossy)]
    np.testing.assert_array_equal(np.concatenate(found), np.stack(expected))
    names = [row["file"] for batch in batches for row in batch.select(["file"]).to_pylist()]
    assert names == ["0.png", "1.png", "2.png", "3.jpg"]
    (second,) = rows.read(1, 2, ["x"], 100)
    np.testing.assert_array_equal(read_x(second, ["x"], LAYOUT)[0], X[1:2])


def test_ids_are_passed_through_in_place_of_file_and_row(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet")
    rows = Rows(str(tmp_path / "x.parquet"), ["id", "label"])
    (batch,) = rows.read(3, 5, ["x"], 100)
    assert batch.select(rows.ids).to_pylist() == [{"id": 3, "label": 3}, {"id": 4, "label": 4}]
    assert batch.schema.names == ["x", "id", "label"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files of one table, and what is no data."""
    (tmp_path / "in" / "b").mkdir(parents=True)
    (tmp_path / "in" / "_temporary").mkdir()
    parquet.write_table(table(0, 100), tmp_path / "in" / "a.parquet")
    parquet.write_table(table(100, 100), tmp_path / "in" / "b" / "empty.parquet")
    parquet.write_table(table(100, 150), tmp_path / "in" / "b" / "x.parquet")
    parquet.write_table(table(150, ROWS), tmp_path / "in" / "c.parquet")
    for name in ("_SUCCESS", ".hidden", "_temporary/part.parquet"):
        (tmp_path / "in" / name).write_text("not data")
    return tmp_path / "in"


def test_a_folder_is_its_files_by_name(folder: Path) -> None:
    rows = Rows(str(folder))
    assert [file.name for file in rows.files] == [
        "a.parquet",
        "b/empty.parquet",
        "b/x.parquet",
        "c.parquet",
    ]
    got = [row for batch in rows.read(98, 152, ["id"], 64) for row in batch.to_pylist()]
    assert [row["id"] for row in got] == list(range(98, 152))
    assert [(row["file"], row["row"]) for row in (got[0], got[2], got[-1])] == [
        ("a.parquet", 98),
        ("b/x.parquet", 0),
        ("c.parquet", 1),
    ]


@pytest.mark.full_environment
def test_a_file_system_of_fsspec_is_read() -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    file = io.BytesIO()
    parquet.write_table(table(), file)
    memory.pipe("/in/x.parquet", file.getvalue())
    rows = Rows("memory://in/x.parquet", ["id"])
    assert [b.column("id")[0].as_py() for b in rows.read(100, 102, ["x"], 1)] == [100, 101]


def test_the_filter_sees_columns_file_and_row(folder: Path) -> None:
    rows = Rows(str(folder), row_filter="label == 3 and file != 'a.parquet' and row < 30")
    batches = [rows.keep(batch) for batch in rows.read(0, ROWS, ["x", "id"], 64)]
    ids = [row for batch in batches for row in batch.column("id").to_pylist()]
    assert ids == [103, 113, 123, 153, 163, 173]


def test_a_row_group_does_not_come_whole_into_memory(tmp_path: Path) -> None:
    """Of 80 MB in one group, each value different so that nothing packs it."""
    values = np.random.default_rng(0).integers(0, 256, (10_000, 8_000), dtype=np.uint8)
    x = pa.FixedSizeBinaryArray.from_buffers(pa.binary(8_000), 10_000, [None, pa.py_buffer(values)])
    parquet.write_table(pa.table({"x": x}), tmp_path / "x.parquet", use_dictionary=False)
    rows = Rows(str(tmp_path / "x.parquet"))
    pool = pa.default_memory_pool()
    before, most = pool.bytes_allocated(), 0
    for batch in rows.read(0, rows.total, ["x"], 100):
        most = max(most, pool.bytes_allocated() - before)
        del batch
    assert 0 < most < 16e6


def cut(write: Callable[[Path], object]) -> Callable[[Path], object]:
    def write_half(path: Path) -> None:
        write(path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])

    return write_half


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS.keys())
def test_a_file_that_is_cut_off_is_refused_by_name(
    tmp_path: Path, write: Callable[[Path], object]
) -> None:
    cut(write)(tmp_path / "x")
    with pytest.raises(DataRefused) as caught:
        list(Rows(str(tmp_path / "x")).read(0, ROWS, ["x"], 32))
    assert str(tmp_path / "x") in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def save(x: Array) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, x, allow_pickle=True)

    return write


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty folder": (lambda path: path.mkdir(), "no files in {path}"),
    "text": (
        lambda path: path.write_text("1,2\n"),
        "{path} is none of the files that are read, Parquet, ",
    ),
    "no rows": (save(X[:0]), "{path} must hold at least one row, it has none"),
    "one number": (save(np.array(1)), "{path} must hold at least one row, got ()"),
    "objects": (save(np.array([None])), "{path} must hold numbers, got object"),
    "complex": (save(np.zeros(3, complex)), "{path} must hold numbers, got complex128"),
    "magic only": (lambda path: path.write_bytes(b"PAR1" * 3), "cannot read {path}: "),
}


@pytest.mark.parametrize("name", ["x.csv", "x.parquet", "x.npz"])
def test_an_empty_file_is_named_so(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(DataRefused) as caught:
        Rows(str(tmp_path / name))
    assert str(caught.value) == f"{tmp_path / name} is empty"


@pytest.mark.parametrize(("write", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_read_is_refused(
    tmp_path: Path, write: Callable[[Path], object], message: str
) -> None:
    write(tmp_path / "x")
    with pytest.raises(DataRefused) as caught:
        Rows(str(tmp_path / "x"))
    assert str(caught.value).startswith(message.format(path=tmp_path / "x"))


def spoil_checksum(content: bytes) -> bytes:
    """The CRC of gzip is the eighth byte from the end and on."""
    return content[:-8] + bytes(byte ^ 1 for byte in content[-8:-4]) + content[-4:]


@pytest.mark.parametrize(
    "content",
    [spoil_checksum(gzip.compress(idx())), gzip.compress(idx())[:-9], idx() + b"more"],
    ids=["other checksum", "no checksum", "more than its rows"],
)
def test_an_end_that_is_not_right_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    rows = Rows(str(tmp_path / "x"))
    with pytest.raises(DataRefused, match=str(tmp_path / "x")):
        list(rows.read(0, ROWS, ["x"], 32))


def test_two_arrays_without_a_clear_choice_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=X, b=X)
    with pytest.raises(DataRefused, match="it has a, b: name the one to read by --array"):
        Rows(str(tmp_path / "x.npz"))


def test_a_column_that_a_later_file_lacks_is_named(folder: Path) -> None:
    parquet.write_table(table().drop_columns(["id"]), folder / "d.parquet")
    rows = Rows(str(folder), ["id"])
    with pytest.raises(DataRefused, match=r"d\.parquet has no column 'id'"):
        list(rows.read(0, rows.total, ["x"], 100))


def test_names_of_default_ids_that_are_taken_are_refused(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"row": [1], "x": [2]}), tmp_path / "x.parquet")
    with pytest.raises(UsageRefused, match="has a column 'row' of its own: name the columns"):
        Rows(str(tmp_path / "x.parquet"))
    assert Rows(str(tmp_path / "x.parquet"), ["row"]).ids == ("row",)
