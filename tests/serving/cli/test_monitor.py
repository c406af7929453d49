"""`vae monitor` on rows, on results of `vae score`, and on what a server captured."""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from pyarrow import parquet

from serving.bundle import Bundle, open_bundle
from serving.cli.monitor import monitor
from serving.drift import summarize
from serving.drift_test import COLUMNS
from serving.engine import Engine
from serving.io.arrow_cells import encode_batch
from serving.p_values import HeldOutScores
from serving.table_cells import TableEncoder
from tests.mixed_rows import draw_table
from tests.serving.batch.reports import Page, carry, hold, vae_score
from tests.serving.conftest import MIXED, SCHEMA_1, SEALED

START = datetime.datetime(2026, 3, 1)
DAYS, DAY_ROWS = 4, 300


def vae_monitor(*arguments: object) -> Result:
    return CliRunner().invoke(monitor, [str(argument) for argument in arguments])


def times(rows: int) -> pa.Array:
    step = datetime.timedelta(days=1) / DAY_ROWS
    return pa.array([START + step * row for row in range(rows)], pa.timestamp("us"))


def images(seed: int, rows: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, 6, 5), dtype=np.uint8)


def keep(x: np.ndarray, more: dict[str, pa.Array], path: Path) -> Path:
    column = pa.array([row.tobytes() for row in x], pa.binary(30))
    parquet.write_table(pa.table({"x": column, **more}), path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The little bundle, whose held-out rows are of the kind of `images`."""
    folder = tmp_path_factory.mktemp("monitor")
    scores = Engine(open_bundle(SEALED)).score(images(1, 1500), 1, 0)
    held = hold(SEALED, folder / "held", HeldOutScores(1, 0, scores))
    return carry(held.path, folder / "bundle", summarize(scores["elbo"]))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Three calm days, and one on which half of the images are darker."""
    x = images(2, DAYS * DAY_ROWS)
    x[3 * DAY_ROWS :: 2] //= 2
    return keep(x, {"time": times(len(x))}, tmp_path / "rows.parquet")


def result_of(done: Result, code: int = 0) -> dict[str, Any]:
    assert done.exit_code == code, (done.output, done.exception)
    content: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return content


def names_of(periods: Sequence[Any]) -> list[str]:
    return [period["start"] for period in periods]


def test_rows_are_scored_and_followed_day_by_day(model: Bundle, rows: Path, tmp_path: Path) -> None:
    done = vae_monitor(rows, "--model", model.path, "--report", tmp_path / "drift.html")
    found = result_of(done)
    assert names_of(found["periods"]) == [f"2026-03-0{day}" for day in range(1, 5)]
    assert [period["rows"] for period in found["periods"]] == [DAY_ROWS] * 4
    assert [period["alarms"] for period in found["periods"]] == [[], [], [], ["elbo"]]
    assert (found["rows"], found["bad"], found["alarm"]) == (1200, 0, True)
    assert found["drifted"] == ["elbo"]
    assert found["alarm_time"].startswith("2026-03-04T")
    assert found["since"] >= "2026-03-03T20"
    assert found["digest"] == model.manifest.digest
    x = parquet.read_table(rows)["x"].to_pylist()[:DAY_ROWS]
    x = np.frombuffer(b"".join(x), np.uint8).reshape(-1, 6, 5)
    elbo = Engine(model).score(x, 1, 0)["elbo"]
    assert found["periods"][0]["elbo"] == pytest.approx(elbo.mean(), abs=1e-3)
    assert "2026-03-04" in done.stderr
    page = Page(tmp_path / "drift.html")
    assert "script" not in page.tags
    assert page.tags.count("svg") == 2 + DAYS
    assert "are not all like the held-out rows" in page.words
    assert "it ever reaches 100," in page.words
    assert "whole rows" in page.section("Alarms")
    assert "Columns" not in page.words
    assert "prefers-color-scheme: dark" in page.text


def test_calm_rows_give_no_alarm(model: Bundle, tmp_path: Path) -> None:
    calm = keep(images(5, 900), {"time": times(900)}, tmp_path / "calm.parquet")
    report = tmp_path / "drift.html"
    arguments = (calm, "--model", model.path, "--fail-on-alarm", "--report", report)
    found = result_of(vae_monitor(*arguments))
    assert (found["alarm"], found["alarm_time"], found["drifted"]) == (False, None, [])
    assert "No drift was found in 900 rows on 3 days" in Page(report).words


def test_an_alarm_fails_if_asked_after_the_result_is_printed(model: Bundle, rows: Path) -> None:
    done = CliRunner().invoke(monitor, [str(rows), "--model", str(model.path), "--fail-on-alarm"])
    assert done.exit_code == 1  # the exception's own code is given by `run_command`
    assert getattr(done.exception, "exit_code", None) == 5
    assert json.loads(done.stdout)["alarm"]


def test_results_of_vae_score_have_the_same_figures(
    model: Bundle, rows: Path, tmp_path: Path
) -> None:
    vae_score(rows, tmp_path / "scores", "--model", model.path, "--id", "time")
    direct = result_of(vae_monitor(rows, "--model", model.path))
    found = result_of(vae_monitor(tmp_path / "scores", "--model", model.path))
    assert found == direct


def test_captured_rows_are_scored_whoever_answered_them(
    model: Bundle, rows: Path, tmp_path: Path
) -> None:
    table = parquet.read_table(rows)
    direct = result_of(vae_monitor(rows, "--model", model.path))
    captured = pa.table(
        {
            "x": table["x"],
            "vae_time": table["time"].cast(pa.timestamp("us", "UTC")),
            "vae_operation": pa.array(["encode"] * len(table)),
            "vae_version": pa.array(["6"] * len(table)),
            "vae_digest": pa.array(["ab"] * len(table)),
        }
    )
    parts = tmp_path / "captured"
    parts.mkdir()
    for part in range(3):
        parquet.write_table(captured.slice(part * 400, 400), parts / f"captured-{part}.parquet")
    assert result_of(vae_monitor(parts, "--model", model.path)) == direct


def test_hours_a_filter_and_another_column_of_times(model: Bundle, tmp_path: Path) -> None:
    x = images(7, 40)
    seconds = pa.array([1772323200 + 300 * row for row in range(40)])
    more = {"at": seconds, "ward": pa.array(["a", "b"] * 20)}
    file = keep(x, more, tmp_path / "rows.parquet")
    arguments = ("--model", model.path, "--time", "at", "--by", "hour", "--where", "ward == 'a'")
    found = result_of(vae_monitor(file, *arguments))
    assert names_of(found["periods"])[:2] == ["2026-03-01 00:00", "2026-03-01 01:00"]
    assert [period["rows"] for period in found["periods"]] == [6, 6, 6, 2]


def test_rows_without_a_time_are_left_out_and_late_rows_are_said(
    model: Bundle, tmp_path: Path
) -> None:
    x = images(8, 9)
    gone = pa.array([START, None, START] * 3, pa.timestamp("us"))
    first = keep(x, {"time": gone}, tmp_path / "2.parquet")
    later = pa.array([START + datetime.timedelta(days=3)] * 9, pa.timestamp("us"))
    keep(x, {"time": later}, tmp_path / "1.parquet")
    done = vae_monitor(first.parent, "--model", model.path)
    assert result_of(done)["bad"] == 3
    assert "3 rows have no time or no score" in done.stderr
    assert "6 rows came after rows of a later day" in done.stderr


def refusal(*arguments: object) -> str:
    done = vae_monitor(*arguments)
    assert getattr(done.exception, "exit_code", None) in (2, 3), done.output
    return str(done.exception)


def test_what_cannot_be_followed_is_refused_with_what_to_do(
    model: Bundle, rows: Path, tmp_path: Path
) -> None:
    none = keep(images(1, 3), {"id": pa.array([1, 2, 3])}, tmp_path / "none.parquet")
    assert "no column 'time' to tell days by: name it with --time; it has x, id" in refusal(
        none, "--model", model.path
    )
    assert "no column 'when'" in refusal(rows, "--model", model.path, "--time", "when")
    assert "'x' is fixed_size_binary" in refusal(rows, "--model", model.path, "--time", "x")
    assert "no row with a time and a score" in refusal(
        keep(images(1, 3), {"time": times(3), "n": pa.array([1, 2, 3])}, tmp_path / "n.parquet"),
        *("--model", model.path, "--where", "n > 3"),
    )
    assert "no scores of held-out rows" in refusal(rows, "--model", SCHEMA_1)
    assert "--report" in refusal(rows, "--model", model.path, "--report", tmp_path / "x.txt")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--num-samples", 3), "has scores of num_samples 3"),
        (("--seed", 9), "has scores of seed 9"),
    ],
    ids=["draws", "seed"],
)
def test_results_that_were_made_in_another_way_are_refused(
    model: Bundle, rows: Path, tmp_path: Path, options: tuple[object, ...], words: str
) -> None:
    vae_score(rows, tmp_path / "scores", "--model", model.path, "--id", "time", *options)
    assert words in refusal(tmp_path / "scores", "--model", model.path)


