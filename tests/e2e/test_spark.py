"""A local Spark with processes of its own, and the bundle of the serving tests."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs, parquet
from pyspark.sql import SparkSession

from serving.batch import spark_frame, spark_job
from serving.batch.flags import flag_rows
from serving.batch.job import describe_job, run_job
from serving.batch.output import Output
from serving.batch.result_columns import ScoreChoice
from serving.batch.scorer import Scorer, provenance_of
from serving.bundle import open_bundle
from serving.engine import Engine
from serving.errors import DataRefused, UsageRefused
from serving.io.filesystems import Location, locate
from serving.io.rows import Rows
from serving.p_values import HeldOutScores
from serving.source import Source
from tests.e2e.conftest import VAE, run_vae
from tests.integration.java import make_java_home
from tests.serving.batch.reports import hold
from tests.serving.io.images import encode, png, turned

pytestmark = pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas")

BUNDLE = Path(__file__).parent.parent / "serving" / "bundle"
ROOT = Path(__file__).parent.parent.parent
ROWS = {"a.parquet": 90_000, "more/b é.parquet": 50_000}
WHERE, KEPT = "label < 9", 126_000
BAD = 70_000
"""A row of the second part that is null."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {
        "JAVA_HOME": str(make_java_home(tmp_path_factory.mktemp("java") / "home")),
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture(scope="module")
def session(environment: dict[str, str]) -> Iterator[SparkSession]:
    """Two cores; a task may fail three times."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with spark_job.open_session("local[2,4]") as session:
            yield session


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three parts of rows in two files, one row of them bad."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(4)
    for name, rows in ROWS.items():
        values = generator.integers(0, 256, (rows, 30), dtype=np.uint8).tobytes()
        x = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(30), rows, [None, pa.py_buffer(values)]
        ).to_pylist()
        if name == "a.parquet":
            x[BAD] = None
        (folder / name).parent.mkdir(exist_ok=True)
        table = pa.table({"x": pa.array(x, pa.binary(30)), "label": np.arange(rows) % 10})
        parquet.write_table(table, folder / name, row_group_size=40_000)
    return folder


@pytest.fixture(scope="module")
def job(data: Path) -> tuple[Scorer, Rows]:
    source, rows = Source(open_bundle(BUNDLE)), Rows(str(data), row_filter=WHERE)
    made_by = provenance_of(source, 0, 1)
    return Scorer(Engine(source.bundle), made_by, "score", rows.schema, ids=rows.ids), rows


@pytest.fixture(scope="module")
def local(job: tuple[Scorer, Rows], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that the local engine makes."""
    folder = tmp_path_factory.mktemp("local") / "out"
    scorer, rows = job
    output = Output(locate(str(folder)), describe_job(scorer, rows))
    run_job(scorer, rows, output, workers=1, on_error="quarantine")
    return files(folder)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (2500, 6, 5), dtype=np.uint8)


