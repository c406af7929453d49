"""`vae impute`: gaps filled in a table's own types and words, everything else as it was."""

import datetime
import json
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from pyarrow import compute, csv, parquet

from serving.batch.imputer import Imputer
from serving.batch.scorer import layout_of, provenance_of
from serving.bundle import open_bundle
from serving.cli.impute import impute
from serving.engine import Engine
from serving.errors import DataRefused, UsageRefused
from serving.io.arrow_cells import encode_batch
from serving.noise import draw_eps, draw_fillings
from serving.source import Source
from tests.mixed_rows import COLOURS, NAMES, draw_table
from tests.serving.batch.jobs import names, read
from tests.serving.conftest import SCHEMA_1, SEALED

MIXED = SEALED.parent / "mixed_bundle"
ROWS = 900


@pytest.fixture(scope="module")
def mixed() -> Engine:
    return Engine(open_bundle(MIXED))


@pytest.fixture(scope="module")
def data() -> pa.Table:
    return draw_table(ROWS, 5)


def make(engine: Engine, schema: pa.Schema, draws: int = 0, num_samples: int = 16) -> Imputer:
    made_by = provenance_of(Source(engine.bundle), 7, num_samples)
    return Imputer(engine, made_by, schema, draws=draws)


def fill(engine: Engine, table: pa.Table, draws: int = 0) -> pa.Table:
    imputer = make(engine, table.schema, draws)
    batches = [imputer(batch)[0] for batch in table.combine_chunks().to_batches()]
    return pa.Table.from_batches(batches, imputer.schema)


def vae_impute(*arguments: object) -> Result:
    return CliRunner().invoke(impute, [*map(str, arguments), "--model", str(MIXED)])


def test_gaps_are_filled_and_all_else_stays(mixed: Engine, data: pa.Table) -> None:
    filled = fill(mixed, data)
    assert filled.schema == data.schema
    for name in data.schema.names:
        before, after = data.column(name), filled.column(name)
        assert after.null_count == 0
        seen = compute.is_valid(before)
        assert after.filter(seen).equals(before.filter(seen))
    assert sum(data.column(name).null_count for name in NAMES) > ROWS / 4
    assert set(filled.column("colour").to_pylist()) <= set(COLOURS)


def test_a_gap_gets_what_the_graph_says(mixed: Engine, data: pa.Table) -> None:
    layout = layout_of(mixed)
    assert layout.encoder is not None
    x = encode_batch(data.combine_chunks().to_batches()[0], layout.encoder).x
    eps = draw_eps(x, 7, 16, mixed.bundle.manifest.latent_dim)
    found = mixed.run("impute", {"x": x, "eps": eps})["x_filled"]
    known = mixed.bundle.manifest.schema
    assert known is not None
    filled = fill(mixed, data)
    for place, column in enumerate(known.columns):
        if column.name == "income":
            gaps = np.isnan(x[:, place])
            values = filled.column("income").to_numpy()[gaps]
            np.testing.assert_allclose(values, found[gaps, place], rtol=1e-6)
            assert gaps.any()


def test_filled_numbers_are_near_those_that_were_there(mixed: Engine) -> None:
    """Nearer than the mean of the column: all columns follow from one latent."""
    full = draw_table(ROWS, 6)
    hidden = full.set_column(
        full.schema.get_field_index("size"),
        "size",
        pa.array(full.column("size").to_numpy(), mask=np.arange(ROWS) % 2 == 0),
    )
    truth = full.column("size").to_numpy()[::2]
    filled = fill(mixed, hidden).column("size").to_numpy()[::2]
    assert np.sqrt(np.mean((filled - truth) ** 2)) < 0.75 * truth.std()


