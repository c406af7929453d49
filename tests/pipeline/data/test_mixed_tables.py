"""Tables of text, counts, dates and gaps as data: what is found, and the rows that come of it."""

import datetime as dt
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pyarrow import feather

from pipeline.data.dataset import Dataset, load_dataset, load_rows
from pipeline.data.row_checks import check_encoded
from pipeline.data.schema_file import read_schema, write_schema
from pipeline.data.schema_search import find_schema
from serving.errors import DataRefused, UsageRefused
from serving.schema import Column, Schema
from serving.table_cells import TableEncoder

Array = NDArray[Any]

ROWS = 400
RNG = np.random.default_rng(0)
COMPLETE = pd.DataFrame(
    {
        "id": np.arange(ROWS),
        "city": RNG.choice(["Bonn", "Köln", "Ulm"], ROWS, p=[0.6, 0.395, 0.005]),
        "visits": RNG.poisson(1.5, ROWS),
        "paid": RNG.random(ROWS) < 0.4,
        "amount": RNG.lognormal(3, 1.5, ROWS).round(2),
        "size": RNG.normal(170, 10, ROWS).round(1),
        "opened": [dt.date(1965, 1, 1) + dt.timedelta(days=int(day)) for day in range(ROWS)],
        "class": RNG.choice(["x", "y"], ROWS),
    }
)
COLUMNS = (
    *("city", "visits", "paid", "amount", "size", "opened", "opened.weekday", "opened.month"),
)


def with_gaps(frame: pd.DataFrame) -> pd.DataFrame:
    gaps = np.random.default_rng(1).random(frame.shape) < 0.1
    gaps[:, [0, -1]] = False
    return frame.mask(gaps)


FRAME = with_gaps(COMPLETE)
TABLE = pa.Table.from_pandas(FRAME, preserve_index=False)


def save(path: Path, frame: pd.DataFrame = FRAME) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".arrow":
        feather.write_feather(pa.Table.from_pandas(frame, preserve_index=False), path)
    else:
        frame.to_parquet(path, index=False)
    return path


def load(path: Path, **settings: Any) -> Dataset:
    chosen = {"valid_fraction": 0.1, "test_fraction": 0.2, "likelihood": "auto", **settings}
    return load_dataset(str(path), **chosen)


def rows_of(dataset: Dataset) -> Array:
    """Return all rows, in an order of their own."""
    x = np.concatenate(dataset.rows)
    return x[np.lexsort(np.nan_to_num(x, nan=-1).T)]


def test_a_mixed_table_becomes_one_array_with_nan_for_gaps(tmp_path: Path) -> None:
    dataset = load(save(tmp_path / "x.parquet"), label="class")
    assert dataset.columns == COLUMNS
    assert dataset.schema is not None
    assert [column.kind for column in dataset.schema.columns] == [
        *("category", "count", "binary", "positive", "real", "real", "category", "category"),
    ]
    assert dataset.schema.ignored == {"id": "an id: whole numbers that are all different"}
    assert dataset.train.x.dtype == np.float32
    x = np.concatenate(dataset.rows)
    gaps = FRAME[["city", "visits", "paid", "amount", "size", "opened"]].isna().mean()
    np.testing.assert_allclose(np.isnan(x[:, :6]).mean(0), gaps, atol=1e-12)
    missing = [column.missing for column in dataset.schema.columns[:6]]
    np.testing.assert_allclose(missing, gaps, atol=1e-12)


def test_each_cell_is_what_the_schema_makes_of_it(tmp_path: Path) -> None:
    dataset = load(save(tmp_path / "x.parquet"), label="class", test_fraction=0.5)
    assert dataset.schema is not None
    arrays = {name: FRAME[name].to_numpy(object) for name in dataset.schema.sources}
    expected = TableEncoder(dataset.schema).encode_arrays(arrays).x
    expected = expected[np.lexsort(np.nan_to_num(expected, nan=-1).T)]
    assert rows_of(dataset).tobytes() == expected.tobytes()
    city = dataset.schema.columns[0]
    assert city.words == ("Bonn", "Köln", "Ulm")


@pytest.mark.parametrize("name", ["x.csv", "x.arrow"])
@pytest.mark.parametrize("frame", [FRAME, COMPLETE], ids=["gaps", "complete"])
def test_every_format_gives_the_same_schema_and_digests(
    tmp_path: Path, name: str, frame: pd.DataFrame
) -> None:
    first = load(save(tmp_path / "x.parquet", frame), label="class")
    other = load(save(tmp_path / name, frame), label="class")
    assert other.schema == first.schema
    assert other.digests() == first.digests()