def files(folder: Path) -> dict[str, bytes]:
    """Content by name; without the summary, which says how long it took."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "_summary.json"
    }


def test_the_command_makes_the_files_of_the_local_engine_on_two_executors(
    data: Path, local: dict[str, bytes], environment: dict[str, str], tmp_path: Path
) -> None:
    """The environment of this Python is not activated, and executors are processes apart."""
    arguments = ["score", str(data), "out", "--model", str(BUNDLE), "--on-error", "quarantine"]
    arguments += ["--where", WHERE]
    arguments += ["--engine", "spark", "--report", "report.html"]
    arguments += ["--master", "local-cluster[2,1,1024]"]
    settings = environment | {"PATH": "/usr/bin:/bin"}
    result = run_vae(tmp_path, *arguments, command=VAE, **settings)
    assert result.returncode == 0, result.stderr
    assert f"{KEPT - 1:,} rows were scored" in (tmp_path / "report.html").read_text()
    made = files(tmp_path / "out")
    assert made.keys() == local.keys()
    assert {"part-00002.parquet", "_quarantine/part-00001.parquet", "_SUCCESS"} <= made.keys()
    assert made == local
    (line,) = result.stdout.splitlines()
    said = json.loads(line)
    assert said.pop("rows_per_s") > 0
    digest = open_bundle(BUNDLE).manifest.digest
    counts = {"rows": KEPT - 1, "bad": 1}
    report = {"report": "report.html", "drift_d": 1.0}  # random rows are unlike the model's
    assert said == {"out": "out", **counts, "version": None, "digest": digest, **report}


class Deadly(fs.FSSpecHandler):  # type: ignore[misc]
    """A file system on which one process is killed, as it gives a finished part its name."""

    def __init__(self, flag: Path) -> None:
        super().__init__(fsspec.filesystem("file"))
        self.flag, self.driver = flag, os.getpid()

    def move(self, src: str, dest: str) -> None:
        if os.getpid() != self.driver and "_quarantine" not in dest:
            try:
                self.flag.touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        super().move(src, dest)


def test_a_task_that_is_killed_is_done_again_with_the_same_result(
    session: SparkSession, job: tuple[Scorer, Rows], local: dict[str, bytes], tmp_path: Path
) -> None:
    scorer, rows = job
    flag, folder = tmp_path / "killed", tmp_path / "out"
    place = Location(fs.PyFileSystem(Deadly(flag)), str(folder))
    output = Output(place, describe_job(scorer, rows))
    execute = partial(spark_job.execute_parts, session, scorer, rows)
    summary = run_job(scorer, rows, output, workers=1, on_error="quarantine", execute=execute)
    assert flag.exists()
    assert (summary.rows, summary.bad) == (KEPT - 1, 1)
    assert files(folder) == local


def test_spark_finishes_what_the_local_engine_began(
    session: SparkSession, job: tuple[Scorer, Rows], local: dict[str, bytes], tmp_path: Path
) -> None:
    scorer, rows = job
    begun = ("_job.json", "part-00001.parquet", "_quarantine/part-00001.parquet")
    (tmp_path / "out" / "_quarantine").mkdir(parents=True)
    for name in begun:
        (tmp_path / "out" / name).write_bytes(local[name])
    before = (tmp_path / "out" / begun[1]).stat().st_ino
    output = Output(locate(str(tmp_path / "out")), describe_job(scorer, rows))
    execute = partial(spark_job.execute_parts, session, scorer, rows)
    summary = run_job(scorer, rows, output, workers=1, on_error="quarantine", execute=execute)
    assert (summary.rows, summary.bad) == (KEPT - 1, 1)
    assert files(tmp_path / "out") == local
    assert (tmp_path / "out" / begun[1]).stat().st_ino == before


def test_flags_are_those_of_the_local_engine(
    session: SparkSession, data: Path, x: np.ndarray, tmp_path: Path
) -> None:
    """Of another score than the default one, which the executors have to be told."""
    rows = Rows(str(data), row_filter=WHERE)
    kl = Engine(open_bundle(BUNDLE)).score(x, 1, 0)["kl"]
    kl = kl[kl < np.quantile(kl, 0.9)]
    held_out = HeldOutScores(1, 0, {"elbo": -kl, "kl": kl})
    source = Source(hold(BUNDLE, tmp_path / "bundle", held_out))
    made_by, choice = provenance_of(source, 0, 1), ScoreChoice(by="latent")
    engine = Engine(source.bundle)
    scorer = Scorer(engine, made_by, "score", rows.schema, ids=rows.ids, choice=choice)
    made = []
    for name, execute in (
        ("local", None),
        ("spark", partial(spark_job.execute_parts, session, scorer, rows)),
    ):
        output = Output(locate(str(tmp_path / name)), describe_job(scorer, rows, 0.2))
        flag = partial(flag_rows, output, schema=scorer.schema, held_out_rows=len(kl), fdr=0.2)
        summary = run_job(
            *(scorer, rows, output),
            workers=1,
            on_error="quarantine",
            execute=execute,
            flag=flag,
        )
        assert summary.flags is not None
        made.append((files(tmp_path / name), summary.flags))
    assert made[0] == made[1]
    assert 0 < made[0][1].flagged < KEPT


def test_a_bad_row_ends_the_job_with_the_error_of_the_local_engine(
    session: SparkSession, job: tuple[Scorer, Rows], tmp_path: Path
) -> None:
    scorer, rows = job
    said: list[str] = []
    for execute in (None, partial(spark_job.execute_parts, session, scorer, rows)):
        output = Output(locate(str(tmp_path / str(len(said)))), describe_job(scorer, rows))
        with pytest.raises(DataRefused, match="row 70000: x is null") as caught:
            run_job(scorer, rows, output, workers=1, execute=execute)
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_rows_of_a_data_frame_get_the_engine_s_bytes_on_every_partition(
    session: SparkSession, x: np.ndarray
) -> None:
    lists = [*x.reshape(len(x), -1).tolist(), [1, 2, 3], None]
    table = pa.table({"a `name.": np.arange(len(lists)), "x": lists})
    frame = session.createDataFrame(table).repartition(5)
    scores = spark_frame.score_frame(frame, str(BUNDLE), num_samples=4, seed=7).toArrow()
    scores = scores.sort_by("a `name.")
    engine = Engine(open_bundle(BUNDLE))
    assert scores["a `name."].to_pylist() == list(range(len(lists)))
    for name, value in engine.score(x, 4, 7).items():
        assert scores[name][: len(x)].to_numpy().tobytes() == value.tobytes()
        assert scores[name][len(x) :].to_pylist() == [None, None]
    reasons = ["x has the wrong size", "x is null, or holds a null"]
    assert scores["reason"].to_pylist() == [None] * len(x) + reasons
    made_by = {"model": "bundle", "digest": engine.bundle.manifest.digest, "seed": 7}
    for name, made in {**made_by, "num_samples": 4}.items():
        assert set(scores[name].to_pylist()) == {made}


def test_parquet_that_spark_reads_is_encoded_as_the_engine_does(
    session: SparkSession, x: np.ndarray, tmp_path: Path
) -> None:
    rows = [row.tobytes() for row in x]
    table = pa.table({"id": np.arange(len(x)), "image": pa.array(rows, pa.binary(30))})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=700)
    frame = session.read.parquet(str(tmp_path / "x.parquet"))
    codes = spark_frame.score_frame(frame, str(BUNDLE), operation="encode").toArrow().sort_by("id")
    for name, value in Engine(open_bundle(BUNDLE)).encode(x).items():
        assert np.array(codes[name].to_pylist(), np.float32).tobytes() == value.tobytes()


def test_columns_of_any_type_pass_by_and_time_stamps_pass_through(
    session: SparkSession, x: np.ndarray
) -> None:
    when = [datetime(2026, 3, 29, hour, 59, 59, 123456, UTC) for hour in range(24)]
    table = pa.table({"x": [row.tobytes() for row in x[:24]], "when": when})
    frame = session.createDataFrame(table).selectExpr(
        "*", "interval '1' year as age", "map('a', 1) as m", "cast(1.5 as decimal(38, 2)) as price"
    )
    scores = spark_frame.score_frame(frame, str(BUNDLE), ids=["when", "price"]).toArrow()
    scores = scores.sort_by("when")
    assert scores["when"].to_pylist() == when
    assert set(scores["price"].to_pylist()) == {Decimal("1.50")}
    expected = Engine(open_bundle(BUNDLE)).score(x[:24], 1, 0)["elbo"]
    assert scores["elbo"].to_numpy().tobytes() == expected.tobytes()
    passed = spark_frame.score_frame(frame, str(BUNDLE)).columns
    assert passed[:3] == ["when", "m", "price"]
    with pytest.raises(UsageRefused, match="column 'age' is interval year, which Arrow does not"):
        spark_frame.score_frame(frame, str(BUNDLE), ids=["age"])


def test_image_files_that_spark_reads_are_scored(
    session: SparkSession, x: np.ndarray, tmp_path: Path
) -> None:
    """Upright and whole, or with a reason: the last two are transparent and of 16 bits."""
    images = [encode(x[0]), encode(x[1], "BMP"), encode(x[2], "TIFF"), encode(x[3], "GIF")]
    lost = [png(np.dstack([x[5]] * 2), 8, 4), png(x[6].astype(np.uint16) << 8, 16, 0)]
    images += [turned(np.ascontiguousarray(np.rot90(x[4])), 6), *lost]
    for number, content in enumerate(images):
        (tmp_path / f"{number}.png").write_bytes(content)
    frame = session.read.format("binaryFile").load(str(tmp_path))
    scores = spark_frame.score_frame(frame, str(BUNDLE), x=["content"]).toArrow().sort_by("path")
    expected = Engine(open_bundle(BUNDLE)).score(x[:5], 1, 0)["elbo"]
    assert scores["elbo"][:5].to_numpy().tobytes() == expected.tobytes()
    reason = "x is not an opaque 8-bit image of the model's size and colours"
    assert scores["reason"].to_pylist() == [None] * 5 + [reason] * 2
    written = (tmp_path / f"{number}.png" for number in range(7))
    modified = [datetime.fromtimestamp(path.stat().st_mtime, UTC) for path in written]
    found = scores["modificationTime"].to_pylist()
    assert all(abs((a - b).total_seconds()) < 0.01 for a, b in zip(found, modified, strict=True))


def test_the_cause_of_an_error_in_an_executor_is_told(
    data: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """A Python without the packages, and one that does not exist."""
    bare = tmp_path / "bare" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    arguments = ["score", str(data), "out", "--model", str(BUNDLE), "--engine", "spark"]
    for python, cause in (
        (bare, "ModuleNotFoundError: No module named 'pyarrow'; executors need numpy, onnxruntime"),
        (tmp_path / "none", f'Cannot run program "{tmp_path / "none"}": error=2'),
    ):
        settings = environment | {"PYSPARK_PYTHON": str(python), "PYTHONPATH": ""}
        result = run_vae(tmp_path, *arguments, "--master", "local[1]", command=VAE, **settings)
        assert result.returncode == 1
        said = result.stderr.splitlines()[-1]
        assert said.startswith("error: Spark gave up: ")
        assert cause in said


def test_wide_rows_come_in_small_batches(
    session: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spark_frame, "BATCH_BYTES", 10 * 30)
    other = session.newSession()
    frame = other.createDataFrame(pa.table({"x": [bytes(30)] * 45}))
    assert spark_frame.score_frame(frame, str(BUNDLE)).count() == 45
    sizes = other.range(0, 45, 1, 1).mapInArrow(count_rows, "rows long").toArrow()
    assert sizes["rows"].to_pylist() == [10, 10, 10, 10, 5]
    assert other.conf.get("spark.sql.parquet.columnarReaderBatchSize") == "10"


def count_rows(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield pa.RecordBatch.from_pylist([{"rows": batch.num_rows}])


def test_a_worker_opens_a_bundle_once_and_onnxruntime_sends_nothing(session: SparkSession) -> None:
    frame = session.createDataFrame(pa.table({"x": [bytes(30)] * 64})).repartition(16)
    assert spark_frame.score_frame(frame, str(BUNDLE)).count() == 64
    workers = session.range(0, 16, 1, 16).mapInArrow(look, "opened long, telemetry string")
    found = workers.toArrow().to_pylist()
    assert max(worker["opened"] for worker in found) == 1
    assert {worker["telemetry"] for worker in found} == {"1"}


def look(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for _ in batches:
        opened = spark_job.open_engine.cache_info().misses
        telemetry = os.environ.get("ORT_DISABLE_TELEMETRY")
        yield pa.RecordBatch.from_pylist([{"opened": opened, "telemetry": telemetry}])


def test_without_java_or_pyspark_the_next_step_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT", raising=False)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(UsageRefused, match=r"Java runtime, 17 or 21: JAVA_HOME, .* has none"):
        enter(spark_job.open_session("local[1]"))
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageRefused, match="there is none on the path; install one"):
        enter(spark_job.open_session("local[1]"))
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)
    with pytest.raises(UsageRefused, match=r"pip install 'vae-pipeline\[spark\]'"):
        enter(spark_job.open_session("local[1]"))


def enter(context: Any) -> None:
    with context:
        pytest.fail("it started")


def test_a_master_without_spark_is_refused(data: Path, tmp_path: Path) -> None:
    arguments = ("score", str(data), "out", "--model", str(BUNDLE), "--master", "local[2]")
    result = run_vae(tmp_path, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: --master is Spark's: add --engine spark\n"
