"""What decoded rows take in memory, against arrays of them."""

from pathlib import Path

import numpy as np
import pytest
from pyarrow import csv

from pipeline.data.dataset import load_dataset
from pipeline.data.streaming.measuring import measure_source
from serving.errors import UsageRefused
from tests.pipeline.data.streaming.sources import (
    BYTES,
    FLOATS,
    TABLES,
    save_images,
    write_parquet,
    write_parquet_parts,
)

NUMBERS = [name for name in TABLES if name not in ("words", "bytes of two ranges")]


@pytest.mark.parametrize("name", NUMBERS)
def test_the_footers_of_parquet_tell_the_bytes_of_all_values(tmp_path: Path, name: str) -> None:
    path = write_parquet_parts(TABLES[name], tmp_path)
    data = load_dataset(str(path), valid_fraction=0.1, test_fraction=0.1)
    assert measure_source(str(path)) == sum(x.nbytes for x in data.rows)


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