def test_nullable_types_of_pandas_give_the_same_digests(tmp_path: Path) -> None:
    first = load(save(tmp_path / "x.parquet"), label="class")
    other = load(save(tmp_path / "y.parquet", FRAME.convert_dtypes()), label="class")
    assert other.digests() == first.digests()


def test_the_manifest_has_the_schema(tmp_path: Path) -> None:
    dataset = load(save(tmp_path / "x.parquet"), label="class")
    content = json.loads(json.dumps(dataset.describe(), allow_nan=False))
    assert Schema.from_json(content["schema"]) == dataset.schema
    assert content["range"][1] == np.nanmax(np.concatenate(dataset.rows))


def test_what_was_found_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(save(tmp_path / "x.parquet"), label="class")
    lines = capsys.readouterr().err.splitlines()
    assert "6 of 7 columns are learned, as 8 columns of x" in lines[0]
    assert lines[1].split() == ["column", "is", "values", "gaps", "because"]
    assert "an id: whole numbers that are all different" in lines[2]
    assert lines[3].split()[:5] == ["city", "category", "Bonn,", "Köln,", "Ulm"]


PLAIN = {
    "numbers": pd.DataFrame(RNG.normal(size=(50, 3)), columns=[*"abc"]),
    "a constant": pd.DataFrame({"a": RNG.normal(size=50), "b": 1.0}),
    "from 0 to 1": pd.DataFrame(RNG.random((50, 3)), columns=[*"abc"]),
    "bits": pd.DataFrame(RNG.integers(0, 2, (50, 3)), columns=[*"abc"]),
    "bytes": pd.DataFrame(RNG.integers(0, 256, (50, 9), np.uint8)).rename(columns=str),
}


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize("name", [name for name in PLAIN if name != "bytes"])
def test_a_table_of_plain_numbers_is_read_as_before(
    tmp_path: Path, name: str, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / f"x.{suffix}", PLAIN[name])
    before = load(path, likelihood="")
    said = capsys.readouterr().err
    now = load(path)
    assert now.schema is None
    assert now.describe() == before.describe()
    assert capsys.readouterr().err == said


def test_bytes_of_one_range_stay_bytes(tmp_path: Path) -> None:
    path = save(tmp_path / "x.parquet", PLAIN["bytes"])
    assert load(path).schema is None
    assert load(path).train.x.dtype == np.uint8
    own = PLAIN["bytes"].assign(**{str(index): RNG.integers(0, 9, 50, np.uint8) for index in "234"})
    assert load(save(tmp_path / "y.parquet", own)).schema is not None


def test_likelihood_mixed_always_has_a_schema(tmp_path: Path) -> None:
    dataset = load(save(tmp_path / "x.parquet", PLAIN["numbers"]), likelihood="mixed")
    assert dataset.schema is not None
    assert {column.kind for column in dataset.schema.columns} == {"real"}
    plain = load(tmp_path / "x.parquet")
    assert dataset.digests() == plain.digests()


@pytest.mark.parametrize("likelihood", ["", "gaussian"])
def test_another_likelihood_takes_numbers_alone(tmp_path: Path, likelihood: str) -> None:
    path = save(tmp_path / "x.parquet")
    with pytest.raises(DataRefused, match=r"columns that are not numbers: city"):
        load(path, likelihood=likelihood)
    columns = ("visits", "size")
    with pytest.raises(DataRefused, match=r"missing values, visits: \d+ missing"):
        load(path, likelihood=likelihood, columns=columns)
    assert (
        load(save(tmp_path / "y.parquet", COMPLETE), columns=columns, likelihood="").schema is None
    )


def test_rows_with_gaps_are_left_out_if_asked(tmp_path: Path) -> None:
    path = save(tmp_path / "x.parquet")
    numbers = load(path, columns=("visits", "size"), drop_missing=True)
    assert numbers.schema is None
    assert sum(map(len, numbers.rows)) == len(FRAME[["visits", "size"]].dropna())
    mixed = load(path, label="class", drop_missing=True)
    assert mixed.schema is not None
    complete = FRAME.dropna()
    assert sum(map(len, mixed.rows)) == len(complete)
    assert mixed.test.labels is not None
    assert {*mixed.test.labels.tolist()} == {"x", "y"}


def test_labels_go_with_their_rows(tmp_path: Path) -> None:
    frame = FRAME.assign(**{"class": FRAME["city"].astype(object).fillna("none")})
    dataset = load(save(tmp_path / "x.parquet", frame), label="class")
    assert dataset.test.labels is not None
    codes = {"Bonn": 0.0, "Köln": 1.0, "Ulm": 2.0, "none": np.nan}
    expected = [codes[label] for label in dataset.test.labels]
    np.testing.assert_array_equal(dataset.test.x[:, 0], expected)


