"""The report of `vae score` with MLflow runs, tables and trained models."""

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import Result
from pyarrow import dataset, parquet
from scipy import stats

from serving.bundle import Bundle
from serving.engine import Engine
from serving.errors import VaeError
from serving.mlflow_store import connect
from tests.benchmarks.anomaly import area_error, find_area
from tests.benchmarks.engine import export_untrained
from tests.serving.batch.reports import Page, vae_score
from tests.trained_models import Trained

MANUAL = Path(__file__).parents[2] / "docs" / "batch.md"


def score(folder: Path, x: np.ndarray, bundle: Path, *arguments: object) -> Result:
    np.save(folder / "x.npy", x)
    report = ("--model", bundle, "--report", folder / "report.html")
    return vae_score(folder / "x.npy", folder / "scores", *report, *arguments)


@pytest.mark.parametrize("by", ["option", "environment"])
def test_the_report_and_its_figures_go_to_the_run(
    by: str,
    store: Path,
    tmp_path: Path,
    sealed: Bundle,
    trained: Trained,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = connect()
    run_id = client.create_run(client.create_experiment("scores")).info.run_id
    named: tuple[object, ...] = ("--run-id", run_id)
    if by == "environment":  # `mlflow run` sets it
        monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
        named = ()
    x = trained[1].test.x
    result = score(tmp_path, x, sealed.path, *named)
    assert result.exit_code == 0, result.output
    fetched = Path(client.download_artifacts(run_id, "report.html", str(tmp_path)))
    assert fetched.read_bytes() == (tmp_path / "report.html").read_bytes()
    metrics = client.get_run(run_id).data.metrics
    elbo = Engine(sealed).score(x, 1, 0)["elbo"].astype(np.float64)
    assert metrics["score_rows"] == len(x)
    assert metrics["score_bad"] == 0
    assert metrics["score_elbo"] == pytest.approx(elbo.mean(), rel=1e-9)
    assert metrics["score_drift_d"] == json.loads(result.stdout)["drift_d"]


def test_held_out_rows_do_not_drift_from_themselves_with_any_seed(
    tmp_path: Path, sealed: Bundle, trained: Trained
) -> None:
    x = trained[1].test.x
    shuffled = np.random.default_rng(0).permutation(x)  # so that no row meets its own noise
    for seed in range(20):
        draws = ("--seed", seed, "--num-samples", (1, 16)[seed % 2])
        result = score(tmp_path, shuffled, sealed.path, "--overwrite", *draws)
        assert json.loads(result.stdout)["drift_d"] < 0.15, seed
        words = Page(tmp_path / "report.html").section("Drift")
        found = re.search(r"ELBO is (\S+) ± ([\d.]+) nats.*p = ([\d.]+)\. ", words)
        assert found, words
        assert float(found[3]) > 0.1, seed
        assert abs(float(found[1])) < 2 * float(found[2]), seed
    result = score(tmp_path, x, sealed.path, "--overwrite")
    assert json.loads(result.stdout)["drift_d"] <= 2 / len(x)
    turned = score(tmp_path, 255 - x, sealed.path, "--overwrite")
    assert json.loads(turned.stdout)["drift_d"] == 1
    words = Page(tmp_path / "report.html").section("Drift")
    assert "D = 1.000 of 1" in words
    assert "100.00% of the rows lie below" in words


def test_an_unknown_run_is_refused_before_any_row_is_scored(
    store: Path, tmp_path: Path, sealed: Bundle, trained: Trained
) -> None:
    result = score(tmp_path, trained[1].test.x, sealed.path, "--run-id", "0" * 32)
    assert isinstance(result.exception, VaeError)
    assert "0" * 32 in str(result.exception)
    assert not (tmp_path / "scores").exists()


def test_rows_of_a_table_are_shown_as_features(
    tmp_path: Path, trained_table: Trained, sealed_table: Bundle
) -> None:
    x = trained_table[1].test.x.copy()
    x[17, 3] = 9000.5  # far from the others
    names = ["speed", "load", "heat", "flow"]
    table = pa.table(
        {"who": [f"w{row}" for row in range(len(x))]} | dict(zip(names, x.T, strict=True))
    )
    parquet.write_table(table, tmp_path / "x.parquet")
    result = vae_score(
        tmp_path / "x.parquet",
        tmp_path / "scores",
        "--model",
        sealed_table.path,
        "--id",
        "who",
        "--report",
        tmp_path / "report.html",
    )
    assert result.exit_code == 0, result.output
    page = Page(tmp_path / "report.html")
    words = page.section("Lowest ELBO").split()
    assert words[:9] == ["who", "elbo", "log_likelihood", "kl", "p_value", *names]
    assert words[9] == "w17"
    assert words[14:18] == [f"{value:.4g}" for value in x[17]]
    assert words[18] == "reconstruction"
    expected = Engine(sealed_table).reconstruct(x[17:18])[0]
    assert words[19:23] == [f"{value:.4g}" for value in expected]
    line = re.search(r"<tr class=\"mild\">(.*?)</tr>", page.text)
    assert line
    assert line[1].startswith("<td>reconstruction</td>")  # it is no value of kl
    assert line[1].count('<td class="n">') == 4 + len(names)
    assert page.pictures == []


def test_the_area_under_the_roc_curve_equals_that_of_scipy() -> None:
    generator = np.random.default_rng(0)
    positive = generator.random(400) < 0.2
    scores = np.round(generator.normal(positive, 1.0), 1)  # with ties
    area = find_area(scores, positive)
    reference = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert area == pytest.approx(reference / positive.sum() / (~positive).sum(), abs=1e-12)
    draws = generator.integers(0, 400, (300, 400))
    spread = np.std([find_area(scores[rows], positive[rows]) for rows in draws])
    assert area_error(area, positive) == pytest.approx(spread, rel=0.2)


def test_the_elbo_separates_rows_of_another_kind(sealed: Bundle, trained: Trained) -> None:
    """A small version of the benchmark: images of two bars, where the training data has one."""
    x = trained[1].test.x
    mix = np.concatenate([x, np.maximum(x, np.roll(x, 2, axis=1))])
    unusual = np.arange(len(mix)) >= len(x)
    elbo = Engine(sealed).score(mix, 1, 0)["elbo"]
    assert find_area(-elbo, unusual) > 0.95


def test_the_anomaly_example_of_the_manual_runs(tmp_path: Path) -> None:
    """An untrained model takes the place of the trained one."""
    make, area = re.findall(r"```python\n(.*?)```", MANUAL.read_text(), re.DOTALL)
    run = partial(subprocess.check_output, cwd=tmp_path, text=True)
    run([sys.executable, "-c", make])
    assert np.load(tmp_path / "known.npy", mmap_mode="r").shape == (54_051, 28, 28)
    bundle, _, _ = export_untrained(tmp_path / "bundle")
    arguments = ("--model", bundle.path, "--id", "label", "--report", tmp_path / "report.html")
    result = vae_score(tmp_path / "mix.parquet", tmp_path / "mix_scores", *arguments)
    assert json.loads(result.stdout)["rows"] == 18_991
    scores = dataset.dataset(tmp_path / "mix_scores").to_table().to_pandas()
    some = scores[scores["label"] != "9"]
    expected = find_area(-some["elbo"].to_numpy(), (some["label"] == "turned").to_numpy())
    assert f"turned by elbo: AUROC {expected:.3f}\n" in run([sys.executable, "-c", area])
