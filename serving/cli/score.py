"""The command `vae score`: rows of files into a folder of Parquet parts.

Imports that take time stand inside the command.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving.cli.command import CONTEXT, Command
from serving.cli.options import (
    device_option,
    engine_device,
    model_option,
    refuse_inside,
    require_pyarrow,
    seed_option,
    x_option,
)
from serving.console import RowProgress, finish, say
from serving.cpu import available_cores
from serving.errors import UsageRefused

if TYPE_CHECKING:
    from serving.batch.job import PartMaker
    from serving.batch.output import Output
    from serving.batch.scorer import Scorer
    from serving.io.rows import Rows


@click.command(cls=Command, context_settings=CONTEXT)
@click.argument("input")
@click.argument("output")
@model_option
@click.option(
    "--operation",
    type=click.Choice(["score", "encode", "reconstruct"]),
    default="score",
    show_default=True,
    help="What to compute",
)
@x_option
@click.option("--id", "ids", multiple=True, help="Column that is passed through; may be repeated")
@click.option("--where", default="", help="Rows to take, like \"label != 9 and split == 'test'\"")
@click.option(
    "--num-samples",
    type=click.IntRange(1, 4096),
    default=1,
    show_default=True,
    help="Noise draws a row; more make iw_elbo tighter",
)
@seed_option
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    help="Rows that are read at once; results do not depend on it",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=available_cores,
    show_default="available cores",
    help="Threads that compute, each over rows of its own",
)
@device_option
@click.option(
    "--on-error",
    type=click.Choice(["fail", "quarantine"]),
    default="fail",
    show_default=True,
    help="What a bad row does: end the job, or go to OUTPUT/_quarantine",
)
@click.option(
    "--max-bad",
    default="10%",
    show_default=True,
    help="Bad rows at which the job fails all the same: a number, or a share",
)
@click.option("--overwrite", is_flag=True, help="Replace the output of another job")
@click.option(
    "--engine",
    type=click.Choice(["local", "spark"]),
    default="local",
    show_default=True,
    help="Who computes: this process, or Spark's executors",
)
@click.option("--master", help="Spark's master  [default: local with as many cores as workers]")
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    help="HTML file to write: distributions, drift from the held-out rows, the rows at both ends",
)
@click.option(
    "--run-id",
    envvar="MLFLOW_RUN_ID",
    show_envvar=True,
    help="MLflow run to log the report and its figures to",
)
def score(**settings: Any) -> None:
    r"""Score rows: bounds on log p(x) in nats, larger is better; or encode, or reconstruct.

    INPUT is a file, a folder or a pattern of Parquet, Arrow, .npy, .npz, IDX, .csv or pictures,
    here or at a URI (s3://…). OUTPUT becomes a folder of Parquet files, a line a row: ids, results,
    and what made them. The same command again takes up where an earlier one was cut short.

    Example: vae score images.parquet scores/ --model models:/vae@champion
    """
    require_pyarrow("vae score")
    finish(_score(**settings))


def _score(
    output: str,
    reference: str,
    operation: str,
    device: str,
    seed: int,
    num_samples: int,
    **settings: Any,
) -> dict[str, Any]:
    from serving.batch.job import describe_job, parse_limit, run_job
    from serving.batch.output import open_output
    from serving.batch.scorer import Scorer, provenance_of
    from serving.engine import Engine
    from serving.io.rows import Rows
    from serving.source import open_source

    if settings["master"] and settings["engine"] != "spark":
        raise UsageRefused("--master is Spark's: add --engine spark")
    limit = parse_limit(settings["max_bad"])
    places = {"INPUT": settings["input"], "OUTPUT": output}
    report = _Report(settings["report"], settings["run_id"], operation, places)
    rows = Rows(settings["input"], settings["ids"], settings["where"])
    source = open_source(reference)
    engine = Engine(source.bundle, device=engine_device(device))
    made_by = provenance_of(source, seed, num_samples)
    scorer = Scorer(engine, made_by, operation, rows.schema, x=settings["x"], ids=rows.ids)
    job = describe_job(scorer, rows)
    with open_output(output, job, overwrite=settings["overwrite"]) as folder:
        summary = folder.summary()
        if summary is not None:
            say(f"{output} is finished already: nothing to do")
        else:
            progress = RowProgress(rows.total)
            with _part_maker(
                settings["engine"], settings["master"], settings["workers"], scorer, rows
            ) as make:
                done = run_job(
                    scorer,
                    rows,
                    folder,
                    workers=settings["workers"],
                    batch_rows=settings["batch_size"],
                    on_error=settings["on_error"],
                    limit=limit,
                    advance=progress.advance,
                    skip=progress.skip,
                    make=make,
                )
            progress.end()
            summary = asdict(done)
        if not summary["rows"] + summary["bad"]:
            say(f"--where {settings['where']!r} lets no row through: {output} has none")
        reported = report.write(folder, summary, scorer, rows)
    return {
        "out": output,
        **{name: summary[name] for name in ("rows", "rows_per_s", "bad")},
        "version": source.version,
        "digest": source.bundle.manifest.digest,
        **reported,
    }


@contextlib.contextmanager
def _part_maker(
    engine: str, master: str | None, workers: int, scorer: "Scorer", rows: "Rows"
) -> "Iterator[PartMaker | None]":
    """Give who makes the parts; None for this process."""
    if engine == "local":
        yield None
        return
    from serving.batch.spark_job import make_parts, open_session

    with open_session(master or f"local[{workers}]") as session:
        yield partial(make_parts, session, scorer, rows)


class _Report:
    """The report, if one was asked for, and the run that it is logged to, if there is one.

    What stands in its way is said before the rows are scored.
    """

    def __init__(
        self, path: Path | None, run_id: str | None, operation: str, places: Mapping[str, str]
    ) -> None:
        self._path = path
        self._log: Callable[[Path, Mapping[str, float]], None] | None = None
        if path is None:
            return
        from serving.files import check_output_file
        from serving.mlflow_store import open_run

        if operation != "score":
            raise UsageRefused(f"--report is about scores, --operation is {operation!r}")
        for name, place in places.items():
            refuse_inside(path, "--report", name, place)
        check_output_file(path, (".html",), "--report")
        if run_id:
            self._log = open_run(run_id)

    def write(
        self, folder: "Output", summary: Mapping[str, Any], scorer: "Scorer", rows: "Rows"
    ) -> dict[str, Any]:
        """Write and log it; return what the result says of it."""
        if self._path is None:
            return {}
        from serving.batch.html_report import write_report

        figures = write_report(self._path, folder, summary, scorer, rows)
        if self._log is not None:
            self._log(self._path, figures)
        return {"report": str(self._path), "drift_d": figures.get("score_drift_d")}
