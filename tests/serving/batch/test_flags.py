"""Jobs with p-values, and rows that are flagged at a false discovery rate."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from serving.batch import flags
from serving.batch.output import Output
from serving.bundle import Bundle
from serving.engine import Engine
from serving.errors import UsageRefused
from serving.p_values import FlagCounter, HeldOutScores, PValues
from tests.serving.batch.jobs import ROWS, damage, names, read, replace
from tests.serving.batch.reports import Page, hold, vae_score
from tests.serving.conftest import SCHEMA_1, SEALED

pytestmark = pytest.mark.usefixtures("small_parts")
Array = np.ndarray[Any, Any]
HELD_OUT_ROWS = 999
FDR = 0.05


def draw_held_out(rows: int, lowest: float, highest: float) -> HeldOutScores:
    """Scores of held-out rows, whose ELBO is spread evenly."""
    scores = {"elbo": np.linspace(lowest, highest, rows, dtype=np.float32)}
    scores |= {"kl": np.linspace(0, 90, rows, dtype=np.float32)}
    return HeldOutScores(1, 0, scores)


@pytest.fixture(scope="session")
def elbo(engine: Engine, x: Array) -> Array:
    return engine.score(x, 1, 0)["elbo"]


@pytest.fixture(scope="session")
def held_out(elbo: Array) -> HeldOutScores:
    """All score above the lowest third of the rows of the batch tests."""
    return draw_held_out(HELD_OUT_ROWS, float(np.quantile(elbo, 0.3)), float(elbo.max()))


@pytest.fixture(scope="session")
def holding(held_out: HeldOutScores, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with these held-out rows."""
    return hold(SEALED, tmp_path_factory.mktemp("holding") / "bundle", held_out)


def score(bundle: Path, location: Path, output: Path, *arguments: object) -> dict[str, Any]:
    result = vae_score(location, output, "--model", bundle, *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return dict(json.loads(result.stdout.splitlines()[-1]))


def test_the_p_values_and_flags_of_a_streamed_job_are_those_of_all_rows_at_once(
    holding: Bundle, held_out: HeldOutScores, batch_data: Path, tmp_path: Path, elbo: Array
) -> None:
    output = tmp_path / "out"
    said = score(holding.path, batch_data / "x.parquet", output, "--id", "id", "--fdr", FDR)
    p = PValues(held_out.scores["elbo"])(elbo)
    counter = FlagCounter(HELD_OUT_ROWS)
    counter.add(p)
    expected = counter.flag(FDR)
    assert 0 < expected.flagged < ROWS
    assert expected.threshold is not None
    found = read(output)
    assert found["id"].to_pylist() == list(range(ROWS))
    assert found["p_value"].to_numpy().tobytes() == p.tobytes()
    assert found["flagged"].to_numpy().tolist() == (p <= expected.threshold).tolist()
    assert (said["flagged"], said["threshold"]) == (expected.flagged, expected.threshold)
    summary = json.loads((output / "_summary.json").read_text())
    assert (summary["flagged"], summary["threshold"]) == (expected.flagged, expected.threshold)
    assert found.column_names[:7] == [
        *("id", "elbo", "log_likelihood", "kl", "iw_elbo", "p_value", "flagged")
    ]


def test_flags_change_nothing_else(holding: Bundle, batch_data: Path, tmp_path: Path) -> None:
    score(holding.path, batch_data / "x.parquet", tmp_path / "flagged", "--fdr", FDR)
    score(holding.path, batch_data / "x.parquet", tmp_path / "plain")
    flagged, plain = read(tmp_path / "flagged"), read(tmp_path / "plain")
    assert flagged.drop_columns("flagged").equals(plain)
    assert names(tmp_path / "flagged") == names(tmp_path / "plain")


class _Stop:
    """Interrupts the job as it flags a part."""

    def __init__(self, part: int) -> None:
        self.part, self.rewrite = part, Output.rewrite

    def __call__(self, output: Output, index: int, *arguments: Any) -> None:
        if index == self.part:
            raise KeyboardInterrupt
        self.rewrite(output, index, *arguments)


@pytest.mark.parametrize("part", [0, 3, 6])
@pytest.mark.parametrize(
    "change", [None, damage, replace, os.remove], ids=["no", "cut", "other's", "gone"]
)
def test_a_job_that_is_interrupted_as_it_flags_goes_on(
    holding: Bundle,
    batch_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: int,
    change: Any,
) -> None:
    """Also if a part that was or was not flagged is lost meanwhile."""
    command = (batch_data / "x.parquet", tmp_path / "out", "--model", holding.path, "--fdr", FDR)
    with monkeypatch.context() as patch:
        stop = _Stop(part)
        patch.setattr(Output, "rewrite", lambda *arguments: stop(*arguments))
        assert vae_score(*command).exit_code == 1
    parts = sorted((tmp_path / "out").glob("part-*"))
    assert [name for name in names(tmp_path / "out") if name.startswith("_")] == ["_job.json"]
    done = ["flagged" in parquet.read_schema(path).names for path in parts]
    assert done == [index < part for index in range(7)]
    times = [path.stat().st_mtime_ns for path in parts]
    if change:
        change(parts[2])
    said = score(holding.path, *command[:2], "--fdr", FDR)
    kept = [path.stat().st_mtime_ns == time for path, time in zip(parts, times, strict=True)]
    assert kept == [index < part and not (change and index == 2) for index in range(7)]
    whole = score(holding.path, batch_data / "x.parquet", tmp_path / "whole", "--fdr", FDR)
    assert said["flagged"] == whole["flagged"]
    for path in parts:
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()


def test_an_id_named_flagged_is_refused_before_rows_are_scored(
    holding: Bundle, tmp_path: Path
) -> None:
    x = np.arange(6 * 30, dtype=np.uint8).reshape(6, 30)
    table = {"x": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 30)}
    parquet.write_table(pa.table(table | {"flagged": [*range(6)]}), tmp_path / "x.parquet")
    command = (tmp_path / "x.parquet", tmp_path / "out", "--model", holding.path)
    refused = vae_score(*command, "--id", "flagged", "--fdr", FDR)
    assert isinstance(refused.exception, UsageRefused)
    assert "an id cannot have this name" in str(refused.exception)
    assert os.listdir(tmp_path) == ["x.parquet"]
    assert vae_score(*command, "--id", "flagged").exit_code == 0


