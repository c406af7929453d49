"""A batch job whose parts are made by Spark's executors.

The parts are those of the local job; Spark only decides which executor makes which parts. So the
files have the same bytes, a task that is killed is repeated, and each engine can finish what the
other began.

The driver sends the bundle and this package. An executor needs Python with numpy, onnxruntime,
pandas and pyarrow (and pillow for images), and must reach input and output at the driver's paths or
URIs. Rows that Spark reads itself go through `serving.batch.spark_frame`.
Raises `UsageRefused` if pyspark or Java is missing, `VaeError` if Spark gives up.
"""

import contextlib
import functools
import json
import os
import re
import shutil
import sys
import tempfile
import warnings
import weakref
import zipfile
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

import serving
from serving import errors
from serving.batch.job import Job, Limit, OnError
from serving.batch.output import Counts, Output
from serving.batch.result_columns import ScoreChoice
from serving.batch.scorer import Provenance, Scorer
from serving.bundle import MANIFEST, Bundle, open_bundle
from serving.engine import Engine
from serving.errors import UsageRefused, VaeError, VerificationFailed
from serving.io.rows import Rows
from serving.normals import TABLE

if TYPE_CHECKING:
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

_PACKAGE = "vae_serving.zip"
_SOURCES = Path(serving.__file__).parent
_TASKS_PER_CORE = 4
"""Few tasks, so that each reads consecutive parts, but enough that the cores end together."""
_LOCAL = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "spark.driver.host": "127.0.0.1",
    "spark.log.level": "ERROR",
    "spark.ui.enabled": "false",
}
"""Settings for one machine: nothing listens to the network, and Java starts fast."""
_RAISED = re.compile(r"^serving\.errors\.(\w+): (.*)$", re.MULTILINE)
"""An error of this package in the trace of a task that Spark reports."""
_TRACE = re.compile(
    r"^(?:.*: )?Traceback \(most recent call last\):\n(?:[ \t].*\n)*(\S.*)$", re.MULTILINE
)
"""A trace of Python, and the error in its last line."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What an executor needs to build the scorer of the driver."""

    digest: str
    device: str
    provenance: Provenance
    operation: str
    schema: pa.Schema
    x: tuple[str, ...]
    ids: tuple[str, ...]
    choice: ScoreChoice

    def make(self) -> Scorer:
        """Build the scorer, in a process of an executor."""
        engine = open_engine(self.digest, self.device)
        made_by, operation, schema = self.provenance, self.operation, self.schema
        return Scorer(
            engine, made_by, operation, schema, x=self.x, ids=self.ids, choice=self.choice
        )


def recipe_of(scorer: Scorer, schema: pa.Schema) -> Recipe:
    """Return what is needed to build `scorer` again, for input of `schema`."""
    engine = scorer.engine
    digest = engine.bundle.manifest.digest
    return Recipe(
        digest,
        engine.device,
        scorer.provenance,
        scorer.operation,
        schema,
        scorer.x,
        scorer.ids,
        scorer.results.choice,
    )


@dataclass(frozen=True, slots=True)
class _Task:
    """Makes some of a job's parts."""

    recipe: Recipe
    rows: Rows
    output: Output
    batch_rows: int
    on_error: OnError
    limit: Limit
    parts: Sequence[int]

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Map positions in `parts` to counts."""
        scorer = self.recipe.make()
        job = Job(scorer, self.rows, self.output, self.batch_rows, self.on_error, self.limit)
        parts = [self.parts[position] for batch in batches for position in batch[0].to_pylist()]
        for counts in job.make(parts, workers=1):
            found = json.dumps(scorer.unknown.take())
            line = {"rows": counts.rows, "bad": counts.bad, "unknown": found}
            yield pa.RecordBatch.from_pylist([line])


@contextlib.contextmanager
def open_session(master: str) -> Iterator["SparkSession"]:
    """Start Spark, or use the one of `spark-submit`; it stops when the block ends.

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
    if master.startswith("local"):  # local-cluster, too: processes of this machine
        os.environ.setdefault("SPARK_LOCAL_IP", _LOCAL["spark.driver.host"])
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        builder = builder.config(map={**_LOCAL})
    try:
        return builder.getOrCreate()
    except (PySparkException, Py4JJavaError) as err:
        raise UsageRefused(f"Spark does not start with --master {master}: {_cause(err)}") from err