@pytest.mark.parametrize("draws", [0, 3])
def test_a_row_has_the_same_bytes_in_any_batch(mixed: Engine, data: pa.Table, draws: int) -> None:
    imputer = make(mixed, data.schema, draws)
    (whole,) = data.combine_chunks().to_batches()
    expected, _ = imputer(whole)
    other = make(Engine(open_bundle(MIXED), threads=2), data.schema, draws)
    starts = [0, 1, 8, 41, 300, ROWS]
    parts = [other(whole.slice(a, b - a))[0] for a, b in pairwise(starts)]
    assert pa.Table.from_batches(parts).combine_chunks().to_batches()[0].equals(expected)


def test_draws_are_completed_copies_that_differ_in_gaps_alone(
    mixed: Engine, data: pa.Table
) -> None:
    copies = fill(mixed, data, draws=4)
    assert copies.num_rows == 4 * ROWS
    assert copies.schema.names == [*data.schema.names, "draw"]
    assert copies.column("draw").to_pylist()[:5] == [1, 2, 3, 4, 1]
    for name in NAMES:
        before, after = data.column(name).to_pylist(), copies.column(name).to_pylist()
        kept = [after[i : i + 4] for i in range(0, len(after), 4)]
        assert all(own is None or each == [own] * 4 for own, each in zip(before, kept, strict=True))
    gaps = [i for i, value in enumerate(data.column("income").to_pylist()) if value is None]
    incomes = copies.column("income").to_numpy().reshape(-1, 4)[gaps]
    assert all(len(set(row)) == 4 for row in incomes)
    assert set(copies.column("colour").to_pylist()) <= set(COLOURS)


def test_fewer_draws_are_the_first_of_more(mixed: Engine, data: pa.Table) -> None:
    few, many = fill(mixed, data, draws=2), fill(mixed, data, draws=5)
    assert many.filter(compute.less_equal(many.column("draw"), 2)).equals(few)


def test_fillings_are_keyed_by_the_row() -> None:
    x = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    x[x > 1] = np.nan
    noise, choice = draw_fillings(x, 7, 3, 6)
    assert (noise.shape, choice.shape) == ((50, 3, 6), (50, 3))
    order = np.random.default_rng(1).permutation(50)
    other_noise, other_choice = draw_fillings(x[order], 7, 3, 6)
    np.testing.assert_array_equal(other_noise, noise[order], strict=True)
    np.testing.assert_array_equal(other_choice, choice[order], strict=True)
    assert ((choice > 0) & (choice < 1)).all()
    assert len(np.unique(choice)) == choice.size


def own_types(data: pa.Table) -> pa.Table:
    """The columns in other types that mean the same, and one that the model does not know."""
    opened = data.column("opened")
    grades = data.column("grade").to_pylist()
    return pa.table(
        {
            "note": pa.array([[i] for i in range(ROWS)]),
            "size": data.column("size").cast(pa.float32()),
            "colour": data.column("colour").dictionary_encode(),
            "visits": data.column("visits").cast(pa.int16()),
            "income": pa.array(
                [v if v is None else Decimal(f"{v:.2f}") for v in data["income"].to_pylist()],
                pa.decimal128(12, 2),
            ),
            "member": data.column("member").cast(pa.string()),
            "opened": opened.cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC")),
            "grade": pa.array([float(grade) for grade in grades]),
        }
    )


def test_columns_keep_their_own_types(mixed: Engine, data: pa.Table) -> None:
    table = own_types(data)
    filled = fill(mixed, table)
    kinds = {item.name: item.type for item in table.schema} | {"colour": pa.string()}
    assert {item.name: item.type for item in filled.schema} == kinds
    assert all(column.null_count == 0 for column in filled.columns)
    assert set(filled.column("member").to_pylist()) == {"false", "true"}
    assert filled.column("note").equals(table.column("note"))
    plain = fill(mixed, data)
    gaps = np.array(data.column("visits").is_null())
    visits = filled.column("visits").to_numpy()
    assert (visits[~gaps] == plain.column("visits").to_numpy()[~gaps]).all()