@pytest.mark.parametrize("name", ["x.parquet", "x.csv"])
def test_an_infinite_value_is_refused_with_its_column_and_row(tmp_path: Path, name: str) -> None:
    frame = FRAME.copy()
    frame.loc[17, "size"] = np.inf
    with pytest.raises(DataRefused, match=r"column 'size' is not finite .* in row 17; 1 of 400"):
        load(save(tmp_path / name, frame), label="class")


def test_heavy_tails_are_not_refused(tmp_path: Path) -> None:
    frame = FRAME.copy()
    frame.loc[3, "size"] = 1e12
    x = np.concatenate(load(save(tmp_path / "x.parquet", frame)).rows)
    assert np.nanmax(x[:, 4]) == np.float32(1e12)


def test_no_column_left_is_refused(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": np.arange(50), "one": ["a"] * 50})
    with pytest.raises(DataRefused, match="has no column to learn from"):
        load(save(tmp_path / "x.parquet", frame))


def test_sets_of_the_source_have_the_schema_of_its_training_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "train" / "x.parquet")
    other = FRAME[:50].assign(city="Rom", extra=1.0)[[*FRAME.columns[::-1], "extra"]]
    save(tmp_path / "test" / "x.parquet", other)
    dataset = load(tmp_path, label="class")
    assert dataset.columns == COLUMNS
    assert len(dataset.test.x) == 50
    assert (dataset.test.x[:, 0] == 3).all()
    assert "count as other: city in 50 rows" in capsys.readouterr().err


def test_files_of_a_folder_may_differ_in_the_types_of_numbers(tmp_path: Path) -> None:
    path = save(tmp_path / "one.parquet")
    save(tmp_path / "parts" / "a.parquet", FRAME[:100].astype({"size": "float32"}))
    half = FRAME[100:].copy()
    half["visits"] = half["visits"].astype("Int8")
    save(tmp_path / "parts" / "b.parquet", half)
    assert load(tmp_path / "parts", label="class").columns == load(path, label="class").columns
    save(tmp_path / "parts" / "c.parquet", FRAME[:9].assign(visits="many"))
    with pytest.raises(DataRefused, match="the files differ in a column's type"):
        load(tmp_path / "parts", label="class")


def test_numbers_below_an_empty_start_of_a_csv_file_are_numbers(tmp_path: Path) -> None:
    rows = 60_000
    late = np.full(rows, np.nan)
    late[-9_000:] = RNG.normal(size=9_000)
    frame = pd.DataFrame({"a": RNG.normal(size=rows), "late": late, "b": ["x", "y"] * (rows // 2)})
    frame["words"] = pd.Series(RNG.choice([*"pqr"], rows)).mask(np.isnan(late))
    dataset = load(save(tmp_path / "x.csv", frame))
    assert dataset.schema is not None
    found = {column.name: column.kind for column in dataset.schema.columns}
    assert found == {"a": "real", "late": "real", "b": "binary", "words": "category"}
    assert dataset.digests() == load(save(tmp_path / "x.parquet", frame)).digests()


def test_rows_to_evaluate_are_read_by_the_schema_of_the_model(tmp_path: Path) -> None:
    path = save(tmp_path / "x.parquet")
    dataset = load(path, label="class")
    known: dict[str, Any] = {
        "test_fraction": 0.2,
        "table_schema": dataset.schema,
        "columns": dataset.columns,
        "label": "class",
        "x_shape": dataset.x_shape,
        "x_dtype": "float32",
    }
    same = load_rows(str(path), dataset.test.sha256, **known)
    assert same.sha256 == dataset.test.sha256
    np.save(tmp_path / "x.npy", dataset.test.x)
    encoded = load_rows(str(tmp_path / "x.npy"), dataset.test.sha256, **known)
    assert encoded.sha256 == dataset.test.sha256
    with pytest.raises(UsageRefused, match="no column 'city'"):
        load_rows(str(save(tmp_path / "y.parquet", FRAME.drop(columns="city"))), "", **known)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[0, np.inf]], "column 'a' must be finite, got inf in row 0"),
        ([[0, 1], [3, 1]], "column 'w' must be a code from 0 to 2, got 3 in row 1"),
        ([[0.5, 1]], "column 'w' must be a code from 0 to 2, got 0.5"),
        ([[1.0]], r"must be rows of 2 numbers, as the model's schema makes them; got float64 \(1,"),
    ],
)
def test_encoded_rows_hold_codes_and_numbers(values: Any, message: str) -> None:
    words = Column(name="w", kind="category", type="text", words=("a", "b"))
    schema = Schema(columns=(words, Column(name="a", kind="real")))
    with pytest.raises(DataRefused, match=message):
        check_encoded("x.npy", np.array(values), schema)
    good = check_encoded("x.npy", np.array([[2, np.nan], [np.nan, -1.5]]), schema)
    np.testing.assert_array_equal(good, np.array([[2, np.nan], [np.nan, -1.5]], np.float32))


