import bz2
import gzip
import io
import os
import resource
import struct
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pyarrow import parquet

from serving.errors import DataRefused, UsageRefused, VaeError
from serving.io.array_files import (
    read_array,
    read_array_names,
    read_array_type,
    write_array,
    write_table,
)

Array = NDArray[Any]

ROWS = np.arange(5 * 3 * 2, dtype=np.float32).reshape(5, 3, 2) * 8
IDX_CODES = {
    "uint8": (0x08, ">u1"),
    "int8": (0x09, ">i1"),
    "int16": (0x0B, ">i2"),
    "int32": (0x0C, ">i4"),
    "float32": (0x0D, ">f4"),
    "float64": (0x0E, ">f8"),
}


def idx_bytes(x: Array, code: int, dtype: str) -> bytes:
    header = struct.pack(f">HBB{x.ndim}I", 0, code, x.ndim, *x.shape)
    return header + x.astype(dtype).tobytes()


@pytest.mark.parametrize("name", ["x.npy", "X.npy"], ids=["relative", "other name"])
def test_reads_an_npy(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save(name, ROWS)
    np.testing.assert_array_equal(read_array(Path(name)), ROWS, strict=True)


def test_reads_an_npy_in_fortran_order(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.asfortranarray(ROWS))
    np.testing.assert_array_equal(read_array(tmp_path / "x.npy"), ROWS, strict=True)


def test_reads_the_x_or_the_one_array_of_an_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", y=ROWS[:1], x=ROWS)
    np.savez_compressed(tmp_path / "one.npz", rows=ROWS)
    np.testing.assert_array_equal(read_array(tmp_path / "x.npz"), ROWS, strict=True)
    np.testing.assert_array_equal(read_array(tmp_path / "one.npz"), ROWS, strict=True)


def test_refuses_an_npz_without_a_clear_choice(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=ROWS, b=ROWS)
    with pytest.raises(DataRefused) as caught:
        read_array(tmp_path / "x.npz")
    assert str(caught.value) == (
        f"{tmp_path / 'x.npz'} must hold one array of rows, or x, or x_train and x_test; it has "
        "a, b: name the one to read by --array"
    )


def test_reads_every_array_of_an_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=ROWS, b=ROWS[:1])
    assert read_array_names(tmp_path / "x.npz") == ["a", "b"]
    np.testing.assert_array_equal(read_array(tmp_path / "x.npz", "a"), ROWS, strict=True)
    np.testing.assert_array_equal(read_array(tmp_path / "x.npz", "b"), ROWS[:1], strict=True)


@pytest.mark.parametrize("name", IDX_CODES)
def test_reads_idx_of_every_type_into_native_order(tmp_path: Path, name: str) -> None:
    code, dtype = IDX_CODES[name]
    x = (ROWS / 2).astype(name)
    (tmp_path / "plain").write_bytes(idx_bytes(x, code, dtype))
    (tmp_path / "zipped.gz").write_bytes(gzip.compress(idx_bytes(x, code, dtype)))
    for file in ("plain", "zipped.gz"):
        read = read_array(tmp_path / file)
        np.testing.assert_array_equal(read, x, strict=True)
        assert read.dtype.isnative


def test_knows_a_zipped_idx_by_its_bytes_and_not_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "t10k").write_bytes(gzip.compress(idx_bytes(ROWS, *IDX_CODES["uint8"])))
    np.testing.assert_array_equal(read_array(tmp_path / "t10k"), ROWS.astype(np.uint8))


def npy_bytes(x: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, x)
    return stream.getvalue()


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress], ids=["plain", "gz", "bz2"])
@pytest.mark.parametrize("name", ["X.NPY", "x.npy.gz", "x.npz", "x"])
def test_the_bytes_of_a_file_tell_its_format(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    (tmp_path / name).write_bytes(pack(npy_bytes(ROWS)))
    read = read_array(tmp_path / name)
    np.testing.assert_array_equal(read, ROWS, strict=True)
    assert read.flags.writeable


def test_an_npz_is_read_under_any_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=ROWS)
    (tmp_path / "x.npz").rename(tmp_path / "X.NPZ")
    np.testing.assert_array_equal(read_array(tmp_path / "X.NPZ"), ROWS, strict=True)


def test_an_object_array_beside_the_rows_is_not_touched(tmp_path: Path) -> None:
    names = np.array(["a", {"b": 1}], object)
    np.savez(tmp_path / "x.npz", x=ROWS, names=names, allow_pickle=True)
    np.testing.assert_array_equal(read_array(tmp_path / "x.npz"), ROWS, strict=True)
    dtype, shape = read_array_type(tmp_path / "x.npz", "names")
    assert (dtype.hasobject, shape) == (True, (2,))
    with pytest.raises(DataRefused, match="holds Python objects, which are never unpickled"):
        read_array(tmp_path / "x.npz", "names")


def test_a_name_of_an_array_is_of_an_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", ROWS)
    with pytest.raises(UsageRefused, match=r"--array chooses from an \.npz file, and .*x\.npy is"):
        read_array(tmp_path / "x.npy", "x")
    assert read_array_names(tmp_path / "x.npy") is None


def zeros_beyond(header: bytes) -> bytes:
    """Return a gzip file of a few bytes' header and 300 MB of zeros."""
    packer = zlib.compressobj(9, wbits=31)
    content = packer.compress(header)
    content += b"".join(packer.compress(bytes(1 << 20)) for _ in range(300))
    return content + packer.flush()


