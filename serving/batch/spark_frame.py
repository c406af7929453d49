"""Score the rows of a Spark DataFrame with `mapInArrow`, over the scorer of the other jobs.

The result of a row has the same bytes for any partitions and batches. Raises the errors of
`serving.batch.spark_job`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from serving.batch.job import BATCH_BYTES
from serving.batch.result_columns import ScoreChoice
from serving.batch.scorer import Scorer, layout_of, provenance_of
from serving.batch.spark_job import Recipe, recipe_of, ship
from serving.engine import Engine
from serving.errors import UsageRefused
from serving.io.column_choice import choose_columns
from serving.p_values import default_samples
from serving.source import open_source

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_PLAIN = ScoreChoice()
_BATCH_SETTINGS = (
    "spark.sql.execution.arrow.maxRecordsPerBatch",
    "spark.sql.parquet.columnarReaderBatchSize",
)


def score_frame(
    frame: "DataFrame",
    model: str,
    *,
    operation: str = "score",
    x: Sequence[str] = (),
    ids: Sequence[str] = (),
    num_samples: int | None = None,
    seed: int = 0,
    choice: ScoreChoice = _PLAIN,
    verify_key: Path | None = None,
) -> "DataFrame":
    """Score the rows of a DataFrame; return ids, results, what made them, and `reason`.

    A bad row has null results and a reason; every other row has no reason. An alias in `model` is
    resolved now. From now on, the session of the frame reads and passes on rows in batches of
    bounded size.

    Args:
        frame: holds `x` in the layouts of `serving.io.columns`.
        model: a bundle folder on the driver, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        operation: `score`, `encode` or `reconstruct`.
        x: columns that hold `x`; if empty, those of the model, `x`, `image` or all numbers.
        ids: columns that are passed through; if empty, all but those of `x` and intervals of
            the calendar, which Arrow does not have.
        num_samples: noise draws per row; if None, as many as the held-out rows have.
        seed: seed of the noise.
        choice: what is wanted of scores, such as the columns that explain them.
        verify_key: file on the driver of the public key that the model must be signed with.
            Executors open just the bundle of the digest that the driver verified.
    """
    from pyspark.sql import functions
    from pyspark.sql.pandas.types import from_arrow_schema

    source = open_source(model, verify_key)
    engine = Engine(source.bundle)
    schema = _arrow_schema(frame, (*x, *ids))
    columns = choose_columns(schema, x, ids, layout_of(engine))
    ids = ids or [name for name in schema.names if name not in columns]
    draws = num_samples or default_samples(source.bundle, operation)
    made_by = provenance_of(source, seed, draws)
    scorer = Scorer(engine, made_by, operation, schema, x=columns, ids=ids, choice=choice)
    context = frame.sparkSession.sparkContext
    ship(context, source.bundle)
    _bound_batches(frame.sparkSession, scorer.layout.row_bytes)
    outputs = [item.name for item in scorer.results.fields]
    found = pa.schema([_plain(scorer.schema.field(name)) for name in (*ids, *outputs)])
    found = found.append(pa.field("reason", pa.string()))
    needed = tuple(dict.fromkeys((*columns, *ids)))
    task = _RowTask(recipe_of(scorer, schema), needed, found)
    chosen = frame.select(*map(_quoted, needed)).toDF(*(f"c{i}" for i in range(len(needed))))
    results = chosen.mapInArrow(task, from_arrow_schema(found))
    made = {
        "model": functions.lit(made_by.model),
        "version": functions.lit(made_by.version),
        "digest": functions.lit(made_by.digest),
        "seed": functions.lit(seed).cast("long"),
        "num_samples": functions.lit(draws).cast("long"),
    }
    constants = [value.alias(name) for name, value in made.items()]
    return results.select(*map(_quoted, [*ids, *outputs]), *constants, "reason")


@dataclass(frozen=True, slots=True)
class _RowTask:
    """Scores the rows of a partition."""

    recipe: Recipe
    columns: tuple[str, ...]
    """Names of the input columns. Spark gets other names, since it accepts no dots in them."""
    schema: pa.Schema

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield good rows with their results, and bad rows with a reason."""
        scorer = self.recipe.make()
        for batch in batches:
            for rows in scorer(batch.rename_columns(list(self.columns))):
                if rows.num_rows:
                    yield self._complete(rows)

    def _complete(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Return the columns of `schema`, cast; those that `rows` does not have are null."""
        columns = [
            rows.column(item.name).cast(item.type)
            if item.name in rows.schema.names
            else pa.nulls(rows.num_rows, item.type)
            for item in self.schema
        ]
        return pa.record_batch(columns, schema=self.schema)


def _arrow_schema(frame: "DataFrame", chosen: Sequence[str]) -> pa.Schema:
    """Return the types in Arrow of all columns that have one; refuse `chosen` ones that have none.

    Raises:
        UsageRefused: Arrow has no type for a chosen column.
    """
    from pyspark.sql.types import CalendarIntervalType, YearMonthIntervalType

    intervals = (CalendarIntervalType, YearMonthIntervalType)
    foreign = {
        item.name: item.dataType for item in frame.schema if isinstance(item.dataType, intervals)
    }
    for name in chosen:
        if name in foreign:
            raise UsageRefused(
                f"column {name!r} is {foreign[name].simpleString()}, which Arrow does not have: "
                "cast it to a number or a string"
            )
    return frame.drop(*foreign).limit(0).toArrow().schema


def _plain(item: pa.Field) -> pa.Field:
    """Return the field with a type that Spark accepts from Python."""
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
    """Let Spark read and pass on fewer rows at once if rows are wide: it counts only rows."""
    for setting in _BATCH_SETTINGS:
        rows = min(int(session.conf.get(setting) or 0), BATCH_BYTES // row_bytes)
        session.conf.set(setting, str(max(1, rows)))
