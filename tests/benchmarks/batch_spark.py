"""The local engine beside Spark: MLflow's own `spark_udf`, and this project's two ways.

`python -m tests.benchmarks.batch_spark 1000000` takes as many rows. All read the same Parquet of
MNIST, write Parquet and have two cores. Spark is up, and warm from a round that is not counted.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pyarrow as pa
from pyarrow import parquet
from pyspark.sql import SparkSession

from pipeline.data.dataset import load_dataset
from serving.batch import spark_frame, spark_job
from serving.batch.job import describe_job, run_job
from serving.batch.output import Output
from serving.batch.scorer import Scorer, provenance_of
from serving.engine import Engine
from serving.io.filesystems import locate
from serving.io.rows import Rows
from serving.source import open_source
from tests.benchmarks.measure import Row, best_in_turns
from tests.integration.java import make_java_home

ROWS = 140_000
CORES = 2
MODEL = "models:/vae/1"
_GROUP_ROWS = 10_000
"""Spark reads a row group in one task: a file of few has work for few cores."""
_SCORES = "elbo float, log_likelihood float, kl float, iw_elbo float"
_GOALS = {
    "vae score": "below 0.333x",
    "vae score --engine spark": "below 1x",
    "score_frame": "below 1x",
}


def measure(rows: int = ROWS) -> Iterator[Row]:
    """Score `rows` rows of MNIST, lists of uint8, by a model of the default size."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "x.parquet"
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        os.environ["JAVA_HOME"] = str(make_java_home(folder / "java"))
        os.environ["PYSPARK_PYTHON"] = sys.executable
        command = [sys.executable, "-m", "pipeline.cli", "run", "--epochs", "1", "--no-promote"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        _write_rows(data, rows)
        with spark_job.open_session(f"local[{CORES}]") as session:
            ways: dict[str, Callable[[], object]] = {
                "vae score": partial(_job, folder / "out", data, None),
                "vae score --engine spark": partial(_job, folder / "out", data, session),
                "score_frame": partial(_frame, folder / "out", data, session),
                "spark_udf": partial(_udf, folder / "out", data, session),
            }
            seconds = dict(zip(ways, best_in_turns(*ways.values(), rounds=1), strict=True))
    for way, goal in _GOALS.items():
        beside = seconds["spark_udf"]
        yield Row(f"{rows:,} rows, {way} / spark_udf", seconds[way], beside, goal)


def _write_rows(data: Path, rows: int) -> None:
    """MNIST as often as it takes, a list of uint8 a row."""
    x = load_dataset("mnist", valid_fraction=0.1, test_fraction=0.1).sample
    x = x.reshape(len(x), -1)
    kind = pa.list_(pa.uint8())
    with parquet.ParquetWriter(data, pa.schema([("id", pa.int64()), ("x", kind)])) as writer:
        for start in range(0, rows, _GROUP_ROWS):
            index = np.arange(start, min(start + _GROUP_ROWS, rows))
            lists = pa.FixedSizeListArray.from_arrays(x[index % len(x)].ravel(), x.shape[1])
            writer.write_table(pa.table({"id": index, "x": lists.cast(kind)}))


def _job(out: Path, data: Path, session: SparkSession | None) -> None:
    """What `vae score` does after its start."""
    shutil.rmtree(out, ignore_errors=True)
    source, rows = open_source(MODEL), Rows(str(data), ["id"])
    made_by = provenance_of(source, 0, 1)
    scorer = Scorer(Engine(source.bundle), made_by, "score", rows.schema, ids=rows.ids)
    execute = None if session is None else partial(spark_job.execute_parts, session, scorer, rows)
    output = Output(locate(str(out)), describe_job(scorer, rows))
    run_job(scorer, rows, output, workers=CORES, execute=execute)


def _frame(out: Path, data: Path, session: SparkSession) -> None:
    """`mapInArrow` over the scorer, between Spark's own reader and writer."""
    scores = spark_frame.score_frame(session.read.parquet(str(data)), MODEL)
    scores.write.parquet(str(out), mode="overwrite")


def _udf(out: Path, data: Path, session: SparkSession) -> None:
    """What MLflow offers for a registered version."""
    params = {"operation": "score", "seed": 0, "num_samples": 1}
    score = mlflow.pyfunc.spark_udf(
        session, MODEL, result_type=_SCORES, env_manager="local", params=params
    )
    frame = session.read.parquet(str(data)).select("id", score("x").alias("scores"))
    frame.select("id", "scores.*").write.parquet(str(out), mode="overwrite")


if __name__ == "__main__":
    for row in measure(*map(int, sys.argv[1:])):
        print(row, flush=True)
