"""Real tables, scikit-learn's breast-cancer and wine data, from training to a bundle's scores."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from sklearn.datasets import load_breast_cancer, load_wine

from pipeline.cli.data_loading import rows_to_evaluate
from pipeline.data.dataset import load_dataset
from pipeline.evaluation.evaluate import score_rows
from serving.batch.scorer import Scorer, provenance_of
from serving.bundle import PARITY
from serving.engine import Engine
from serving.errors import UsageRefused
from serving.io.rows import Rows
from serving.pyfunc_model import BundleModel
from serving.source import Source
from tests.trained_models import make_bundle, tiny_config, train_checkpoint


def write_csv(path: Path, content: Any) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*content.feature_names, "kind"])
        for row, target in zip(content.data, content.target, strict=True):
            writer.writerow([*row, content.target_names[target]])


def write_parquet(path: Path, content: Any) -> None:
    columns = dict(zip(content.feature_names, content.data.T, strict=True))
    parquet.write_table(pa.table({**columns, "kind": content.target}), path)


Case = tuple[Callable[[], Any], Callable[[Path, Any], None], str]
CASES: Mapping[str, Case] = {
    "breast cancer, CSV": (load_breast_cancer, write_csv, "x.csv"),
    "wine, Parquet": (load_wine, write_parquet, "x.parquet"),
}


@pytest.mark.parametrize(("fetch", "write", "name"), CASES.values(), ids=CASES.keys())
def test_a_real_table_trains_passes_parity_and_finds_anomalies(
    tmp_path: Path, fetch: Callable[[], Any], write: Callable[[Path, Any], None], name: str
) -> None:
    """A planted anomaly is a held-out row whose values are permuted over its columns."""
    content = fetch()
    write(tmp_path / name, content)
    source = str(tmp_path / name)
    dataset = load_dataset(source, valid_fraction=0.1, test_fraction=0.25, label="kind")
    held_out = dataset.test.x
    rows = {row.tobytes() for row in content.data.astype(np.float32)}
    assert {row.tobytes() for row in (*dataset.sample, *dataset.valid.x, *held_out)} == rows
    assert len(np.unique(np.asarray(dataset.test.labels))) == len(content.target_names)
    config = tiny_config(dataset, label="kind", latent_dim=4, epochs=20)
    bundle = make_bundle(tmp_path / "bundle", (train_checkpoint(dataset, config), dataset))
    assert bundle.read_json(PARITY)["verdict"] == "passed"
    assert bundle.manifest.likelihood == "gaussian"
    assert bundle.manifest.columns == tuple(content.feature_names)
    engine = Engine(bundle)
    planted = np.random.default_rng(0).permuted(held_out, axis=1)
    elbo, planted_elbo = (
        engine.score(x, num_samples=16, seed=0)["elbo"] for x in (held_out, planted)
    )
    assert np.isfinite(elbo).all()
    ranks = (planted_elbo[:, None] < elbo).mean(1)
    print(
        f"{name}: a planted row is below {ranks.mean():.1%} of {len(elbo)} held-out rows in the "
        f"mean, below {ranks.min():.1%} at least; ELBO {elbo.mean():.1f}, "
        f"planted {np.median(planted_elbo):.3g}"
    )
    assert ranks.min() >= 0.95


def test_columns_in_another_order_get_the_same_scores(tmp_path: Path) -> None:
    """Columns are found by the names in the training data, in whatever order they are."""
    wine = load_wine()
    columns = dict(zip(wine.feature_names, wine.data.T, strict=True))
    turned = dict(reversed(columns.items()))
    for name, table in (("x", columns), ("turned", {"id": np.arange(len(wine.data)), **turned})):
        parquet.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    source = str(tmp_path / "x.parquet")
    dataset = load_dataset(source, valid_fraction=0.1, test_fraction=0.25)
    trained = train_checkpoint(dataset, tiny_config(dataset, latent_dim=2))
    bundle = make_bundle(tmp_path / "bundle", (trained, dataset))
    scores = []
    for name in ("x", "turned"):
        rows = Rows(str(tmp_path / f"{name}.parquet"))
        made_by = provenance_of(Source(bundle), 0, 4)
        scorer = Scorer(Engine(bundle), made_by, "score", rows.schema, ids=rows.ids)
        (batch,) = rows.read(0, rows.total, scorer.x, rows.total)
        scores.append(scorer(batch)[0].column("elbo"))
    assert scores[0].equals(scores[1])
    frame = pa.table(turned).to_pandas()
    model = BundleModel()
    model.load_context(SimpleNamespace(artifacts={"bundle": str(bundle.path)}))
    answers = [model.predict(None, part) for part in (frame, frame[list(columns)])]
    np.testing.assert_array_equal(answers[0]["x_loc"], answers[1]["x_loc"])
    x = rows_to_evaluate(trained, str(tmp_path / "turned.parquet")).x
    np.testing.assert_array_equal(x, dataset.test.x)
    with pytest.raises(ValueError, match="learned from a column 'ash': the input"):
        model.predict(None, frame.rename(columns={"ash": "cash"}))
    others = pa.schema([field for field in batch.schema if field.name != "ash"])
    with pytest.raises(UsageRefused, match="the input has no column 'ash', which the"):
        Scorer(Engine(bundle), made_by, "score", others, ids=rows.ids)


def test_an_anomaly_that_no_single_column_shows_is_found(tmp_path: Path) -> None:
    """Each column is shuffled over the rows: its values remain, their correlations are lost."""
    write_csv(tmp_path / "x.csv", load_breast_cancer())
    source = str(tmp_path / "x.csv")
    dataset = load_dataset(source, valid_fraction=0.1, test_fraction=0.25, label="kind")
    sizes = {"hidden_dims": (128,), "latent_dim": 10}
    config = tiny_config(dataset, **sizes, epochs=100, learning_rate=5e-3, patience=20)
    model = train_checkpoint(dataset, config).model
    planted = np.random.default_rng(0).permuted(dataset.test.x, axis=0)
    elbo, planted_elbo = (score_rows(model, x) for x in (dataset.test.x, planted))
    ranks = (planted_elbo[:, None] < elbo).mean(1)
    print(f"a planted row is below {ranks.mean():.1%} of {len(elbo)} held-out rows in the mean")
    assert ranks.mean() >= 0.95