def test_the_command_writes_parts_and_resumes(
    tmp_path: Path, data: pa.Table, small_parts: None
) -> None:
    parquet.write_table(data, tmp_path / "new.parquet")
    result = vae_impute(tmp_path / "new.parquet", tmp_path / "out", "--draws", 2)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout.splitlines()[-1])
    assert (said["rows"], said["bad"]) == (2 * ROWS, 0)
    whole = read(tmp_path / "out")
    parts = [name for name in names(tmp_path / "out") if name.startswith("part")]
    assert len(parts) == 3
    (tmp_path / "out" / "_SUCCESS").unlink()
    (tmp_path / "out" / parts[1]).unlink()
    assert vae_impute(tmp_path / "new.parquet", tmp_path / "out", "--draws", 2).exit_code == 0
    assert read(tmp_path / "out").equals(whole)
    other = vae_impute(tmp_path / "new.parquet", tmp_path / "out")
    assert isinstance(other.exception, UsageRefused)


def test_a_csv_file_is_filled(tmp_path: Path, data: pa.Table) -> None:
    csv.write_csv(data, tmp_path / "new.csv")
    result = vae_impute(tmp_path / "new.csv", tmp_path / "out")
    assert result.exit_code == 0, result.output
    filled = read(tmp_path / "out")
    assert filled.column_names == data.column_names
    assert set(filled.column("colour").to_pylist()) <= set(COLOURS)
    days = filled.column("opened").to_pylist()
    assert all(datetime.date.fromisoformat(str(day)) for day in days)


def test_columns_of_csv_that_the_model_does_not_know_stay_as_written(
    tmp_path: Path, data: pa.Table
) -> None:
    written = {
        "zip": ["01234", "NA", "9007199254740993"],
        "flag": ["True", "FALSE", ""],
        "day": ["2026-11-28 ", "2026-11-28", "nan"],
    }
    table = data.slice(0, 3)
    for name, cells in written.items():
        table = table.append_column(name, pa.array(cells))
    csv.write_csv(table, tmp_path / "new.csv")
    result = vae_impute(tmp_path / "new.csv", tmp_path / "out")
    assert result.exit_code == 0, result.output
    filled = read(tmp_path / "out")
    assert {name: filled.column(name).to_pylist() for name in written} == written


def test_words_of_csv_that_are_numbers_are_filled_as_words(tmp_path: Path, data: pa.Table) -> None:
    grades = pa.array(["1", "3.0", "none of them", "NA", *["2"] * 16])
    place = data.schema.get_field_index("grade")
    csv.write_csv(data.slice(0, 20).set_column(place, "grade", grades), tmp_path / "new.csv")
    result = vae_impute(tmp_path / "new.csv", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "grade in 1 rows" in result.stderr
    filled = read(tmp_path / "out").column("grade").to_pylist()
    assert filled[:3] == ["1", "3.0", "none of them"]
    assert filled[3] in {"1", "2", "3"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("colour", pa.string()),
        ("visits", pa.int64()),
        ("income", pa.float64()),
        ("member", pa.bool_()),
        ("opened", pa.date32()),
        ("grade", pa.int64()),
    ],
)
def test_a_column_of_nothing_gets_the_type_that_it_had_in_training(
    mixed: Engine, data: pa.Table, name: str, kind: pa.DataType
) -> None:
    place = data.schema.get_field_index(name)
    filled = fill(mixed, data.set_column(place, name, pa.nulls(ROWS))).column(name)
    assert (filled.type, filled.null_count) == (kind, 0)


@pytest.mark.parametrize("draws", [0, 2])
def test_views_become_large_text_and_bytes(mixed: Engine, data: pa.Table, draws: int) -> None:
    sizes = data.column("size").to_pylist()
    sizes[3] = float("inf")  # a bad row, which is filtered out
    plain = data.set_column(data.schema.get_field_index("size"), "size", pa.array(sizes))
    views = plain
    for name, kind in {"key": pa.binary_view(), "colour": pa.string_view()}.items():
        place = views.schema.get_field_index(name)
        array = views.column(name).combine_chunks()
        views = views.set_column(place, name, array.cast(kind))
    filled = fill(mixed, views, draws)
    assert filled.column("key").type == pa.large_binary()
    assert filled.column("colour").type == pa.large_string()
    assert filled.cast(fill(mixed, plain, draws).schema).equals(fill(mixed, plain, draws))


