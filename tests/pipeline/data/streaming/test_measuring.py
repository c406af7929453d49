"""What decoded rows take in memory, against arrays of them."""

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image
from pyarrow import csv, feather, ipc, parquet

from pipeline.data.dataset import load_dataset
from pipeline.data.streaming.measuring import measure_source
from serving.errors import UsageRefused
from tests.pipeline.data.streaming.sources import (
    BYTES,
    FLOATS,
    TABLES,
    save_images,
    write_arrow,
    write_parquet,
    write_parquet_parts,
    write_stream,
)

Array = NDArray[Any]

NUMBERS = [name for name in TABLES if name not in ("words", "bytes of two ranges")]


@pytest.mark.parametrize("name", NUMBERS)
def test_the_footers_of_parquet_tell_the_bytes_of_all_values(tmp_path: Path, name: str) -> None:
    path = write_parquet_parts(TABLES[name], tmp_path)
    data = load_dataset(str(path), valid_fraction=0.1, test_fraction=0.1)
    assert measure_source(str(path)) == sum(x.nbytes for x in data.rows)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_arrow_files_tell_the_bytes_of_all_values(
    tmp_path: Path, name: str, compression: Literal["uncompressed", "lz4", "zstd"]
) -> None:
    path = str(tmp_path / "x.arrow")
    feather.write_feather(TABLES[name], path, compression=compression, chunksize=13)
    data = load_dataset(path, valid_fraction=0.1, test_fraction=0.1)
    assert measure_source(path) == sum(x.nbytes for x in data.rows)


def test_a_compressed_arrow_file_of_equal_values_is_not_taken_for_small(tmp_path: Path) -> None:
    table = pa.table({"a": np.zeros(100_000, np.float32), "w": ["a word"] * 100_000})
    for compression in ("lz4", "zstd"):
        options = ipc.IpcWriteOptions(compression=compression)
        for new in (ipc.new_file, ipc.new_stream):
            with new(tmp_path / "x.arrow", table.schema, options=options) as writer:
                writer.write_table(table, max_chunksize=10_000)
            wanted = (4 + 14) * 100_000
            assert (tmp_path / "x.arrow").stat().st_size < wanted / 3
            assert measure_source(str(tmp_path / "x.arrow")) == pytest.approx(wanted, rel=0.01)


def to_png(image: Array) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["bytes", "struct", "gaps"])
@pytest.mark.parametrize("colours", [(), (3,)])
@pytest.mark.parametrize("write", [write_parquet, write_parquet_parts, write_arrow, write_stream])
def test_images_in_a_column_tell_the_bytes_of_their_pixels(
    tmp_path: Path, kind: str, colours: tuple[int, ...], write: Callable[[pa.Table, Path], Path]
) -> None:
    """They are of one colour, and so take 1% of it as files."""
    content: list[Any] = [to_png(np.zeros((64, 64, *colours), np.uint8))] * 60
    if kind == "struct":
        content = [{"bytes": each, "path": "a long name.png"} for each in content]
    elif kind == "gaps":
        content[:2] = [None, None]
    path = write(pa.table({"image": content}), tmp_path)
    assert measure_source(str(path)) == 60 * 64 * 64 * math.prod(colours)


@pytest.mark.parametrize("write", [write_parquet, write_arrow, write_stream])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_text_takes_its_cells_and_a_number_for_each(
    tmp_path: Path, kind: pa.DataType, write: Callable[[pa.Table, Path], Path]
) -> None:
    """Text that repeats is small in files, and as large as any other in memory."""
    words = pa.array(["a word of no great length"] * 60, kind)
    table = pa.table({"word": words, "a": FLOATS[:, 0]})
    found = measure_source(str(write(table, tmp_path)))
    words = words.cast(pa.string())
    assert found == pytest.approx(words.nbytes + 60 * 4 + 60 * 4, rel=0.15)


def test_text_of_a_dictionary_takes_its_numbers(tmp_path: Path) -> None:
    words = pa.array(["a word"] * 60).dictionary_encode()
    assert measure_source(str(write_arrow(pa.table({"w": words}), tmp_path))) == 60 * (4 + 4)


def test_bytes_that_are_no_image_take_their_length(tmp_path: Path) -> None:
    path = write_parquet(pa.table({"x": [b"abcdef"] * 60}), tmp_path)
    assert measure_source(str(path)) == 60 * (6 + 4 + 4)


def test_an_empty_part_counts_nothing(tmp_path: Path) -> None:
    table = pa.table({"w": pa.array([], pa.string()), "x": pa.array([], pa.binary())})
    parquet.write_table(table, tmp_path / "0.parquet")
    assert measure_source(str(tmp_path)) == 0


def test_only_columns_that_are_chosen_count(tmp_path: Path) -> None:
    path = write_parquet(TABLES["columns of floats"], tmp_path)
    assert measure_source(str(path), ["a", "c"]) == 2 * 60 * 4


def test_arrays_tell_their_bytes_and_those_of_a_copy(tmp_path: Path) -> None:
    for x, copied in ((BYTES, 0), (FLOATS, 0), (FLOATS.astype(np.float64), 4 * FLOATS.size)):
        np.save(tmp_path / "x.npy", x)
        assert measure_source(str(tmp_path / "x.npy")) == x.nbytes + copied
    np.savez_compressed(tmp_path / "x.npz", train=BYTES, test=BYTES[:9], other=FLOATS)
    assert measure_source(str(tmp_path / "x.npz")) == BYTES.nbytes + BYTES[:9].nbytes
    assert measure_source(str(tmp_path / "x.npz"), array="other") == FLOATS.nbytes
    assert measure_source("mnist") == 70_000 * 784


def test_a_folder_of_images_tells_the_bytes_of_all(tmp_path: Path) -> None:
    assert measure_source(str(save_images(tmp_path / "in", BYTES))) == BYTES.nbytes


def test_a_csv_file_is_estimated_from_its_size(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    csv.write_csv(TABLES["columns of floats"], path)
    assert FLOATS.nbytes < measure_source(str(path)) < 10 * FLOATS.nbytes


def test_what_cannot_be_read_is_left_to_the_reader(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and nothing more")
    assert measure_source(str(tmp_path / "x.parquet")) == 0
    with pytest.raises(UsageRefused, match="no data at"):
        measure_source(str(tmp_path / "y"))
