"""Rows of a mixed table: which are unusual, how sure that is, and which column is to blame."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from pyarrow import parquet

from pipeline.cli.main import cli
from pipeline.data.dataset import Dataset
from serving.bundle import METRICS, Bundle
from serving.drift import MIXED_SCORE_SAMPLES
from serving.engine import Engine
from serving.errors import UsageRefused
from serving.io.arrow_cells import decode_batch
from serving.noise import draw_eps
from serving.p_values import FlagCounter, HeldOutScores, read_held_out_scores
from tests.mixed_tables import SCHEMA, draw_rows
from tests.serving.batch.jobs import read
from tests.serving.batch.reports import Page
from tests.trained_models import Trained

Array = NDArray[Any]
ROWS, CHANGED = 600, 60
NAMES = [column.name for column in SCHEMA.columns]


@pytest.fixture(scope="module")
def data(trained_mixed: Trained) -> Dataset:
    return trained_mixed[1]


@pytest.fixture(scope="module")
def bundle(sealed_mixed: Bundle) -> Bundle:
    return sealed_mixed


@pytest.fixture(scope="module")
def x() -> Array:
    """New rows; in the first of them, one of three columns is at the other end of its range."""
    x = draw_rows(ROWS, seed=77, gaps=0)
    gaps = np.random.default_rng(5).random(x.shape) < 0.05
    for row in range(CHANGED):
        column = _changed(row)
        large = x[row, column] > np.median(x[:, column])
        x[row, column] = np.quantile(x[:, column], 0.01 if large else 0.99)
        gaps[row, column] = False
    return np.where(gaps, np.float32(np.nan), x)


def _changed(row: int) -> int:
    """Number of the column that is changed in a row: size, income or weight."""
    return (0, 3, 5)[row % 3]


@pytest.fixture(scope="module")
def rows(x: Array, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    batch = decode_batch(SCHEMA, x)
    table = pa.Table.from_batches([batch]).append_column("key", pa.array(np.arange(len(x))))
    parquet.write_table(table, path)
    return path


def explain(bundle: Bundle, x: Array) -> Array:
    """The lift of each cell, by a row in which it is hidden."""
    eps = draw_eps(x, 0, MIXED_SCORE_SAMPLES, bundle.manifest.latent_dim)
    return Engine(bundle).run("explain", {"x": x, "eps": eps})["column_lift"]


def score(bundle: Bundle, rows: Path, out: Path, *options: object) -> Result:
    command = ["score", rows, out, "--model", bundle.path, "--id", "key", *options]
    result = CliRunner().invoke(cli, [*map(str, command)])
    assert result.exit_code == 0, (result.output, result.exception)
    return result


@pytest.mark.slow(40)
def test_held_out_rows_are_scored_with_more_draws_by_the_cells_too(
    bundle: Bundle, data: Dataset
) -> None:
    held_out = read_held_out_scores(bundle)
    assert held_out is not None
    assert held_out.num_samples == MIXED_SCORE_SAMPLES
    held = bundle.read_json(METRICS)["held_out"]
    assert held["num_samples"] == MIXED_SCORE_SAMPLES
    found = Engine(bundle).score(data.test.x, held_out.num_samples, held_out.seed)
    lift = found.pop("column_lift")
    cells = found.pop("column_log_likelihood")
    assert held_out.scores.keys() == {*found, "column_max", "combined", "column_log_likelihood"}
    assert held_out.scores["column_log_likelihood"] == pytest.approx(cells, rel=1e-3, abs=1e-3)
    for name, values in (found | {"column_max": lift.min(1)}).items():
        assert held_out.scores[name] == pytest.approx(values, rel=1e-3, abs=1e-2)
    assert held_out.scores["elbo"].mean() == pytest.approx(held["elbo_mean"], rel=1e-5)
    # a row that is compared with itself too differs by little
    assert held_out.combined is not None
    among_all = held_out.combined(found, data.test.x)
    assert held_out.scores["combined"] == pytest.approx(among_all, abs=0.8)
    assert np.corrcoef(held_out.scores["combined"], among_all)[0, 1] > 0.99


def test_the_column_that_was_changed_is_named_first(
    bundle: Bundle, rows: Path, x: Array, tmp_path: Path
) -> None:
    result = score(bundle, rows, tmp_path / "out", "--explain", 2, "--fdr", 0.1)
    found = read(tmp_path / "out").to_pandas()
    flagged = found[found["flagged"]]
    assert json.loads(result.stdout)["flagged"] == len(flagged)
    right = flagged[flagged["key"] < CHANGED]
    assert len(right) >= CHANGED / 2
    assert len(flagged) - len(right) <= 0.3 * len(flagged)
    named = [NAMES[_changed(key)] == name for key, name in right[["key", "column_1"]].to_numpy()]
    assert np.mean(named) >= 0.9


def test_columns_are_in_the_order_of_their_lift_and_gaps_are_none_of_them(
    bundle: Bundle, rows: Path, x: Array, tmp_path: Path
) -> None:
    score(bundle, rows, tmp_path / "out", "--explain", 8)
    found = read(tmp_path / "out").to_pylist()
    lift = explain(bundle, x)
    for row, cells in zip(found, x, strict=True):
        seen = np.flatnonzero(~np.isnan(cells))
        order = seen[np.argsort(lift[row["key"]][seen], kind="stable")]
        names = [row[f"column_{place}"] for place in range(1, 9)]
        nats = [row[f"nats_{place}"] for place in range(1, 9)]
        assert names == [*(NAMES[i] for i in order), *[None] * (8 - len(order))]
        assert nats == [*lift[row["key"]][order].tolist(), *[None] * (8 - len(order))]


@pytest.mark.parametrize("by", ["", "elbo", "latent", "column_max", "consistency", "combined"])
def test_p_values_are_those_of_the_chosen_score(
    bundle: Bundle, rows: Path, x: Array, tmp_path: Path, by: str
) -> None:
    options = ("--by", by) if by else ()
    score(bundle, rows, tmp_path / "out", *options, "--fdr", 0.1, "--explain", 1)
    held_out = read_held_out_scores(bundle)
    assert held_out is not None
    scores = Engine(bundle).score(x, MIXED_SCORE_SAMPLES, 0)
    new, held = {
        "elbo": (scores["elbo"], held_out.scores["elbo"]),
        "latent": (-scores["kl"], -held_out.scores["kl"]),
        "column_max": (scores["column_lift"].min(1), held_out.scores["column_max"]),
        "consistency": (scores["consistency"], held_out.scores["consistency"]),
    }.get(by, (_combine(held_out, scores, x), held_out.scores["combined"]))
    p = np.array([(1 + (held <= value).sum()) / (len(held) + 1) for value in new])
    found = read(tmp_path / "out")
    assert np.array_equal(found["p_value"].to_numpy(), p)
    counter = FlagCounter(len(held))
    counter.add(found["p_value"].to_numpy())
    assert found["flagged"].to_numpy().sum() == counter.flag(0.1).flagged
    assert ("column_max" in found.column_names) == (by == "column_max")
    assert ("combined" in found.column_names) == (by in ("", "combined"))


def _combine(held_out: HeldOutScores, scores: Mapping[str, Array], x: Array) -> Array:
    assert held_out.combined is not None
    return held_out.combined(scores, x)


def test_with_other_draws_rows_are_compared_by_consistency(
    bundle: Bundle, rows: Path, tmp_path: Path
) -> None:
    said = score(bundle, rows, tmp_path / "out", "--num-samples", 3).output
    assert "the held-out rows were scored with --num-samples 4, these with 3" in said
    command = ["score", rows, tmp_path / "no", "--model", bundle.path, "--num-samples", 3]
    refused = CliRunner().invoke(cli, [*map(str, command), "--by", "combined"])
    assert isinstance(refused.exception, UsageRefused)
    assert str(refused.exception) == (
        "--by combined compares with held-out rows: the held-out rows were scored with "
        "--num-samples 4, these with 3"
    )
    assert not (tmp_path / "no").exists()


def test_the_scores_of_all_columns_are_written_on_request(
    bundle: Bundle, rows: Path, x: Array, tmp_path: Path
) -> None:
    score(bundle, rows, tmp_path / "plain")
    assert not {"column_lift", "column_1"} & {*read(tmp_path / "plain").column_names}
    score(bundle, rows, tmp_path / "out", "--per-column")
    found = read(tmp_path / "out")
    scores = Engine(bundle).score(x, MIXED_SCORE_SAMPLES, 0)
    for name in ("column_lift", "column_log_likelihood"):
        values = np.array(found[name].to_pylist(), np.float32)
        assert values.tobytes() == scores[name].tobytes()
    assert set(found["num_samples"].to_pylist()) == {MIXED_SCORE_SAMPLES}


def test_the_report_shows_what_each_cell_is_and_what_was_expected(
    bundle: Bundle, rows: Path, x: Array, tmp_path: Path
) -> None:
    """In the table's own words and units, the column with the lowest lift first."""
    options = ("--fdr", 0.1, "--explain", 2, "--report", tmp_path / "r.html")
    score(bundle, rows, tmp_path / "out", *options)
    page = Page(tmp_path / "r.html")
    found = read(tmp_path / "out").to_pandas()
    lowest = found.sort_values("combined", kind="stable").iloc[0]
    words = page.section("Flagged rows")
    start = f"key {lowest['key']} combined {lowest['combined']:,.2f} , p_value"
    assert start in words
    place = NAMES.index(lowest["column_1"])
    hidden = x[[lowest["key"]]]
    hidden[0, place] = np.nan
    eps = np.random.default_rng(0).standard_normal((1, 4096, 3), np.float32)
    expected = Engine(bundle).run("impute", {"x": hidden, "eps": eps})["x_filled"][0, place]
    cell = rf"{NAMES[place]} {x[lowest['key'], place]:.7g} (\S+) {lowest['nats_1']:,.2f}"
    card = " ".join(words[words.index(start) :].split())
    found_cell = re.search(cell, card)
    assert found_cell, card[:300]
    assert float(found_cell[1].replace(",", "")) == pytest.approx(expected, rel=0.3)
    assert "Lowest combined" not in page.words
    assert "Highest combined" in page.words