def test_another_rate_is_another_job(holding: Bundle, batch_data: Path, tmp_path: Path) -> None:
    command = (batch_data / "x.parquet", tmp_path / "out", "--model", holding.path)
    first = score(holding.path, *command[:2], "--fdr", FDR)
    for other in ((), ("--fdr", 0.9), ("--fdr", FDR, "--by", "latent")):
        refused = vae_score(*command, *other)
        assert isinstance(refused.exception, UsageRefused)
        assert "which differs in " + ("by" if "--by" in other else "fdr") in str(refused.exception)
    more = score(holding.path, *command[:2], "--fdr", 0.9, "--overwrite")
    assert more["flagged"] > first["flagged"]
    assert os.listdir(tmp_path) == ["out"]


def test_bad_rows_have_no_part_in_the_rate(
    holding: Bundle, held_out: HeldOutScores, tmp_path: Path, x: Array, elbo: Array
) -> None:
    rows: list[bytes | None] = [row.tobytes() for row in x]
    rows[3::100] = [None] * len(rows[3::100])
    parquet.write_table(pa.table({"x": rows, "id": np.arange(ROWS)}), tmp_path / "x.parquet")
    options = ("--on-error", "quarantine", "--id", "id", "--fdr", FDR)
    said = score(holding.path, tmp_path / "x.parquet", tmp_path / "out", *options)
    good = np.arange(ROWS) % 100 != 3
    assert (said["rows"], said["bad"]) == (good.sum(), ROWS - good.sum())
    p = PValues(held_out.scores["elbo"])(elbo[good])
    counter = FlagCounter(HELD_OUT_ROWS)
    counter.add(p)
    assert said["flagged"] == counter.flag(FDR).flagged
    assert read(tmp_path / "out")["id"].to_pylist() == np.flatnonzero(good).tolist()


def test_no_row_that_passes_the_filter_is_none_that_is_flagged(
    holding: Bundle, batch_data: Path, tmp_path: Path
) -> None:
    options = ("--id", "id", "--where", "id < 0", "--fdr", FDR)
    said = score(holding.path, batch_data / "x.parquet", tmp_path / "out", *options)
    assert (said["rows"], said["flagged"], said["threshold"]) == (0, 0, None)
    assert "flagged" in read(tmp_path / "out").column_names


def test_too_few_held_out_rows_are_told_with_the_numbers(
    elbo: Array, batch_data: Path, tmp_path: Path
) -> None:
    few = hold(SEALED, tmp_path / "bundle", draw_held_out(9, float(elbo.max()), 0))
    command = (batch_data / "x.parquet", tmp_path / "out", "--model", few.path, "--fdr", FDR)
    result = vae_score(*command)
    assert json.loads(result.stdout)["flagged"] == 0
    assert result.stderr.startswith(
        "warning: no row can be flagged: the smallest p-value against 9 held-out rows is 0.1, "
    )


