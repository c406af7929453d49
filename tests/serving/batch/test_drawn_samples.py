"""`vae sample --draw`: rows themselves, the same in any batch, in a table's own types and words."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from pyarrow import csv, parquet

from serving.bundle import open_bundle
from serving.cli.sample import sample
from serving.engine import Engine
from serving.errors import UsageRefused
from serving.io.arrow_cells import decode_batch
from tests.mixed_rows import COLOURS, NAMES, draw_table
from tests.serving.batch.jobs import names, read
from tests.serving.conftest import SCHEMA_1, SEALED

MIXED = SEALED.parent / "mixed_bundle"
COUNT, SEED = 1000, 7


@pytest.fixture(scope="module")
def mixed() -> Engine:
    return Engine(open_bundle(MIXED))


def vae_sample(model: Path, out: Path, *arguments: object) -> Result:
    options = ("--out", out, "--count", COUNT, "--seed", SEED, "--model", model, *arguments)
    return CliRunner().invoke(sample, [*map(str, options)])


def expected_table(engine: Engine) -> pa.Table:
    schema = engine.bundle.manifest.schema
    assert schema is not None
    return pa.Table.from_batches([decode_batch(schema, engine.draw(COUNT, SEED))])


@pytest.mark.parametrize("path", [SEALED, MIXED], ids=["images", "mixed"])
def test_a_row_is_the_same_in_any_batch(path: Path) -> None:
    whole = Engine(open_bundle(path)).draw(COUNT, SEED)
    other = Engine(open_bundle(path), threads=2)
    starts = [0, 1, 3, 10, 77, 500, COUNT]
    parts = [other.draw(b - a, SEED, start=a) for a, b in pairwise(starts)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    assert np.isfinite(whole).all()


def test_pixels_are_black_or_white(engine: Engine) -> None:
    """Those of a Bernoulli, with the mean of the latent as their share of white ones."""
    x, x_loc = engine.draw(5000, SEED), engine.sample(5000, SEED)
    assert set(np.unique(x)) == {0, 255}
    deviation = np.sqrt((x_loc / 255 * (1 - x_loc / 255)).sum(0)) / 5000
    assert (np.abs(x.mean(0) / 255 - x_loc.mean(0) / 255) < 4.5 * deviation).all()


def test_a_folder_holds_a_table_s_own_types_and_words(
    mixed: Engine, tmp_path: Path, small_parts: None
) -> None:
    result = vae_sample(MIXED, tmp_path / "out")
    assert result.exit_code == 0, result.output
    table = read(tmp_path / "out")
    own = draw_table(1, 0).schema
    assert {n: table.schema.field(n).type for n in NAMES} == {n: own.field(n).type for n in NAMES}
    assert table.select(NAMES).equals(expected_table(mixed).select(NAMES))
    assert all(table.column(name).null_count == 0 for name in NAMES)
    assert set(table.column("colour").to_pylist()) <= set(COLOURS)
    assert table.column("row").to_pylist() == list(range(COUNT))
    assert len([name for name in names(tmp_path / "out") if name.startswith("part")]) == 3
    again = vae_sample(MIXED, tmp_path / "out")
    assert again.exit_code == 0
    assert "finished already" in again.output
    assert isinstance(vae_sample(MIXED, tmp_path / "out", "--mean").exception, UsageRefused)


def test_files_hold_the_same_rows(mixed: Engine, tmp_path: Path) -> None:
    expected = expected_table(mixed)
    for name in ("rows.parquet", "rows.csv", "rows.npy"):
        result = vae_sample(MIXED, tmp_path / name)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout.splitlines()[-1])["rows"] == COUNT
    assert parquet.read_table(tmp_path / "rows.parquet").equals(expected)
    found = csv.read_csv(tmp_path / "rows.csv")
    assert found.column("colour").to_pylist() == expected.column("colour").to_pylist()
    assert found.column("opened").to_pylist() == expected.column("opened").to_pylist()
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), mixed.draw(COUNT, SEED))


def test_the_mean_is_today_s(mixed: Engine, tmp_path: Path) -> None:
    assert vae_sample(MIXED, tmp_path / "rows.npy", "--mean").exit_code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), mixed.sample(COUNT, SEED))


def test_images_are_drawn_on_request(engine: Engine, tmp_path: Path, small_parts: None) -> None:
    for name, expected in (("mean.npy", engine.sample), ("drawn.npy", engine.draw)):
        options = ["--draw"] if name == "drawn.npy" else []
        assert vae_sample(SEALED, tmp_path / name, *options).exit_code == 0
        np.testing.assert_array_equal(np.load(tmp_path / name), expected(COUNT, SEED))
    assert vae_sample(SEALED, tmp_path / "grid.png", "--draw").exit_code == 0
    assert vae_sample(SEALED, tmp_path / "out", "--draw").exit_code == 0
    column = read(tmp_path / "out").column("x").combine_chunks()
    values = column.flatten().to_numpy().reshape(COUNT, 6, 5)
    np.testing.assert_array_equal(values, engine.draw(COUNT, SEED))


def test_an_early_bundle_says_what_to_do(tmp_path: Path) -> None:
    result = vae_sample(SCHEMA_1, tmp_path / "rows.npy", "--draw")
    assert isinstance(result.exception, UsageRefused)
    assert "run vae migrate" in str(result.exception)