def execute_parts(
    session: "SparkSession", scorer: Scorer, rows: Rows, job: Job, parts: Sequence[int]
) -> Generator[Counts]:
    """Make parts of a job in the executors of Spark; yield their counts.

    Raises:
        VaeError: a task raised it, or Spark gave up.
    """
    if not parts:
        return
    context = session.sparkContext
    ship(context, scorer.engine.bundle)
    task = _Task(
        recipe_of(scorer, rows.schema),
        rows,
        job.output,
        job.batch_rows,
        job.on_error,
        job.limit,
        tuple(parts),
    )
    tasks = min(len(parts), _TASKS_PER_CORE * context.defaultParallelism)
    positions = session.range(0, len(parts), 1, tasks)
    with _task_errors():
        lines = positions.mapInArrow(task, "rows long, bad long, unknown string").collect()
    for line in lines:
        scorer.unknown.merge(json.loads(line["unknown"]))
        yield Counts(line["rows"], line["bad"])


def ship(context: "SparkContext", bundle: Bundle) -> None:
    """Send the bundle and this package to every executor, once for each digest."""
    from pyspark import SparkFiles

    def is_there(name: str) -> bool:
        return Path(SparkFiles.get(name)).exists()

    name = _shipped_name(bundle.manifest.digest)
    if is_there(name):
        return
    # executors fetch it when they start: it is kept as long as the context
    folder = Path(tempfile.mkdtemp(prefix="vae-spark-"))
    weakref.finalize(context, shutil.rmtree, folder, ignore_errors=True)
    archive = folder / f"{name}.zip"
    _zip(archive, bundle.path, [*bundle.manifest.files, MANIFEST])
    context.addArchive(f"{archive}#{name}")
    if not is_there(_PACKAGE):
        root = _SOURCES.parent
        files = [*_SOURCES.rglob("*.py"), _SOURCES / TABLE]
        sources = sorted(str(path.relative_to(root)) for path in files)
        _zip(folder / _PACKAGE, root, sources)
        context.addPyFile(str(folder / _PACKAGE))


@functools.lru_cache(maxsize=2)
def open_engine(digest: str, device: str) -> Engine:
    """Open the bundle that the driver sent, once in each process of an executor."""
    from pyspark import SparkFiles

    bundle = open_bundle(Path(SparkFiles.get(_shipped_name(digest))))
    if bundle.manifest.digest != digest:
        raise VerificationFailed(
            f"Spark delivered bundle {bundle.manifest.digest[:12]}, "
            f"but the driver sent {digest[:12]}"
        )
    return Engine(bundle, device=device)


def _shipped_name(digest: str) -> str:
    return f"vae-bundle-{digest}"


def _zip(archive: Path, folder: Path, names: Sequence[str]) -> None:
    with zipfile.ZipFile(archive, "w") as file:
        for name in names:
            file.write(folder / name, name)


def _require_java() -> None:
    if "PYSPARK_GATEWAY_PORT" in os.environ:  # spark-submit runs this, in Java
        return
    home = os.environ.get("JAVA_HOME")
    if shutil.which("java", path=f"{home}/bin" if home else None) is None:
        place = f"JAVA_HOME, {home}, has none" if home else "there is none on the path"
        raise UsageRefused(
            f"--engine spark needs a Java runtime, 17 or 21: {place}; install one and set JAVA_HOME"
        )


@contextlib.contextmanager
def _task_errors() -> Iterator[None]:
    """Raise the error of a task again; shorten all other errors of Spark to one line."""
    from py4j.protocol import Py4JJavaError
    from pyspark.errors import PySparkException

    try:
        yield
    except (PySparkException, Py4JJavaError) as err:
        found = _RAISED.search(str(err))
        kind = getattr(errors, found[1], None) if found else None
        if found and isinstance(kind, type) and issubclass(kind, VaeError):
            raise kind(found[2]) from err
        raise VaeError(f"Spark gave up: {_cause(err)}") from err


def _cause(err: Exception) -> str:
    """Return what Python raised in an executor, else the first line, without any traces."""
    java = getattr(err, "java_exception", None)
    text = str(java.getMessage() if java else err).strip() or type(err).__name__
    raised = _TRACE.findall(text)
    cause = raised[-1].strip() if raised else text.splitlines()[0]
    if cause.startswith("ModuleNotFoundError"):
        cause += "; executors need numpy, onnxruntime, pandas and pyarrow in their Python, which "
        cause += "PYSPARK_PYTHON names"
    return cause
