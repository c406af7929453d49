"""A mixed table at every door that reads files: the same rows, whatever the file and its order."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from pyarrow import dataset, feather

from pipeline.cli.data_loading import rows_to_evaluate
from pipeline.cli.main import cli
from pipeline.data.dataset import load_dataset
from pipeline.evaluation.evaluate import evaluate
from pipeline.export.bundle_export import export_bundle
from pipeline.export.row_centres import find_centres
from serving.bundle import Bundle
from serving.engine import Engine
from serving.errors import DataRefused, UsageRefused
from serving.table_cells import TableEncoder
from tests.trained_models import Trained, tiny_config, train_checkpoint

Array = NDArray[Any]


def draw(rows: int, seed: int) -> pd.DataFrame:
    draws = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "city": draws.choice(["Bonn", "Köln", "Ulm"], rows),
            "visits": draws.poisson(2, rows),
            "paid": draws.random(rows) < 0.5,
            "amount": draws.lognormal(3, 1.5, rows),
            "size": draws.normal(170, 10, rows).round(2),
            "opened": pd.Timestamp("2020-01-01")
            + pd.to_timedelta(draws.integers(0, 900, rows) * 86_400 + 60, unit="s"),
            "code": draws.choice([10, 20, 40], rows),
        }
    )
    gaps = draws.random(frame.shape) < 0.1
    gaps[:, -1] = False
    return frame.mask(gaps)


NEW = draw(60, seed=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    path = tmp_path_factory.mktemp("mixed") / "x.parquet"
    draw(300, seed=0).to_parquet(path)
    settings: dict[str, Any] = {"valid_fraction": 0.1, "test_fraction": 0.25}
    found = load_dataset(str(path), likelihood="auto", **settings)
    config = tiny_config(found, likelihood="mixed", epochs=2)
    return train_checkpoint(found, config), found


@pytest.fixture(scope="module")
def bundle(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    checkpoint, data = trained
    metrics = evaluate(checkpoint.model, data.test.x, nll_samples=4, seed=0)
    out = tmp_path_factory.mktemp("bundle") / "bundle"
    assert data.schema is not None
    distance = find_centres(data.schema, data.sample)
    return export_bundle(out, checkpoint, metrics.to_json(), data.test.x, distance=distance)


def score(path: Path, bundle: Bundle, *options: str) -> tuple[Result, Path]:
    out = path.parent / f"scores of {path.name}"
    model = ("--model", str(bundle.path), "--num-samples", "1")
    arguments = ["score", str(path), str(out), *model, *options]
    return CliRunner().invoke(cli, arguments), out


def elbo(folder: Path) -> bytes:
    values: bytes = dataset.dataset(folder).to_table().column("elbo").to_numpy().tobytes()
    return values


def encode(bundle: Bundle, frame: pd.DataFrame) -> Array:
    schema = bundle.manifest.schema
    assert schema is not None
    arrays = {name: frame[name].to_numpy(object) for name in schema.sources}
    return TableEncoder(schema).encode_arrays(arrays).x


def test_the_manifest_keeps_the_schema(trained: Trained, bundle: Bundle) -> None:
    assert bundle.manifest.schema == trained[1].schema
    assert bundle.manifest.x_shape == (len(bundle.manifest.columns),)


WAYS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "Parquet": ("x.parquet", NEW.to_parquet),
    "Arrow": ("x.arrow", lambda path: feather.write_feather(pa.Table.from_pandas(NEW), path)),
    "CSV": ("x.csv", lambda path: NEW.to_csv(path, index=False)),
    "semicolons and decimal commas": (
        "x.csv",
        lambda path: NEW.to_csv(path, index=False, sep=";", decimal=","),
    ),
    "another order": ("x.csv", lambda path: NEW[NEW.columns[::-1]].to_csv(path)),
    "more columns": ("x.parquet", NEW.assign(more="text", x=1.0).to_parquet),
    "nullable types": ("x.parquet", NEW.convert_dtypes().to_parquet),
    "dictionaries": ("x.parquet", NEW.astype({"city": "category"}).to_parquet),
    "a time zone": (
        "x.parquet",
        NEW.assign(
            opened=NEW["opened"].dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo")
        ).to_parquet,
    ),
}


@pytest.mark.parametrize(("name", "write"), WAYS.values(), ids=WAYS.keys())
def test_every_file_gives_the_same_scores(
    trained: Trained, bundle: Bundle, tmp_path: Path, name: str, write: Callable[[Path], object]
) -> None:
    write(tmp_path / name)
    x = encode(bundle, NEW)
    result, out = score(tmp_path / name, bundle)
    assert result.exit_code == 0, result.output
    assert elbo(out) == Engine(bundle).score(x, 1, 0)["elbo"].tobytes()
    assert "warning" not in result.stderr
    assert rows_to_evaluate(trained[0], str(tmp_path / name)).x.tobytes() == x.tobytes()


def test_one_file_of_other_words_and_gaps_is_scored_and_said(
    bundle: Bundle, tmp_path: Path
) -> None:
    frame = NEW.assign(city=NEW["city"].astype(object))
    frame.loc[:3, "city"] = ["Rom", "Rom", "Oslo", "Bonn"]
    frame["code"] = frame["code"].astype("Int64")
    frame.loc[5:6, "code"] = pd.NA
    frame.to_csv(tmp_path / "x.csv", index=False)
    result, out = score(tmp_path / "x.csv", bundle)
    assert result.exit_code == 0, result.output
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert warnings == [
        "warning: words not seen in training count as other: city in 3 rows",
        "warning: gaps in columns that had none in training: code in 2 rows",
    ]
    x = encode(bundle, frame)
    assert elbo(out) == Engine(bundle).score(x, 1, 0)["elbo"].tobytes()


def test_rows_that_cannot_be_used_name_the_column(bundle: Bundle, tmp_path: Path) -> None:
    frame = NEW.copy()
    frame.loc[7, "visits"] = -1
    frame.loc[9, "size"] = np.inf
    frame.to_parquet(tmp_path / "x.parquet")
    result, out = score(tmp_path / "x.parquet", bundle, "--on-error", "quarantine")
    assert result.exit_code == 0, result.output
    bad = dataset.dataset(out / "_quarantine").to_table().to_pylist()
    assert [(row["row"], row["reason"]) for row in bad] == [
        (7, "column 'visits' is negative"),
        (9, "column 'size' is not finite in float32"),
    ]
    kept = encode(bundle, NEW.drop(index=[7, 9]))
    assert len(elbo(out)) == Engine(bundle).score(kept, 1, 0)["elbo"].nbytes
    result, _ = score(tmp_path / "x.parquet", bundle, "--overwrite")
    assert isinstance(result.exception, DataRefused)
    assert "row 7: column 'visits' is negative" in str(result.exception)


def test_what_cannot_be_in_a_positive_column_is_scored_below_all_else(
    bundle: Bundle, tmp_path: Path
) -> None:
    """Not set aside: it is what people look for."""
    frame = pd.concat([NEW.iloc[:1]] * 4, ignore_index=True)
    middle, least = NEW["amount"].median(), NEW["amount"].min()
    frame["amount"] = [middle, least, -1.0, -1e9]
    frame.to_parquet(tmp_path / "x.parquet")
    result, out = score(tmp_path / "x.parquet", bundle, "--per-column")
    assert result.exit_code == 0, result.output
    found = dataset.dataset(out).to_table()
    usual, rare, *impossible = found["log_likelihood"].to_pylist()
    assert usual > rare > max(impossible)
    schema = bundle.manifest.schema
    assert schema is not None
    place = [column.name for column in schema.columns].index("amount")
    cells = [row[place] for row in found["column_log_likelihood"].to_pylist()]
    assert max(cells[2:]) < cells[1] - 2


def test_a_file_that_lacks_a_column_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    NEW.drop(columns="visits").to_csv(tmp_path / "x.csv", index=False)
    result, _ = score(tmp_path / "x.csv", bundle)
    assert isinstance(result.exception, UsageRefused)
    assert "the input has no column 'visits', which the model learned from" in str(result.exception)