@pytest.mark.parametrize("kind", ["npy.gz", "idx.gz", "npz"])
def test_a_bomb_is_refused_in_little_memory(tmp_path: Path, kind: str) -> None:
    header = idx_bytes(ROWS, *IDX_CODES["uint8"]) if kind == "idx.gz" else npy_bytes(ROWS)
    path = tmp_path / f"x.{kind}"
    if kind == "npz":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", header + bytes(300 << 20))
    else:
        path.write_bytes(zeros_beyond(header))
    tracemalloc.start()
    try:
        with pytest.raises(DataRefused, match="has more data after its array of shape"):
            read_array(path)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_values_that_no_memory_holds_are_refused_unread(tmp_path: Path) -> None:
    stream = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (10**15, 28)}
    np.lib.format.write_array_header_1_0(stream, header)
    (tmp_path / "x.npy.gz").write_bytes(zeros_beyond(stream.getvalue()))
    with pytest.raises(DataRefused, match=r"x\.npy\.gz needs 28,000,000\.0 GB of memory, and"):
        read_array(tmp_path / "x.npy.gz")


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x", "x.gz"])
def test_a_missing_file_is_refused_by_its_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageRefused) as caught:
        read_array(tmp_path / name)
    assert str(caught.value) == f"no file {tmp_path / name}"


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x", "x.gz"])
@pytest.mark.parametrize(
    "content",
    [
        b"\0\0",
        b"\0\0\x08\x03\0",
        b"\x89PNG\r\n\x1a\n" + bytes(64),
        b"\x1f\x8b",
        b"\x93NUMPY",
        b"PK\x03\x04",
    ],
    ids=["two bytes", "cut header", "picture", "gz magic", "npy magic", "zip magic"],
)
def test_garbage_is_refused_whatever_its_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataRefused) as caught:
        read_array(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x", "x.gz"])
def test_an_empty_file_is_named_so(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataRefused) as caught:
        read_array(tmp_path / name)
    assert str(caught.value) == f"{tmp_path / name} is empty"


def test_an_npy_with_a_broken_header_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", ROWS)
    content = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(content.replace(b"(5, 3, 2)", b"(5, 3, 2 "))
    with pytest.raises(DataRefused, match=r"cannot read .*x\.npy: "):
        read_array(tmp_path / "x.npy")


def test_an_npy_that_claims_more_than_memory_is_refused(tmp_path: Path) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (2**58, 4)}
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(DataRefused, match=r"x\.npy needs 4,611,686,018\.4 GB of memory, and "):
        read_array(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("offset", "value"), [(8, 1), (10, 99)], ids=["encrypted", "unknown compression"]
)
def test_an_npz_that_cannot_be_unpacked_is_refused(tmp_path: Path, offset: int, value: int) -> None:
    """One field of the entry in zip's central directory is changed."""
    np.savez(tmp_path / "x.npz", x=ROWS)
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[content.index(b"PK\x01\x02") + offset] = value
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DataRefused, match=r"cannot read .*x\.npz: "):
        read_array(tmp_path / "x.npz")


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x"])
def test_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(DataRefused, match="is a folder: give a file"):
        read_array(tmp_path / name)


def test_writes_npy(tmp_path: Path) -> None:
    write_array(tmp_path / "x.npy", ROWS)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), ROWS, strict=True)


def test_writes_rows_of_data_as_a_column_of_lists(tmp_path: Path) -> None:
    write_array(tmp_path / "x.parquet", ROWS)
    table = parquet.read_table(tmp_path / "x.parquet")
    assert table.column_names == ["x_loc"]
    assert str(table.schema.field("x_loc").type) == "fixed_size_list<element: float>[6]"
    assert table["x_loc"].to_pylist() == ROWS.reshape(5, 6).tolist()


def test_writes_columns_as_parquet(tmp_path: Path) -> None:
    columns = {
        "row": np.arange(3),
        "elbo": np.array([-1.5, np.inf, 0.25], np.float32),
        "z_loc": np.array([[1, 2], [3, 4], [5, 6]], np.float32)[:, ::-1],
        "version": ["7", "7", "7"],
        "model": [None, None, None],
    }
    write_table(tmp_path / "x.parquet", columns)
    table = parquet.read_table(tmp_path / "x.parquet")
    assert table.to_pydict() == {
        "row": [0, 1, 2],
        "elbo": [-1.5, np.inf, 0.25],
        "z_loc": [[2, 1], [4, 3], [6, 5]],
        "version": ["7", "7", "7"],
        "model": [None, None, None],
    }
    assert [str(table.schema.field(name).type) for name in ("row", "elbo")] == ["int64", "float"]


@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        ("x.parquet", "pyarrow", "tables need pyarrow: pip install 'vae-pipeline[files]'"),
        ("x.png", "PIL", "images need pillow: pip install 'vae-pipeline[files]'"),
    ],
    ids=["pyarrow", "pillow"],
)
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageRefused) as caught:
        write_array(tmp_path / name, ROWS)
    assert str(caught.value) == message
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 4 kB, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("name", ["x.npy", "x.parquet", "x.png"])
def test_a_full_disk_is_named_with_the_target(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).uniform(0, 255, (400, 8, 8))
    with pytest.raises(VaeError, match=r"File too large$") as caught:
        write_array(tmp_path / name, noise)
    assert str(caught.value).startswith(f"cannot write {tmp_path / name}: ")
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_a_new_file_has_the_rights_that_the_user_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_array(tmp_path / "x.npy", ROWS)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert (tmp_path / "x.npy").stat().st_mode & 0o777 == 0o640
