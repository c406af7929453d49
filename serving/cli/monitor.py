"""The command `vae monitor`: when did rows begin to differ from a version's held-out rows?

Slow imports are inside the command.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving.cli.command import CONTEXT, Command
from serving.cli.config_file import config_option
from serving.cli.help_page import group
from serving.cli.options import (
    engine_device_option,
    model_option,
    open_engine,
    open_rows,
    option,
    read_options,
    refuse_inside,
    require_pyarrow,
    threads_option,
    version_of,
    x_option,
)
from serving.cli.paths import Origin, target
from serving.console import Progress, finish, progress, say, warn
from serving.errors import DataRefused, Drifted, UsageRefused

if TYPE_CHECKING:
    from serving.batch.monitor import Monitored
    from serving.batch.monitored_rows import MonitoredRows, TimedScores
    from serving.source import Source

_PRINTED = 40
"""Days that are printed, of which the last ones."""


@click.command(cls=Command, context_settings=CONTEXT)
@click.argument("input", type=Origin())
@group("Model and rows")
@config_option()
@model_option
@click.option("--time", default="", help="Column of times  [default: vae_time, time or timestamp]")
@x_option
@read_options
@click.option("--where", default="", help="Rows to take, like \"country == 'DE'\"")
@group("What to find")
@option("--by", type=click.Choice(["day", "hour"]), default="day", help="What to report by, in UTC")
@option(
    "--level",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.01,
    help="Chance of a false alarm, over all rows together",
)
@click.option("--report", type=target(), help="HTML file to write, with a plot for each day")
@click.option("--fail-on-alarm", is_flag=True, help="Exit with code 5 if rows have drifted")
@group("Computing")
@engine_device_option
@threads_option
def monitor(**settings: Any) -> None:
    """Find out when rows began to differ from a version's held-out rows.

    INPUT is what vae serve captured, results of vae score, or rows that vae score takes, with a
    column of times. It is read in its order, which should be that of time. Captured rows and other
    rows without scores are scored as the held-out rows were. For each day: rows, mean ELBO, its
    shift, the distance D, and the e-value of a test whose chance of a false alarm is --level over
    all rows, however many. For tables of mixed columns, it names those that have drifted.

    Example: vae monitor captured/ --report drift.html
    """
    require_pyarrow("vae monitor")
    from serving.batch.monitor import Monitor, monitor_all
    from serving.batch.monitored_rows import MonitoredRows
    from serving.bundle import METRICS
    from serving.conformal import LEAST_HELD_OUT
    from serving.drift import read_held_out, summarize
    from serving.p_values import read_held_out_scores

    report: Path | None = settings["report"]
    _check_report(report, settings["input"])
    source, engine = open_engine(settings["reference"], settings["device"], settings["threads"])
    scores = read_held_out_scores(source.bundle)
    if scores is None:
        raise UsageRefused("this version carries no scores of held-out rows: train and export it")
    elbo = scores.scores["elbo"]
    if len(elbo) < LEAST_HELD_OUT:
        raise UsageRefused(f"drift needs {LEAST_HELD_OUT} held-out rows, got {len(elbo)}")
    rows = open_rows(
        settings["input"],
        None,
        settings["where"],
        settings["array"],
        settings["delimiter"],
        source,
    )
    monitored = MonitoredRows(rows, engine, scores, settings["time"], settings["x"])
    mixed = source.bundle.manifest.schema is not None
    held_out = read_held_out(source.bundle.read_json(METRICS)) or summarize(elbo, mixed=mixed)
    follower = Monitor(
        held_out, scores.scores, monitored.columns, settings["by"], settings["level"]
    )
    with progress(rows.total, "rows") as bar:
        found = monitor_all(follower, _advance(monitored, bar))
    _say_what_was_read(monitored, found, source, mixed=mixed)
    if not found.rows:
        raise DataRefused(f"{settings['input']} has no row with a time and a score")
    _print_periods(found)
    if report is not None:
        _write(report, found, monitored, source, settings)
    finish({**_summarize(found), "bad": monitored.bad, **version_of(source), **_named(report)})
    if found.first is not None and settings["fail_on_alarm"]:
        raise Drifted("rows have drifted, and --fail-on-alarm is given")


def _check_report(report: Path | None, location: str) -> None:
    if report is None:
        return
    from serving.files import check_output_file

    refuse_inside(report, "--report", "INPUT", location)
    check_output_file(report, (".html",), "--report")


def _advance(monitored: "MonitoredRows", bar: Progress) -> "Iterator[TimedScores]":
    """Show how many rows were read; rows that a filter leaves out are in no batch."""
    done = 0
    for batch in monitored.read():
        yield batch
        bar.advance(monitored.seen - done)
        done = monitored.seen


def _say_what_was_read(
    monitored: "MonitoredRows", found: "Monitored", source: "Source", *, mixed: bool
) -> None:
    """Say what a person should know about the rows."""
    for text in monitored.unknown.describe():
        warn(text)
    if monitored.bad:
        warn(f"{monitored.bad:,} rows have no time or no score, and were left out")
    if found.late:
        warn(
            f"{found.late:,} rows came after rows of a later {found.by}: the test read them where "
            "they stand, and may find a change late"
        )
    others = {v: n for v, n in monitored.versions.items() if v != source.version}
    if source.version and others:
        listed = ", ".join(f"{count:,} by version {version}" for version, count in others.items())
        say(f"rows that others answered: {listed}; all were scored by version {source.version}")
    if mixed and not monitored.columns:
        why = (
            "the results were written without --per-column"
            if monitored.are_results and "column_log_likelihood" in monitored.held_out.scores
            else "this version holds no scores of held-out cells: train and export it again"
        )
        say(f"columns are not tested one by one: {why}")


def _print_periods(found: "Monitored") -> None:
    from serving.batch.monitor_page import HEAD, list_lines

    lines = [cells for _, cells in list_lines(found.periods)]
    table = [[found.by, *HEAD], *lines[-_PRINTED:]]
    widths = [max(len(line[index]) for line in table) for index in range(len(table[0]))]
    if len(lines) > _PRINTED:
        say(f"{len(lines) - _PRINTED:,} earlier {found.by}s are not printed")
    for line in table:
        cells = zip(line[1:], widths[1:], strict=True)
        say("  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in cells)]), wrap=False)


def _write(
    report: Path,
    found: "Monitored",
    monitored: "MonitoredRows",
    source: "Source",
    settings: Mapping[str, Any],
) -> None:
    from serving.batch.monitor_page import write_page
    from serving.batch.scorer import provenance_of

    held_out = monitored.held_out
    made_by = provenance_of(source, held_out.seed, held_out.num_samples)
    facts = {
        "model": f"{made_by.model} version {made_by.version}",
        "digest": made_by.digest,
        "held-out rows": f"{len(held_out.scores['elbo']):,}",
        "seed, draws per row": f"{made_by.seed}, {made_by.num_samples}",
        "input": settings["input"],
        "time": monitored.time,
        "filter": settings["where"] or "none",
        "rows left out": f"{monitored.bad:,}",
    }
    write_page(report, found, settings["input"], f"{made_by.model} {made_by.version}", facts)


def _summarize(found: "Monitored") -> dict[str, Any]:
    from serving.batch.monitor import show_time

    first = found.first
    return {
        "rows": found.rows,
        "alarm": first is not None,
        "log_e_value": round(max(found.largest.values()), 4),
        "level": found.level,
        "alarm_time": show_time(first.time) if first else None,
        "alarm_rows": first.rows if first else None,
        "since": show_time(first.since_time) if first else None,
        "drifted": list(found.alarms),
        "by": found.by,
        "periods": [
            {
                "start": period.name,
                "rows": period.drift.rows,
                "elbo": round(period.drift.mean, 4),
                "shift": round(period.drift.mean_shift, 4),
                "d": round(period.drift.d, 4),
                "log_e_value": round(period.log_e_value, 4),
                "alarms": list(period.alarms),
            }
            for period in found.periods
        ],
    }


def _named(report: Path | None) -> dict[str, str]:
    return {} if report is None else {"report": str(report)}