def test_other_draws_than_those_of_the_held_out_rows_have_no_p_values(
    holding: Bundle, batch_data: Path, tmp_path: Path
) -> None:
    command = (batch_data / "x.parquet", tmp_path / "out", "--model", holding.path)
    result = vae_score(*command, "--num-samples", 4)
    assert result.exit_code == 0
    assert result.stderr == (
        "no p-values: the held-out rows were scored with --num-samples 1, these with 4\n"
    )
    assert "p_value" not in read(tmp_path / "out").column_names
    refused = vae_score(*command, "--num-samples", 4, "--fdr", FDR)
    assert isinstance(refused.exception, UsageRefused)
    assert str(refused.exception) == (
        "--fdr needs p-values: the held-out rows were scored with --num-samples 1, these with 4"
    )


def test_the_draws_are_those_of_the_held_out_rows_by_default(
    batch_data: Path, tmp_path: Path
) -> None:
    scores = draw_held_out(50, -9, 0).scores
    bundle = hold(SEALED, tmp_path / "bundle", HeldOutScores(3, 0, scores))
    score(bundle.path, batch_data / "x.parquet", tmp_path / "out")
    found = read(tmp_path / "out")
    assert set(found["num_samples"].to_pylist()) == {3}
    assert "p_value" in found.column_names


def test_an_early_bundle_says_that_it_has_none_where_they_are_needed(
    batch_data: Path, tmp_path: Path
) -> None:
    command = (batch_data / "x.parquet", tmp_path / "out", "--model", SCHEMA_1)
    reason = "this version carries no scores of held-out rows: train and export it again"
    refused = vae_score(*command, "--fdr", FDR)
    assert isinstance(refused.exception, UsageRefused)
    assert str(refused.exception) == f"--fdr needs p-values: {reason}"
    assert os.listdir(tmp_path) == []
    assert vae_score(*command).stderr == ""
    asked = vae_score(*command, "--by", "elbo", "--overwrite")
    assert asked.stderr == f"no p-values: {reason}\n"
    assert "p_value" not in read(tmp_path / "out").column_names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--by", "consistency"), "--by must be one of elbo, log_likelihood, iw_elbo, latent for"),
        (("--explain", 3), "--explain and --per-column need a model of a table of mixed columns"),
        (("--per-column",), "--explain and --per-column need a model of a table of mixed columns"),
        (("--operation", "encode", "--fdr", FDR), "--fdr needs p-values: p-values are of scores"),
        (("--operation", "encode", "--by", "elbo"), "are about scores, --operation is 'encode'"),
    ],
    ids=["by", "explain", "per column", "encode and fdr", "encode and by"],
)
def test_what_the_model_does_not_have_is_refused(
    holding: Bundle, batch_data: Path, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    result = vae_score(
        batch_data / "x.parquet", tmp_path / "out", "--model", holding.path, *arguments
    )
    assert isinstance(result.exception, UsageRefused)
    assert message in str(result.exception)
    assert os.listdir(tmp_path) == []


def test_the_report_shows_the_flagged_rows_first(
    holding: Bundle, batch_data: Path, tmp_path: Path, x: Array, elbo: Array
) -> None:
    options = ("--fdr", FDR, "--report", tmp_path / "r.html", "--id", "id")
    said = score(holding.path, batch_data / "x.parquet", tmp_path / "out", *options)
    page = Page(tmp_path / "r.html")
    assert f"{said['flagged']:,} rows are flagged, which have p-values up to" in page.words
    assert f"100 of {said['flagged']:,}: those of the lowest ELBO" in page.section("Flagged rows")
    order = np.argsort(elbo, kind="stable")
    assert np.array_equal(page.pictures[0:200:2], x[order[:100]])
    assert "p_value 0.001" in page.section("Flagged rows")
    assert "Lowest ELBO" not in page.text


def test_the_report_orders_rows_by_the_chosen_score(
    holding: Bundle, batch_data: Path, tmp_path: Path, engine: Engine, x: Array
) -> None:
    options = ("--by", "latent", "--report", tmp_path / "r.html")
    score(holding.path, batch_data / "x.parquet", tmp_path / "out", *options)
    page = Page(tmp_path / "r.html")
    kl = engine.score(x, 1, 0)["kl"]
    assert np.array_equal(page.pictures[0:24:2], x[np.argsort(-kl, kind="stable")[:12]])
    assert "Lowest minus KL" in page.words


def test_the_parts_of_a_flagged_job_are_read_in_bounded_memory(
    holding: Bundle, batch_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[int] = []
    flag = flags._flag

    def count(group: pa.Table, *arguments: Any) -> pa.Table:
        groups.append(group.num_rows)
        return flag(group, *arguments)

    monkeypatch.setattr("serving.batch.output._GROUP_BYTES", 4000)
    monkeypatch.setattr(flags, "_flag", count)
    score(
        *(holding.path, batch_data / "x.parquet", tmp_path / "out"),
        *("--fdr", FDR, "--batch-size", 50, "--workers", 1),
    )
    assert sum(groups) == ROWS
    assert max(groups) <= 100
