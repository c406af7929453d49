"""Score on Spark: a batch job whose parts are made by the executors, and rows of any data frame.

A job on Spark is the local job, part for part: Spark only says who makes which parts. So the files
are the same bytes, a task that is killed is made again, and a job that one engine began another
finishes. Executors open the input and the output themselves, at the same paths or URIs as the
driver; they get the bundle and this package from it. They need onnxruntime and pyarrow.

`score_frame` scores rows that Spark reads. Only this file imports pyspark.
Raises `UsageRefused` where pyspark or Java is missing, `VaeError` where Spark gives up.
"""

import contextlib
import functools
import os
import re
import shutil
import tempfile
import warnings
import weakref
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from serving import errors
from serving.batch import BATCH_BYTES, Job, Limit, OnError
from serving.bundle import Bundle, open_bundle
from serving.columns import choose_columns
from serving.engine import Device, Engine
from serving.errors import UsageRefused, VaeError, VerificationFailed
from serving.output import Counts, Output
from serving.rows import Rows
from serving.scorer import Provenance, Scorer, layout_of, provenance_of
from serving.source import open_source

if TYPE_CHECKING:
    from pyspark import SparkContext
    from pyspark.sql import DataFrame, SparkSession

_TASKS_PER_CORE = 4
"""Few enough that a task reads a run of parts, many enough that cores end at the same time."""
_LOCAL = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "spark.driver.host": "127.0.0.1",
    "spark.log.level": "ERROR",
    "spark.ui.enabled": "false",
}
"""On one machine nothing listens to the network; Java, which only hands out parts, starts fast."""
_BATCH_SETTINGS = (
    "spark.sql.execution.arrow.maxRecordsPerBatch",
    "spark.sql.parquet.columnarReaderBatchSize",
)

_RAISED = re.compile(r"^serving\.errors\.(\w+): (.*)$", re.MULTILINE)
"""An error of this package in the trace that Spark gives of a task."""


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How an executor makes the driver's scorer."""

    digest: str
    device: Device
    provenance: Provenance
    operation: str
    schema: pa.Schema
    x: tuple[str, ...]
    ids: tuple[str, ...]

    def make(self) -> Scorer:
        engine = open_engine(self.digest, self.device)
        return Scorer(engine, self.provenance, self.operation, self.schema, x=self.x, ids=self.ids)


