"""The command `vae score`: score the rows of files into a folder of Parquet parts.

Slow imports are inside the command.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from serving.cli.command import CONTEXT, Command
from serving.cli.config_file import config_option
from serving.cli.help_page import group
from serving.cli.options import (
    engine_device_option,
    fill_folder,
    model_option,
    open_engine,
    open_rows,
    option,
    output_options,
    read_options,
    refuse_inside,
    require_pyarrow,
    seed_option,
    version_of,
    workers_option,
    x_option,
)
from serving.cli.paths import Origin, Target, target
from serving.console import finish, say, warn
from serving.errors import UsageRefused
from serving.operations import By

if TYPE_CHECKING:
    from serving.batch.job import PartExecutor
    from serving.batch.output import Output
    from serving.batch.scorer import Scorer
    from serving.io.rows import Rows
    from serving.p_values import Flags, PValues


@click.command(cls=Command, context_settings=CONTEXT)
@click.argument("input", type=Origin())
@click.argument("output", type=Target())
@group("Model and rows")
@config_option()
@model_option
@option(
    "--operation",
    type=click.Choice(["score", "encode", "reconstruct"]),
    default="score",
    help="What to compute",
)
@x_option
@read_options
@click.option("--id", "ids", multiple=True, help="Column to pass through; may be repeated")
@click.option("--where", default="", help="Rows to take, like \"label != 9 and split == 'test'\"")
@group("Noise")
@click.option(
    "--num-samples",
    type=click.IntRange(1, 4096),
    show_default="as many as held-out rows have",
    help="Noise draws per row; more make iw_elbo tighter",
)
@seed_option
@group("How sure, and why")
@click.option(
    "--by",
    type=click.Choice(get_args(By)),
    show_default="combined for tables of mixed columns, else elbo",
    help="Score that p-values and the report compare rows by; latent is minus the KL, column_max "
    "the lowest column_lift, combined joins consistency and the distance from the training rows",
)
@click.option(
    "--fdr",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Flag unusual rows: at most this share of the flagged ones is usual, on average",
)
@click.option(
    "--explain",
    type=click.IntRange(min=1),
    help="Name so many columns per row, of those that fit the rest of the row least",
)
@click.option(
    "--per-column",
    is_flag=True,
    help="Write column_log_likelihood and column_lift as lists, with a value for each column",
)
@group("Bad rows and output")
@output_options
@click.option(
    "--report",
    type=target(),
    help="HTML file to write: distributions, drift from the held-out rows, the rows at both ends",
)
@click.option(
    "--run-id",
    envvar="MLFLOW_RUN_ID",
    show_envvar=True,
    help="MLflow run to log the report and its figures to",
)
@group("Computing")
@engine_device_option
@workers_option
@option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=4096,
    help="Rows to read at once; results do not depend on it",
)
@option(
    "--engine",
    type=click.Choice(["local", "spark"]),
    default="local",
    help="Where to compute: in this process, or in Spark's executors",
)
@click.option("--master", help="Spark's master  [default: local with as many cores as workers]")
def score(**settings: Any) -> None:
    """Score, encode or reconstruct any number of rows.

    Scores are bounds on log p(x) in nats, larger is better. INPUT is a file, a folder or a pattern
    of Parquet, Arrow, .npy, .npz, IDX, .csv or images, here or at a URI (s3://…). OUTPUT becomes a
    folder of Parquet files with a line for each row: ids, results, and what made them. p_value is
    the share of the version's held-out rows that are at least as unusual. The same command again
    resumes where an earlier one was interrupted.

    Example: vae score new.parquet scores/ --fdr 0.05
    """
    require_pyarrow("vae score")
    if settings["master"] and settings["engine"] != "spark":
        raise UsageRefused("--master is Spark's: add --engine spark")
    finish(_score(settings, _Report(settings)))


def _score(settings: Mapping[str, Any], report: "_Report") -> dict[str, Any]:
    from serving.batch.job import describe_job, parse_limit
    from serving.batch.output import open_output
    from serving.batch.result_columns import ScoreChoice
    from serving.batch.scorer import Scorer, provenance_of
    from serving.p_values import default_samples

    limit = parse_limit(settings["max_bad"])
    source, engine = open_engine(settings["reference"], settings["device"])
    rows = open_rows(
        settings["input"],
        settings["ids"],
        settings["where"],
        settings["array"],
        settings["delimiter"],
        source,
    )
    operation, fdr = settings["operation"], settings["fdr"]
    draws = settings["num_samples"] or default_samples(source.bundle, operation)
    choice = ScoreChoice(
        by=settings["by"] or "",
        explain=settings["explain"] or 0,
        per_column=settings["per_column"],
    )
    scorer = Scorer(
        engine,
        provenance_of(source, settings["seed"], draws),
        operation,
        rows.schema,
        x=settings["x"],
        ids=rows.ids,
        choice=choice,
    )
    _check_p_values(scorer, settings)
    p_values = scorer.results.p_values
    output = settings["output"]
    job = describe_job(scorer, rows, fdr)
    with open_output(output, job, overwrite=settings["overwrite"]) as folder:
        summary = fill_folder(
            output,
            folder,
            scorer,
            rows,
            _open_executor(settings, scorer, rows),
            workers=settings["workers"],
            batch_rows=settings["batch_size"],
            on_error=settings["on_error"],
            limit=limit,
            flag=partial(_flag, folder, scorer, p_values, fdr) if fdr and p_values else None,
        )
        for text in scorer.unknown.describe():
            warn(text)
        if not summary["rows"] + summary["bad"]:
            say(f"--where {settings['where']!r} matches no row: {output} has none")
        reported = report.write(folder, summary, scorer, rows)
    names = ["rows", "rows_per_s", "bad", *(["flagged", "threshold"] if fdr else [])]
    written = {name: summary[name] for name in names}
    return {"out": output, **written, **version_of(source), **reported}


def _check_p_values(scorer: "Scorer", settings: Mapping[str, Any]) -> None:
    """Say once why rows get no p-values; of early versions, which have none, only if asked."""
    from serving.batch.flags import add_flagged
    from serving.bundle import HELD_OUT

    results = scorer.results
    if results.p_values is not None:
        if settings["fdr"]:
            add_flagged(scorer.schema)  # before rows are scored
        return
    if settings["fdr"]:
        reason = results.without_p_values or "p-values are of scores"
        raise UsageRefused(f"--fdr needs p-values: {reason}")
    if results.by and (settings["by"] or HELD_OUT in scorer.engine.bundle.manifest.files):
        say(f"no p-values: {results.without_p_values}")


def _flag(
    folder: "Output", scorer: "Scorer", p_values: "PValues", fdr: float, parts: int
) -> "Flags":
    from serving.batch.flags import flag_rows

    flags = flag_rows(folder, parts, scorer.schema, p_values.rows, fdr)
    if (why := flags.describe(p_values.rows, fdr)) is not None:
        warn(why)
    return flags


@contextlib.contextmanager
def _open_executor(
    settings: Mapping[str, Any], scorer: "Scorer", rows: "Rows"
) -> "Iterator[PartExecutor | None]":
    if settings["engine"] == "local":
        yield None
        return
    from serving.batch.spark_job import execute_parts, open_session

    with open_session(settings["master"] or f"local[{settings['workers']}]") as session:
        yield partial(execute_parts, session, scorer, rows)


class _Report:
    """The report, if one was asked for, and the run that it is logged to, if there is one.

    Whatever would prevent it is refused before the rows are scored.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._path: Path | None = settings["report"]
        self._log: Callable[[Path, Mapping[str, float]], None] | None = None
        if self._path is None:
            return
        from serving.files import check_output_file
        from serving.mlflow_store import open_run

        if settings["operation"] != "score":
            raise UsageRefused(
                f"--report is about scores, --operation is {settings['operation']!r}"
            )
        for name in ("input", "output"):
            refuse_inside(self._path, "--report", name.upper(), settings[name])
        check_output_file(self._path, (".html",), "--report")
        if settings["run_id"]:
            self._log = open_run(settings["run_id"])

    def write(
        self, folder: "Output", summary: Mapping[str, Any], scorer: "Scorer", rows: "Rows"
    ) -> dict[str, Any]:
        """Write and log it; return its keys for the JSON line."""
        if self._path is None:
            return {}
        from serving.batch.html_report import write_report

        figures = write_report(self._path, folder, summary, scorer, rows)
        if self._log is not None:
            self._log(self._path, figures)
        return {"report": str(self._path), "drift_d": figures.get("score_drift_d")}
