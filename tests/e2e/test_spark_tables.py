"""Rows of a mixed table on a local Spark have the bytes that the engine gives them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyarrow import dataset, parquet
from pyspark.sql import SparkSession

from pipeline.registry.versions import register_bundle
from pipeline.tracking import tracked_run
from serving.batch import spark_job
from serving.bundle import open_bundle
from serving.engine import Engine
from serving.spark_frame import score_frame
from serving.table_cells import TableEncoder
from tests.e2e.conftest import VAE, run_vae
from tests.integration.java import make_java_home
from tests.mixed_rows import draw_table, with_oddities
from tests.serving.conftest import MIXED

pytestmark = [
    pytest.mark.slow(40),
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # mlflow's and pyspark's own
]

ROOT = Path(__file__).parent.parent.parent
SEED, SAMPLES = 7, 3
TABLE = with_oddities(draw_table(70, seed=5))
SCORES = ("elbo", "log_likelihood", "kl", "iw_elbo")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = make_java_home(tmp_path_factory.mktemp("java") / "home")
    return {"JAVA_HOME": str(home), "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def session(environment: dict[str, str]) -> Iterator[SparkSession]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with spark_job.open_session("local[2]") as session:
            yield session


@pytest.fixture(scope="module")
def frame(session: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The rows in three partitions, in another order of columns."""
    path = tmp_path_factory.mktemp("rows") / "x.parquet"
    parquet.write_table(TABLE.select(TABLE.column_names[::-1]), path)
    return session.read.parquet(str(path)).repartition(3)


@pytest.fixture(scope="module")
def expected() -> Mapping[str, np.ndarray]:
    bundle = open_bundle(MIXED)
    assert bundle.manifest.schema is not None
    arrays = {n: TABLE.column(n).to_pandas().to_numpy(object) for n in TABLE.column_names}
    x = TableEncoder(bundle.manifest.schema).encode_arrays(arrays).x
    return Engine(bundle).score(x, SAMPLES, SEED)


def check(found: pd.DataFrame, expected: Mapping[str, np.ndarray]) -> None:
    found = found.set_index("key").loc[TABLE.column("key").to_pylist()]
    for name in SCORES:
        assert found[name].to_numpy(np.float32).tobytes() == expected[name].tobytes(), name


def test_a_data_frame(frame: Any, expected: Mapping[str, np.ndarray]) -> None:
    scored = score_frame(frame, str(MIXED), num_samples=SAMPLES, seed=SEED)
    found = scored.toPandas()
    assert found["reason"].isna().all()
    check(found, expected)


def test_the_command_on_spark(
    environment: dict[str, str], tmp_path: Path, expected: Mapping[str, np.ndarray]
) -> None:
    parquet.write_table(TABLE, tmp_path / "x.parquet")
    arguments = ["score", "x.parquet", "out", "--model", str(MIXED), "--id", "key"]
    arguments += ["--seed", str(SEED), "--num-samples", str(SAMPLES)]
    arguments += ["--engine", "spark", "--master", "local[2]"]
    result = run_vae(tmp_path, *arguments, command=VAE, **environment)
    assert result.returncode == 0, result.stderr
    check(dataset.dataset(tmp_path / "out").to_table().to_pandas(), expected)


def test_mlflow_s_udf(
    frame: Any,
    session: SparkSession,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    expected: Mapping[str, np.ndarray],
) -> None:
    import mlflow

    monkeypatch.setattr("pipeline.registry.versions.parity_faults", lambda *_, **__: [])
    with tracked_run("test") as run:
        version = register_bundle(run, open_bundle(MIXED), "accounts")
    params = {"operation": "score", "seed": SEED, "num_samples": SAMPLES}
    udf = mlflow.pyfunc.spark_udf(
        session,
        f"models:/accounts/{version}",
        result_type=", ".join(f"{name} float" for name in SCORES),
        env_manager="local",
        params=params,
    )
    scored = frame.withColumn("scores", udf()).select("key", "scores.*")
    check(scored.toPandas(), expected)