@dataclass(frozen=True, slots=True)
class _Task:
    """Makes some of a job's parts."""

    recipe: _Recipe
    rows: Rows
    output: Output
    batch_rows: int
    on_error: OnError
    limit: Limit
    parts: Sequence[int]

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Positions in `parts` to counts."""
        scorer = self.recipe.make()
        job = Job(scorer, self.rows, self.output, self.batch_rows, self.on_error, self.limit)
        parts = [self.parts[position] for batch in batches for position in batch[0].to_pylist()]
        for counts in job.make(parts, workers=1):
            yield pa.RecordBatch.from_pylist([{"rows": counts.rows, "bad": counts.bad}])


@dataclass(frozen=True, slots=True)
class _RowTask:
    """Scores the rows of a partition."""

    recipe: _Recipe
    columns: tuple[str, ...]
    """Names of the columns that come in, which Spark was not told: it takes no dots in names."""
    schema: pa.Schema

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Good rows with their results, bad rows with a reason."""
        scorer = self.recipe.make()
        for batch in batches:
            for rows in scorer(batch.rename_columns(list(self.columns))):
                if rows.num_rows:
                    yield self._complete(rows)

    def _complete(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """The columns of `schema`: cast, or null where `rows` has none."""
        columns = [
            rows.column(item.name).cast(item.type)
            if item.name in rows.schema.names
            else pa.nulls(rows.num_rows, item.type)
            for item in self.schema
        ]
        return pa.record_batch(columns, schema=self.schema)


@contextlib.contextmanager
def open_session(master: str) -> Iterator["SparkSession"]:
    """Start Spark, or take the one of `spark-submit`; it stops when the block ends.

    Raises:
        UsageRefused: pyspark or Java is missing, or Spark does not start.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "PySpark does not yet fully support pandas")
        session = _start(master)
        try:
            yield session
        finally:
            session.stop()


def _start(master: str) -> "SparkSession":
    try:
        from py4j.protocol import Py4JJavaError
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError as err:
        raise UsageRefused(
            "--engine spark needs pyspark: pip install 'vae-pipeline[spark]'"
        ) from err
    _require_java()
    builder = SparkSession.builder.appName("vae score").master(master)
    if master.startswith("local"):
        os.environ.setdefault("SPARK_LOCAL_IP", _LOCAL["spark.driver.host"])
        builder = builder.config(map={**_LOCAL})
    try:
        return builder.getOrCreate()
    except (PySparkException, Py4JJavaError) as err:
        raise UsageRefused(
            f"Spark does not start with --master {master}: {_first_line(err)}"
        ) from err


def make_parts(session: "SparkSession", job: Job, parts: Sequence[int]) -> Iterator[Counts]:
    """Make parts of a job in Spark's executors; give the counts of each.

    Raises:
        VaeError: what a task raised, or Spark gave up.
    """
    if not parts:
        return
    context = session.sparkContext
    ship(context, job.scorer.engine.bundle)
    task = _Task(
        _recipe(job.scorer, job.rows.schema),
        job.rows,
        job.output,
        job.batch_rows,
        job.on_error,
        job.limit,
        tuple(parts),
    )
    tasks = min(len(parts), _TASKS_PER_CORE * context.defaultParallelism)
    positions = session.range(0, len(parts), 1, tasks)
    with _task_errors():
        counts = positions.mapInArrow(task, "rows long, bad long").collect()
    for line in counts:
        yield Counts(line["rows"], line["bad"])


def score_frame(
    frame: "DataFrame",
    model: str,
    *,
    operation: str = "score",
    x: Sequence[str] = (),
    ids: Sequence[str] = (),
    num_samples: int = 1,
    seed: int = 0,
) -> "DataFrame":
    """Score the rows of a data frame: ids, results, what made them, and `reason`.

    A bad row has null results and a reason, every other row has no reason. An alias in `model` is
    resolved now. The frame's session reads and hands over rows in batches of bounded bytes from
    now on.

    Args:
        frame: holds `x` in the layouts of `serving.columns`.
        model: a bundle folder on the driver, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        operation: `score`, `encode` or `reconstruct`.
        x: columns that hold `x`; empty for `x`, `image` or all the numbers.
        ids: columns that are passed through; empty for all but those of `x`.
        num_samples: noise draws a row.
        seed: of the noise.
    """
    from pyspark.sql import functions
    from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema

    source = open_source(model)
    engine = Engine(source.bundle)
    schema = to_arrow_schema(frame.schema)
    columns = choose_columns(schema, x, ids, layout_of(engine))
    ids = ids or [name for name in frame.columns if name not in columns]
    made_by = provenance_of(source, seed, num_samples)
    scorer = Scorer(engine, made_by, operation, schema, x=columns, ids=ids)
    context = frame.sparkSession.sparkContext
    ship(context, source.bundle)
    _bound_batches(frame.sparkSession, scorer.layout.row_bytes)
    outputs = [tensor.name for tensor in engine.operations[operation].outputs]
    found = pa.schema([_plain(scorer.schema.field(name)) for name in (*ids, *outputs)])
    found = found.append(pa.field("reason", pa.string()))
    needed = tuple(dict.fromkeys((*columns, *ids)))
    task = _RowTask(_recipe(scorer, schema), needed, found)
    chosen = frame.select(*map(_quoted, needed)).toDF(*(f"c{i}" for i in range(len(needed))))
    results = chosen.mapInArrow(task, from_arrow_schema(found))
    made = {
        "model": functions.lit(made_by.model),
        "version": functions.lit(made_by.version),
        "digest": functions.lit(made_by.digest),
        "seed": functions.lit(seed).cast("long"),
        "num_samples": functions.lit(num_samples).cast("long"),
    }
    constants = [value.alias(name) for name, value in made.items()]
    return results.select(*map(_quoted, [*ids, *outputs]), *constants, "reason")


def ship(context: "SparkContext", bundle: Bundle) -> None:
    """Send the bundle and this package to every executor, once for each digest."""
    from pyspark import SparkFiles

    name = _shipped_name(bundle.manifest.digest)
    if Path(SparkFiles.get(name)).exists():
        return
    # executors fetch it when they come up: it stays as long as the context
    folder = Path(tempfile.mkdtemp(prefix="vae-spark-"))
    weakref.finalize(context, shutil.rmtree, folder, ignore_errors=True)
    archive = folder / f"{name}.zip"
    _zip(archive, bundle.path, [*bundle.manifest.files, "manifest.json"])
    context.addArchive(f"{archive}#{name}")
    package = Path(__file__).parent
    sources = [f"{package.name}/{path.name}" for path in sorted(package.glob("*.py"))]
    _zip(folder / "vae_serving.zip", package.parent, sources)
    context.addPyFile(str(folder / "vae_serving.zip"))


@functools.lru_cache(maxsize=2)
def open_engine(digest: str, device: Device) -> Engine:
    """Open the bundle that was sent here; once for each process of an executor."""
    from pyspark import SparkFiles

    bundle = open_bundle(Path(SparkFiles.get(_shipped_name(digest))))
    if bundle.manifest.digest != digest:
        raise VerificationFailed(
            f"Spark delivered bundle {bundle.manifest.digest[:12]}, the driver sent {digest[:12]}"
        )
    return Engine(bundle, device=device)


def _shipped_name(digest: str) -> str:
    return f"vae-bundle-{digest}"


def _zip(archive: Path, folder: Path, names: Sequence[str]) -> None:
    with zipfile.ZipFile(archive, "w") as file:
        for name in names:
            file.write(folder / name, name)


def _recipe(scorer: Scorer, schema: pa.Schema) -> _Recipe:
    engine = scorer.engine
    digest = engine.bundle.manifest.digest
    operation, made_by = scorer.operation, scorer.provenance
    return _Recipe(digest, engine.device, made_by, operation, schema, scorer.x, scorer.ids)


def _plain(item: pa.Field) -> pa.Field:
    """The field in a layout that Spark takes from Python."""
    kind = item.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_fixed_size_list(kind):
        kind = pa.list_(kind.value_type)
    return pa.field(item.name, kind)


def _quoted(name: str) -> str:
    escaped = name.replace("`", "``")
    return f"`{escaped}`"


def _bound_batches(session: "SparkSession", row_bytes: int) -> None:
    """Let Spark read and hand over few rows at once where rows are wide; it counts rows only."""
    for setting in _BATCH_SETTINGS:
        rows = min(int(session.conf.get(setting) or 0), BATCH_BYTES // row_bytes)
        session.conf.set(setting, str(max(1, rows)))


def _require_java() -> None:
    if "PYSPARK_GATEWAY_PORT" in os.environ:  # spark-submit runs this, in Java
        return
    home = os.environ.get("JAVA_HOME")
    if shutil.which("java", path=f"{home}/bin" if home else None) is None:
        place = f"JAVA_HOME, {home}, holds none" if home else "there is none on the path"
        raise UsageRefused(
            f"--engine spark needs a Java runtime, 17 or 21: {place}; install one and set JAVA_HOME"
        )


@contextlib.contextmanager
def _task_errors() -> Iterator[None]:
    """Raise again what a task raised; one line for all else that Spark says."""
    from py4j.protocol import Py4JJavaError
    from pyspark.errors import PySparkException

    try:
        yield
    except (PySparkException, Py4JJavaError) as err:
        found = _RAISED.search(str(err))
        kind = getattr(errors, found[1], None) if found else None
        if found and isinstance(kind, type) and issubclass(kind, VaeError):
            raise kind(found[2]) from err
        raise VaeError(f"Spark gave up: {_first_line(err)}") from err


def _first_line(err: Exception) -> str:
    """What went wrong, without the traces of two languages."""
    java = getattr(err, "java_exception", None)
    text = str(java.getMessage() if java else err).strip()
    return (text or type(err).__name__).splitlines()[0]