def test_the_message_of_a_bad_row_is_short_and_has_its_reason(
    tmp_path: Path, data: pa.Table
) -> None:
    sizes = [float("inf"), *data.column("size").to_pylist()[1:]]
    table = data.set_column(data.schema.get_field_index("size"), "size", pa.array(sizes))
    table = table.append_column("reason", pa.array(["own"] * ROWS))
    parquet.write_table(table.append_column("more", pa.array(range(ROWS))), tmp_path / "x.parquet")
    failed = vae_impute(tmp_path / "x.parquet", tmp_path / "out")
    assert str(failed.exception).startswith("bad row, key 'k5-0', size inf, ")
    assert str(failed.exception).endswith(
        " and 2 more: column 'size' is not finite in float32; "
        "set such rows aside by --on-error quarantine"
    )


def test_bad_rows_fail_the_job_or_are_set_aside(tmp_path: Path, data: pa.Table) -> None:
    sizes = data.column("size").to_pylist()
    sizes[3] = float("inf")
    place = data.schema.get_field_index("size")
    parquet.write_table(data.set_column(place, "size", pa.array(sizes)), tmp_path / "new.parquet")
    failed = vae_impute(tmp_path / "new.parquet", tmp_path / "out")
    assert isinstance(failed.exception, DataRefused)
    assert "column 'size' is not finite in float32" in str(failed.exception)
    aside = ("--on-error", "quarantine", "--draws", 3)
    kept = vae_impute(tmp_path / "new.parquet", tmp_path / "kept", *aside)
    assert kept.exit_code == 0, kept.output
    assert read(tmp_path / "kept").num_rows == 3 * (ROWS - 1)
    (bad,) = (tmp_path / "kept" / "_quarantine").iterdir()
    (row,) = parquet.read_table(bad).to_pylist()
    assert (row["key"], row["reason"]) == ("k5-3", "column 'size' is not finite in float32")


def test_a_column_of_the_same_name_as_the_number_of_a_draw_stays(
    mixed: Engine, data: pa.Table
) -> None:
    table = data.append_column("draw", pa.array(range(ROWS)))
    copies = fill(mixed, table, draws=2)
    assert copies.column_names == [*table.column_names, "draw_"]
    assert copies.column("draw").to_pylist()[:4] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        pytest.param(SEALED, "impute is about the cells of a table", id="images"),
        pytest.param(SCHEMA_1, "impute is about the cells of a table", id="schema 1"),
    ],
)
def test_a_model_without_gaps_is_refused(path: Path, message: str, data: pa.Table) -> None:
    with pytest.raises(UsageRefused, match=message):
        make(Engine(open_bundle(path)), data.schema)


def test_a_bundle_without_draws_says_what_to_do() -> None:
    with pytest.raises(UsageRefused, match="made before there was draw: run vae migrate"):
        Engine(open_bundle(SCHEMA_1)).draw(3, 0)


@pytest.mark.parametrize(("draws", "num_samples"), [(-1, 1), (1001, 1), (0, 0), (0, 4097)])
def test_numbers_out_of_range_are_refused(
    mixed: Engine, data: pa.Table, draws: int, num_samples: int
) -> None:
    with pytest.raises(UsageRefused, match="must be from"):
        make(mixed, data.schema, draws, num_samples)


def test_a_missing_column_is_refused(mixed: Engine, data: pa.Table) -> None:
    with pytest.raises(UsageRefused, match="no column 'visits'"):
        make(mixed, data.drop_columns(["visits"]).schema)
