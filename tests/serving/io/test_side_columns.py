"""Columns that describe rows are no features: indexes, columns without a name, keys of folders."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from serving.errors import UsageRefused
from serving.io.column_choice import RowLayout, choose_columns
from serving.io.rows import Rows
from serving.io.side_columns import (
    describe_side_columns,
    find_side_columns,
    partition_fields,
    partition_keys,
)

LAYOUT = RowLayout((2,), np.dtype(np.float32), unit_range=False)


def test_the_index_of_pandas_is_no_feature() -> None:
    schema = pa.schema([("a", pa.float64()), ("b", pa.float64()), ("key", pa.int64())])
    described = schema.with_metadata({"pandas": '{"index_columns": ["key"], "columns": []}'})
    assert find_side_columns(described) == {"key": "the index of pandas"}
    assert choose_columns(described, (), (), LAYOUT) == ("a", "b")
    assert choose_columns(described, ("a", "key"), (), LAYOUT) == ("a", "key")
    with pytest.raises(UsageRefused, match="3 are numbers, but the model takes 2"):
        choose_columns(schema, (), (), LAYOUT)


@pytest.mark.parametrize("name", ["__index_level_0__", "__index_level_12__", "Unnamed: 0", ""])
def test_nameless_columns_are_known_by_what_stands_for_a_name(name: str) -> None:
    schema = pa.schema([(name, pa.int64()), ("a", pa.float64()), ("index", pa.int64())])
    assert list(find_side_columns(schema)) == [name]


def test_what_is_left_out_is_said_in_one_short_line() -> None:
    found = {f"Unnamed: {n}": "a column without a name" for n in range(100)}
    said = describe_side_columns(found)
    assert said.startswith("not used as features: 'Unnamed: 0', a column without a name; ")
    assert said.endswith(" and 95 more")
    assert len(said) < 300
    assert describe_side_columns({}) == ""


def test_keys_and_values_stand_in_the_names_of_folders() -> None:
    found = partition_keys("year=2026/city=K%C3%B6ln%2FS%C3%BCd/none=__HIVE_DEFAULT_PARTITION__/p")
    assert found == {"year": "2026", "city": "Köln/Süd", "none": None}
    assert partition_keys("a/b=c.parquet") == partition_keys("=a/b") == {}


def test_a_key_is_a_number_only_if_all_its_values_are() -> None:
    files: list[dict[str, str | None]] = [
        {"n": "1", "t": "1", "some": "1"},
        {"n": "-22", "t": "x"},
        {"n": None, "t": "2"},
    ]
    fields = partition_fields(files)
    assert [(field.name, str(field.type)) for field in fields] == [("n", "int64"), ("t", "string")]


def test_keys_of_folders_are_columns_of_the_rows(tmp_path: Path) -> None:
    for split, start in (("a", 0), ("b", 10)):
        for day in (1, 2):
            folder = tmp_path / f"split={split}" / f"day={day}"
            folder.mkdir(parents=True)
            table = pa.table({"x": np.arange(3.0) + start + 100 * day})
            if day == 1:
                parquet.write_table(table, folder / "part-0.parquet")
            else:
                csv.write_csv(table, folder / "part-0.csv")
    rows = Rows(str(tmp_path), ["split", "day"], "split == 'b' and day == 2")
    assert dict(find_side_columns(rows.schema)) == dict.fromkeys(
        ("split", "day"), "a key of folders"
    )
    kept = [rows.keep(batch) for batch in rows.read(0, rows.total, ["x"], 100)]
    found = pa.Table.from_batches([batch for batch in kept if batch.num_rows]).to_pydict()
    assert found == {"x": [210, 211, 212], "split": ["b"] * 3, "day": [2] * 3}


def test_a_column_of_the_files_goes_before_a_key_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "x=7").mkdir()
    parquet.write_table(pa.table({"x": [1.5]}), tmp_path / "x=7" / "p.parquet")
    rows = Rows(str(tmp_path), ["x"])
    (batch,) = rows.read(0, 1, ["x"], 10)
    assert batch.to_pydict() == {"x": [1.5]}