ODD = pa.table(
    {
        'a "b" \\ \n\t\x7f.c': pa.array(['x"\\', "\x00\x7f\n", "ü 🙂", "x"] * 25),
        "count": np.random.default_rng(0).poisson(3, 100),
        "id": np.arange(100),
        "on": pa.array([dt.date(2020, 1, 1 + index % 20) for index in range(100)]),
        "yes": [True, False] * 50,
    }
)


def test_a_schema_file_reads_back_as_what_it_was_written_from(tmp_path: Path) -> None:
    found = find_schema(ODD)
    path = tmp_path / "schema.toml"
    path.write_text(write_schema("odd", found.columns), encoding="utf-8")
    settings = read_schema(path, ODD.schema.names)
    assert list(settings) == ODD.schema.names
    assert find_schema(ODD, settings).schema == found.schema


def test_a_schema_file_settles_what_the_columns_are(tmp_path: Path) -> None:
    path = tmp_path / "schema.toml"
    path.write_text(
        '[columns.id]\nkind = "real"\n'
        '[columns.visits]\nkind = "category"\nwords = [0, "1", 2]\n'
        '[columns.size]\nkind = "ignored"\nreason = "not ours"\n'
        '[columns.class]\nkind = "binary"\n'
    )
    dataset = load(save(tmp_path / "x.parquet"), label="class", schema=str(path))
    assert dataset.schema is not None
    assert dataset.schema.ignored == {"size": "not ours"}
    found = {column.name: column for column in dataset.schema.columns}
    assert (found["id"].kind, found["city"].kind) == ("real", "category")
    assert found["visits"].words == ("0", "1", "2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[columns", "cannot read .*schema.toml as TOML"),
        ("[rows]", "no such key 'rows'; allowed is columns"),
        ("columns = 1", "columns must be a table for each column, got 1"),
        ('[columns.no]\nkind = "real"', "the table has no column 'no'; it has id, city"),
        ("[columns]\ncity = 1", "columns.city must be a table with a kind, got 1"),
        ('[columns.city]\ntype = "real"', "no such key 'type'; allowed are kind, words, reason"),
        ("[columns.city]", "columns.city.kind must be one of real, positive, count, .*, got None"),
        ('[columns.city]\nkind = "text"', "kind must be one of real, .*ignored, got 'text'"),
        ('[columns.city]\nkind = "category"\nwords = "a"', "words must be a list of strings or"),
        ('[columns.city]\nkind = "date"\nwords = ["a"]', "words are those of a binary or a cat"),
        ('[columns.city]\nkind = "category"\nwords = ["a", "a"]', "words must differ"),
        ('[columns.city]\nkind = "category"\nwords = [""]', "none may be empty"),
        ('[columns.city]\nkind = "binary"\nwords = ["a"]', "words of a binary are two, got 1"),
        ('[columns.city]\nkind = "ignored"\nreason = 1', "reason must be a string, got 1"),
    ],
)
def test_a_faulty_schema_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "schema.toml"
    path.write_text(content)
    with pytest.raises(UsageRefused, match=message):
        load(save(tmp_path / "x.parquet"), schema=str(path))


def test_a_schema_needs_a_table_and_a_likelihood_for_it(tmp_path: Path) -> None:
    (tmp_path / "schema.toml").write_text('[columns.city]\nkind = "real"')
    chosen = {"schema": str(tmp_path / "schema.toml")}
    path = save(tmp_path / "x.parquet")
    with pytest.raises(
        UsageRefused, match="--schema needs the likelihood mixed or auto, got 'gaus"
    ):
        load(path, likelihood="gaussian", **chosen)
    with pytest.raises(DataRefused, match=r"x\.parquet: column 'city' cannot be real: it is text"):
        load(path, **chosen)
    with pytest.raises(UsageRefused, match="no file"):
        load(path, schema=str(tmp_path / "no.toml"))
    np.save(tmp_path / "x.npy", np.zeros((9, 2), np.float32))
    with pytest.raises(UsageRefused, match="--schema is about the columns of a table"):
        load(tmp_path / "x.npy", **chosen)
