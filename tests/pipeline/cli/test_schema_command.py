"""`vae schema`: the table that it prints, and the file that `vae train` takes."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from pipeline.cli.config_options import chosen
from pipeline.cli.data_loading import load_data
from pipeline.cli.main import cli
from pipeline.config import configure

RNG = np.random.default_rng(0)
FRAME = pd.DataFrame(
    {
        "id": np.arange(100),
        "city name": RNG.choice(["Bonn", "Köln"], 100),
        "visits": RNG.poisson(2, 100),
        "size": np.where(RNG.random(100) < 0.1, np.nan, RNG.normal(size=100)),
        "class": RNG.choice([*"xyz"], 100),
    }
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    FRAME.to_csv(tmp_path / "x.csv", index=False)
    return tmp_path / "x.csv"


def schema(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["schema", *map(str, arguments)])


def test_the_columns_are_shown_with_the_reasons(table: Path) -> None:
    result = schema(table, "--label", "class")
    lines = result.stderr.splitlines()
    gaps = FRAME["size"].isna().mean()
    assert lines[0] == f"{table}: 3 of 4 columns are learned"
    assert [line.split()[:3] for line in lines[1:]] == [
        ["column", "is", "values"],
        ["id", "ignored", "0"],
        ["city", "name", "binary"],
        ["visits", "count", "0"],
        ["size", "real", lines[5].split()[2]],
    ]
    assert f"{gaps:.1%}" in lines[5]
    line = json.loads(result.stdout)
    assert line["kinds"] == {"ignored": 1, "binary": 1, "count": 1, "real": 1}


def test_its_file_changes_what_is_learned(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "schema.toml"
    assert schema(table, "--out", out).exit_code == 0
    content = tomllib.loads(out.read_text(encoding="utf-8"))["columns"]
    assert list(content) == list(FRAME.columns)
    assert content["city name"] == {"kind": "binary", "words": ["Bonn", "Köln"]}
    out.write_text(out.read_text(encoding="utf-8").replace('"count"', '"real"'), encoding="utf-8")
    settings = chosen({"data": str(table), "label": "class", "schema": str(out)})
    dataset = load_data(configure(**settings))
    assert dataset.schema is not None
    assert [column.kind for column in dataset.schema.columns] == ["binary", "real", "real"]
    shown = schema(table, "--schema", out).stderr
    assert "set" in next(line for line in shown.splitlines() if "visits" in line).split()


def test_the_path_of_a_schema_holds_anywhere(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("schema.toml").touch()
    assert chosen({"schema": "schema.toml"}) == {"schema": str(tmp_path / "schema.toml")}


def test_plain_numbers_need_no_schema(tmp_path: Path) -> None:
    pd.DataFrame(RNG.normal(size=(50, 2)), columns=["a", "b"]).to_parquet(tmp_path / "x.parquet")
    assert "without a schema" in schema(tmp_path / "x.parquet").stderr


def test_the_training_folder_of_a_split_table_is_shown(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        FRAME.to_parquet(tmp_path / split / "x.parquet")
    assert "4 of 5 columns are learned" in schema(tmp_path).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mnist"], "only a table has columns, and mnist is not one"),
        (["{table}", "--out", "schema.json"], "--out must end in .toml"),
        (["{table}", "--columns", "no"], "has no column 'no'"),
        (["no.csv"], "no data at 'no.csv'"),
    ],
)
def test_refusals(table: Path, arguments: list[str], message: str) -> None:
    result = schema(*(argument.format(table=table) for argument in arguments))
    assert isinstance(result.exception, Exception)
    assert message in str(result.exception)


def test_a_column_of_whole_rows_has_no_schema(tmp_path: Path) -> None:
    pd.DataFrame({"x": [[1.0, 2.0]] * 9}).to_parquet(tmp_path / "x.parquet")
    assert "holds whole rows in one column, 'x'" in str(schema(tmp_path / "x.parquet").exception)


def test_a_long_table_is_cut_before_a_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.DataFrame(RNG.poisson(3, (100, 40))).rename(columns=str)
    frame.to_parquet(tmp_path / "x.parquet")
    load_data(configure(data=str(tmp_path / "x.parquet")))
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2:] == [
        "  … and 10 more",
        "to change what they are: vae schema DATA --out FILE, then --schema FILE",
    ]
    assert len(lines) == 35