def test_results_of_another_version_are_refused(model: Bundle, rows: Path, tmp_path: Path) -> None:
    vae_score(rows, tmp_path / "scores", "--model", SEALED, "--id", "time")
    words = refusal(tmp_path / "scores", "--model", model.path)
    assert f"has scores of digest '{open_bundle(SEALED).manifest.digest}'" in words
    assert "name the version that made them with --model" in words


@pytest.fixture(scope="module")
def accounts(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model of a mixed table that holds the scores of held-out cells."""
    bundle = open_bundle(MIXED)
    schema = bundle.manifest.schema
    assert schema is not None
    batch = draw_table(900, 3).combine_chunks().to_batches()[0]
    x = encode_batch(batch, TableEncoder(schema)).x
    scores = Engine(bundle).score(x, 4, 0)
    kept = {"elbo": scores["elbo"], COLUMNS: scores[COLUMNS], "consistency": scores["consistency"]}
    folder = tmp_path_factory.mktemp("accounts") / "bundle"
    return hold(MIXED, folder, HeldOutScores(4, 0, kept))


def test_of_a_table_the_columns_that_drift_are_named(accounts: Bundle, tmp_path: Path) -> None:
    table = draw_table(1200, 4)
    colours = table["colour"].to_pylist()
    generator = np.random.default_rng(0)
    colours[600:] = generator.choice(["blue", "green", "red", "white"], 600).tolist()
    changed = table.set_column(table.schema.get_field_index("colour"), "colour", pa.array(colours))
    file = tmp_path / "accounts.parquet"
    parquet.write_table(changed.append_column("time", times(1200)), file)
    report = tmp_path / "drift.html"
    found = result_of(vae_monitor(file, "--model", accounts.path, "--report", report))
    assert "colour" in found["drifted"]
    assert "visits" not in found["drifted"]
    assert found["since"] >= "2026-03-02T"
    assert "colour" in Page(report).section("Columns")
    arguments = (
        file,
        tmp_path / "scores",
        "--model",
        accounts.path,
        "--id",
        "time",
        "--by",
        "elbo",
    )
    vae_score(*arguments, "--per-column")
    assert result_of(vae_monitor(tmp_path / "scores", "--model", accounts.path)) == {
        key: value for key, value in found.items() if key != "report"
    }


def test_a_table_s_version_without_held_out_cells_says_so(tmp_path: Path) -> None:
    file = tmp_path / "accounts.parquet"
    parquet.write_table(draw_table(50, 4).append_column("time", times(50)), file)
    done = vae_monitor(file, "--model", MIXED)
    assert result_of(done)["rows"] == 50
    assert "columns are not tested one by one: this version holds no scores" in done.stderr
