"""Show what `vae monitor` found as one HTML file that needs no network, in light and in dark.

In: a `Monitored`. Out: the page.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from serving.batch.monitor import Monitored, Period, show_time
from serving.drift_test import FIRST, Alarm
from serving.files import staged_file
from serving.io import html_pages
from serving.io.svg_plots import plot_histogram, plot_series

SHOWN = 31
"""Days with a plot of their own: the last ones, and that of the first alarm."""


def write_page(
    path: Path, found: Monitored, subject: str, model: str, facts: Mapping[str, str]
) -> None:
    """Write the page, whole or not at all; `model` names the version compared with."""
    shown = _choose(found.periods)
    page = html_pages.render_page(
        "serving.batch",
        "monitor_page.html",
        subject=subject,
        by=found.by,
        summary=describe(found, model),
        alarms=[_describe_alarm(name, alarm) for name, alarm in found.alarms.items()],
        series=_plot_series(found),
        head=(found.by, *HEAD),
        lines=list_lines(found.periods),
        plots=[(*_plot(period, found), bool(period.alarms)) for period in shown],
        hidden=len(found.periods) - len(shown),
        tests=[
            ("bad" if name in found.alarms else "", [_name(name), f"{value:.2f}"])
            for name, value in sorted(found.largest.items(), key=lambda item: -item[1])
        ],
        limit=f"{-math.log(found.level):.2f}",
        e_value=f"{1 / found.level:,.6g}",
        level=f"{found.level:g}",
        facts=facts,
    )
    with staged_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


HEAD = ("rows", "mean ELBO", "shift", "± SE", "D", "log e-value", "first alarm")


def list_lines(periods: Sequence[Period]) -> list[tuple[str, list[str]]]:
    """Return a line of text for each day, and its kind: `bad` if there is a first alarm in it."""
    return [
        (
            "bad" if period.alarms else "",
            [
                period.name,
                f"{period.drift.rows:,}",
                f"{period.drift.mean:,.2f}",
                f"{period.drift.mean_shift:+.2f}",
                f"{period.drift.mean_shift_se:.2f}",
                f"{period.drift.d:.3f}",
                f"{period.log_e_value:.2f}",
                ", ".join(map(_name, period.alarms)),
            ],
        )
        for period in periods
    ]


def describe(found: Monitored, model: str) -> str:
    """Say in two sentences what was found."""
    rows = f"{found.rows:,} rows on {_count(len(found.periods), found.by)}"
    if found.first is None:
        return (
            f"No drift was found in {rows}: they may all be like the held-out rows of {model}. "
            f"The chance of a false alarm was {found.level:g} over all of them."
        )
    alarm = found.first
    return (
        f"{rows} are not all like the held-out rows of {model}. The alarm came after "
        f"{alarm.rows:,} rows, at {show_time(alarm.time)}, about rows since "
        f"{show_time(alarm.since_time)}: {', '.join(map(_name, found.alarms))}."
    )


def _choose(periods: Sequence[Period]) -> list[Period]:
    last = list(periods[-SHOWN:])
    first = next((period for period in periods if period.alarms), None)
    return last if first is None or first in last else [first, *last[1:]]


def _plot(period: Period, found: Monitored) -> tuple[str, str, str]:
    drift = period.drift
    caption = (
        f"{drift.rows:,} rows, mean {drift.mean:,.2f} nats ({drift.mean_shift:+.2f}), "
        f"D = {drift.d:.3f}"
    )
    if period.alarms:
        caption += f"; first alarm: {', '.join(map(_name, period.alarms))}"
    return (
        period.name,
        plot_histogram(found.edges, period.shares, "ELBO in nats", found.held_out),
        caption,
    )


def _plot_series(found: Monitored) -> list[tuple[str, str]]:
    names = [period.name for period in found.periods]
    values = np.array([period.log_e_value for period in found.periods])
    shift = np.array([period.drift.mean_shift for period in found.periods])
    return [
        (plot_series(names, values, "log e-value", -math.log(found.level)), "log e-value"),
        (plot_series(names, shift, "shift in nats", 0), "mean ELBO minus that of held-out rows"),
    ]


def _describe_alarm(name: str, alarm: Alarm) -> tuple[str, list[str]]:
    cells = [_name(name), show_time(alarm.time), f"{alarm.rows:,}", show_time(alarm.since_time)]
    return "bad", cells


def _name(name: str) -> str:
    return "whole rows" if name == FIRST else name


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
