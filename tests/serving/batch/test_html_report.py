import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from serving.batch import held_out_comparison
from serving.batch.score_summary import SHOWN, Extreme, fetch_x
from serving.batch.scorer import Scorer, provenance_of
from serving.batch.streaming_histogram import StreamingHistogram
from serving.bundle import Bundle
from serving.drift import summarize
from serving.engine import Engine
from serving.errors import UsageRefused
from serving.io.rows import Rows
from serving.source import Source
from tests.serving.batch.jobs import ROWS, StopAt, run, table
from tests.serving.batch.reports import Page, carry, vae_score
from tests.serving.conftest import SCHEMA_1, SEALED

pytestmark = pytest.mark.usefixtures("small_parts")
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="session")
def elbo(engine: Engine, x: Array) -> Array:
    return engine.score(x, 1, 0)["elbo"].astype(np.float64)


@pytest.fixture(scope="session")
def carrying(elbo: Array, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose held-out rows score a nat above those of the batch tests."""
    folder = tmp_path_factory.mktemp("carrying")
    return carry(SEALED, folder / "bundle", summarize(elbo[:1000] + 1))


def report(tmp_path: Path, bundle: Path, location: Path, *arguments: object) -> Page:
    path = tmp_path / "report.html"
    result = vae_score(location, tmp_path / "out", "--model", bundle, "--report", path, *arguments)
    assert result.exit_code == 0, result.output
    return Page(path)


def test_shows_the_rows_at_both_ends_beside_their_reconstructions(
    carrying: Bundle, batch_data: Path, tmp_path: Path, x: Array, elbo: Array, engine: Engine
) -> None:
    page = report(tmp_path, carrying.path, batch_data / "x.parquet", "--id", "id")
    order = np.argsort(elbo, kind="stable")
    shown = np.concatenate([order[:SHOWN], np.argsort(-elbo, kind="stable")[:SHOWN]])
    assert np.array_equal(page.pictures[0::2], x[shown])
    restored = np.rint(engine.reconstruct(x[shown])).astype(np.uint8)
    assert np.array_equal(page.pictures[1::2], restored)
    words = re.findall(
        r"(-[\d.]+) nats log_likelihood \S+ kl \S+ p_value \S+ id (\d+)",
        page.section("Lowest ELBO"),
    )
    assert [int(row) for _, row in words] == order[:SHOWN].tolist()
    assert [float(value) for value, _ in words] == pytest.approx(elbo[order[:SHOWN]], abs=0.005)


@pytest.mark.parametrize("seed", [0, 9])
@pytest.mark.parametrize("draws", [1, 16])
def test_says_how_far_the_rows_are_from_the_held_out_rows(
    carrying: Bundle, batch_data: Path, tmp_path: Path, elbo: Array, seed: int, draws: int
) -> None:
    """Whatever the seed and the draws of the job: they are not those of the comparison."""
    job = ("--seed", seed, "--num-samples", draws)
    page = report(tmp_path, carrying.path, batch_data / "x.parquet", *job)
    elbo, held = elbo, elbo[:1000] + 1
    points = np.concatenate([elbo, held])
    d = max(abs((elbo <= point).mean() - (held <= point).mean()) for point in points)
    words = page.section("Drift")
    found = re.search(r"D = ([\d.]+) of 1, p = (\S+)\. ([\d.]+)% of the rows lie below", words)
    assert found, words
    assert float(found[1]) == pytest.approx(d, abs=0.0065)
    assert float(found[2]) < 1e-10
    low = (elbo < np.quantile(held, 0.01)).mean()
    assert float(found[3]) == pytest.approx(100 * low, abs=0.01)
    shift = elbo.mean() - held.mean()
    assert f"The mean ELBO is {shift:+,.2f} ±" in words
    assert "2,500 rows were scored again as the held-out rows had been, with 1 draw" in words
    assert "Read D: with many rows p is tiny" in words


def test_says_what_was_scored_in_plain_words(
    carrying: Bundle, batch_data: Path, tmp_path: Path
) -> None:
    location = batch_data / ".." / batch_data.name / "x.parquet"
    page = report(tmp_path, carrying.path, location)
    assert f"Scores of {batch_data.resolve() / 'x.parquet'} " in page.words
    assert f": 1 file, {ROWS:,} rows" in page.section("Run")
    assert re.search(r"rows/s over 0\.0*[1-9]\d* s|over [1-9][\d.]* s", page.section("Run"))


def test_one_outlier_among_few_rows_does_not_squeeze_the_plots(
    carrying: Bundle, tmp_path: Path, x: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add_with_outlier(self: StreamingHistogram, values: Array) -> None:
        add(self, values if self.rows else np.append(values, np.float32(-1e6)))

    add = StreamingHistogram.add
    monkeypatch.setattr(StreamingHistogram, "add", add_with_outlier)
    parquet.write_table(table(x[:200]), tmp_path / "x.parquet")
    page = report(tmp_path, carrying.path, tmp_path / "x.parquet")
    assert "from -1,000,000.00 to" in page.words
    for plot in re.findall(r"<svg.*?</svg>", page.text)[::2][:2]:  # of the drift, and of elbo
        heights = [float(height) for height in re.findall(r'height="([\d.]+)">', plot)]
        assert sum(height > 5 for height in heights) > 10


def test_an_older_bundle_whose_rows_shared_their_noise_has_nothing_to_compare_with(
    batch_data: Path, tmp_path: Path, elbo: Array
) -> None:
    held = replace(summarize(elbo), shared_noise=True)
    carrying = carry(SEALED, tmp_path / "bundle", held)
    page = report(tmp_path, carrying.path, batch_data / "x.parquet", "--seed", 5)
    words = page.section("Drift")
    assert "Unknown: this version carries no held-out distribution" in words
    assert "D = " not in words


def test_a_part_of_many_rows_is_compared(
    carrying: Bundle,
    batch_data: Path,
    tmp_path: Path,
    elbo: Array,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every fifth row of parts that lie evenly in the input, so that sorted rows do no harm."""
    monkeypatch.setattr(held_out_comparison, "COMPARED_ROWS", 300)
    monkeypatch.setattr(held_out_comparison, "_READ_PARTS", 4)
    page = report(tmp_path, carrying.path, batch_data / "x.parquet")
    words = page.section("Drift")
    found = re.search(r"The mean ELBO is (\S+) ± ([\d.]+) nats .* For this, (\d+) rows", words)
    assert found, words
    assert 250 <= int(found[3]) <= 400
    shift = elbo.mean() - elbo[:1000].mean() - 1
    assert abs(float(found[1]) - shift) < 3 * float(found[2])


def test_a_bundle_of_old_has_no_drift(batch_data: Path, tmp_path: Path) -> None:
    page = report(tmp_path, SCHEMA_1, batch_data / "x.parquet")
    assert "this version carries no held-out distribution" in page.section("Drift")
    assert len(page.pictures) == 4 * SHOWN


def test_needs_no_network_and_no_script_and_knows_light_and_dark(
    carrying: Bundle, batch_data: Path, tmp_path: Path
) -> None:
    page = report(tmp_path, carrying.path, batch_data / "x.parquet")
    assert not re.search(r"https?:|//[a-z]|url\(|@import", page.text)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "default-src 'none'" in page.text
    assert "prefers-color-scheme: dark" in page.text
    assert page.tags.count("svg") == 5


@pytest.fixture
def mixed(tmp_path: Path, x: Array) -> Path:
    """Rows with bad ones among them, and ids that are no HTML."""
    rows: list[bytes | None] = [row.tobytes() for row in x]
    for index in range(3, ROWS, 100):
        rows[index] = None
    for index in range(50, ROWS, 500):
        rows[index] = b"short"
    ids = [f"<b>&{index}" for index in range(ROWS)]
    path = tmp_path / "mixed.parquet"
    parquet.write_table(pa.table({"x": rows, "id": ids, "n": np.arange(ROWS)}), path)
    return path


def test_bad_rows_and_a_filter_shift_nothing(
    carrying: Bundle,
    mixed: Path,
    tmp_path: Path,
    x: Array,
    elbo: Array,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(held_out_comparison, "BATCH_ROWS", 64)  # several batches a part
    page = report(
        tmp_path,
        carrying.path,
        mixed,
        "--id",
        "id",
        "--on-error",
        "quarantine",
        "--where",
        "n >= 60",
    )
    number = np.arange(ROWS)
    good = (number % 100 != 3) & (number % 500 != 50) & (number >= 60)
    kept = number[good]
    lowest = kept[np.argsort(elbo[kept], kind="stable")[:SHOWN]]
    assert np.array_equal(page.pictures[0 : 2 * SHOWN : 2], x[lowest])
    assert "reason rows x is null, or holds a null 24 x is not an opaque 8-bit image" in re.sub(
        " +", " ", page.section("Rows without a score")
    )
    assert f"{good.sum():,} rows were scored" in page.words
    assert f"id <b>&{lowest[0]}" in page.words
    assert "b" in page.tags  # of the page itself
    assert f"id &lt;b&gt;&amp;{lowest[0]}" in page.text


def test_a_page_without_any_score_says_so(carrying: Bundle, tmp_path: Path) -> None:
    parquet.write_table(
        pa.table({"x": pa.array([None, b"?"], pa.binary())}), tmp_path / "bad.parquet"
    )
    page = report(
        tmp_path,
        carrying.path,
        tmp_path / "bad.parquet",
        "--on-error",
        "quarantine",
        "--max-bad",
        "100%",
    )
    assert page.section("Drift").strip() == "Unknown: no row was scored."
    assert "0 rows were scored" in page.words
    assert page.pictures == []


def test_a_job_that_was_finished_or_resumed_gives_the_same_page(
    carrying: Bundle, batch_data: Path, tmp_path: Path
) -> None:
    """Nothing is kept while rows are scored, so that nothing can be missing."""

    def body(page: Page) -> str:
        return re.sub(r"[\d,]+ rows/s( over [\d.,]+ s)?", "", page.text)

    whole = report(tmp_path, carrying.path, batch_data / "x.parquet", "--id", "id")
    again = report(tmp_path, carrying.path, batch_data / "x.parquet", "--id", "id")
    assert again.text == whole.text
    engine, out = Engine(carrying), tmp_path / "other"
    with pytest.raises(KeyboardInterrupt):
        run(
            engine,
            batch_data / "x.parquet",
            out,
            seed=0,
            num_samples=1,
            advance=StopAt(900, KeyboardInterrupt()),
        )
    assert len(list(out.glob("part-*"))) in (1, 2)
    (tmp_path / "out").rename(tmp_path / "first")
    out.rename(tmp_path / "out")
    resumed = report(tmp_path, carrying.path, batch_data / "x.parquet", "--id", "id")
    assert body(resumed) == body(whole)


def test_rows_that_changed_since_are_not_shown(carrying: Bundle, tmp_path: Path, x: Array) -> None:
    location = tmp_path / "x.parquet"
    parquet.write_table(table(x[::-1][:900]), location)
    rows = Rows(str(location))
    engine = Engine(carrying)
    scorer = Scorer(
        engine, provenance_of(Source(carrying), 0, 1), "score", rows.schema, ids=rows.ids
    )
    right = float(engine.score(x[::-1][400:401], 1, 0)["elbo"][0])
    found = fetch_x(
        [Extreme(1, 0, {}, right, 0, 0), Extreme(1, 1, {}, right - 9, 0, 0)], scorer, rows, 400
    )
    assert found[0] is not None
    assert np.array_equal(found[0], x[::-1][400])
    assert found[1] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--report", "r.html", "--operation", "encode"), "--report is about scores"),
        (("--report", "r.pdf"), "--report must end in .html"),
        (("--report", "none/r.html"), "cannot write none/r.html"),
    ],
    ids=["operation", "suffix", "folder"],
)
def test_a_report_that_cannot_be_made_is_refused_before_the_work(
    arguments: tuple[str, ...], message: str, batch_data: Path, tmp_path: Path
) -> None:
    result = vae_score(batch_data / "x.parquet", tmp_path / "out", "--model", SEALED, *arguments)
    assert isinstance(result.exception, UsageRefused)
    assert message in str(result.exception)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("report", ["out/r.html", "no/../out/r.html", "link/r.html", "in/r.html"])
def test_a_report_among_rows_is_refused(report: str, batch_data: Path, tmp_path: Path) -> None:
    """A reader of the folder would take it for rows, and the next job for another input."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.parquet").write_bytes((batch_data / "x.parquet").read_bytes())
    (tmp_path / "link").symlink_to(tmp_path / "out", target_is_directory=True)
    report = str(tmp_path / report)
    command = (tmp_path / "in", tmp_path / "out", "--model", SEALED, "--report", report)
    result = vae_score(*command)
    assert isinstance(result.exception, UsageRefused)
    assert result.exception.exit_code == 2
    name = "INPUT" if "in" in Path(report).parts else "OUTPUT"
    assert str(result.exception).startswith(f"--report must lie outside {name} {tmp_path}")
    assert not (tmp_path / "out").exists()
