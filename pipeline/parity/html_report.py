"""Render a parity report as one HTML file that needs no network, in light and in dark.

In: a `ParityReport` and the name of what was checked. Out: HTML. The verdict is the report's:
nothing is judged here.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pipeline.parity.comparison_result import (
    HISTOGRAM_EDGES,
    Comparison,
    ElboParity,
    describe_rows,
    describe_share,
    short_provider,
)
from pipeline.parity.html_plots import plot_batches, plot_histogram
from pipeline.parity.report import ParityReport
from serving.files import staged_file
from serving.io import html_pages

PAGE = "parity.html"
"""Name of the report beside `parity.json`."""
_MAX_FAULTS = 10

_COLUMNS: Mapping[str, Callable[[Comparison], str]] = {
    "output": lambda row: f"{row.operation}.{row.output}",
    "rule": lambda row: row.rule,
    "rows": lambda row: row.rows,
    "provider": lambda row: short_provider(row),
    "level": lambda row: row.level,
    "batch": lambda row: f"{row.batch:,}",
    "threads": lambda row: str(row.threads),
    "max error": lambda row: _number(row.max_error),
    "allowed": lambda row: _number(row.max_tolerance),
    "rms error": lambda row: _number(row.rms_error),
    "rms allowed": lambda row: _number(row.rms_tolerance),
    "used": lambda row: describe_share(row.share),
    "verdict": lambda row: "passed" if row.passed else row.reason or "failed",
}
_BOUND_COLUMNS: Mapping[str, Callable[[ElboParity], str]] = {
    "provider": lambda row: short_provider(row),
    "rows": lambda row: describe_rows(row).replace(" rows", ""),
    "mean error": lambda row: _number(row.mean_error),
    "allowed": lambda row: _number(row.mean_tolerance),
    "row error": lambda row: _number(row.row_error),
    "row allowed": lambda row: _number(row.row_tolerance),
    "verdict": lambda row: "passed" if row.passed else "failed",
}
_WORDS = ("output", "rule", "rows", "provider", "level", "verdict")
"""Columns that are aligned to the left."""


def render_page(report: ParityReport, subject: str) -> str:
    """Fill the page in from a report; `subject` names the bundle or the version."""
    return html_pages.render_page(
        "pipeline.parity",
        "html_report.html",
        report=report,
        subject=subject,
        verdict="passed" if report.passed else "failed",
        passed=sum(row.passed for row in report.comparisons),
        faults=list(_describe_faults(report)),
        worst=[row for row in report.worst() if row.rule == "values"],
        columns=_COLUMNS,
        worst_columns={name: show for name, show in _COLUMNS.items() if name != "rule"},
        bound_columns=_BOUND_COLUMNS,
        words=_WORDS,
        outputs=_plot_outputs(report),
        facts=_describe_environment(report),
    )


def write_page(path: Path, report: ParityReport, subject: str) -> None:
    """Write the page to a file, whole or not at all."""
    with staged_file(path) as temporary:
        temporary.write_text(render_page(report, subject))


def _describe_faults(report: ParityReport) -> Iterator[str]:
    if report.first_difference:
        yield report.first_difference.line()
    faults = report.faults()
    shown = _MAX_FAULTS - (report.first_difference is not None)
    yield from map(str, faults[:shown])
    if len(faults) > shown:
        yield f"and {len(faults) - shown} more"


def _plot_outputs(report: ParityReport) -> dict[str, dict[str, object]]:
    grouped: dict[str, list[Comparison]] = {}
    for row in report.comparisons:
        if row.rule == "values":
            grouped.setdefault(f"{row.operation}.{row.output}", []).append(row)
    return {
        name: {
            "comparisons": len(rows),
            "failed": sum(not row.passed for row in rows),
            "histogram": plot_histogram(rows, HISTOGRAM_EDGES),
            "batches": plot_batches(rows),
        }
        for name, rows in grouped.items()
    }


def _describe_environment(report: ParityReport) -> dict[str, object]:
    facts: dict[str, object] = {**report.environment, **report.versions, "threads": report.threads}
    for device, counts in report.placement.items():
        nodes = ", ".join(f"{count} nodes on {provider}" for provider, count in counts.items())
        facts[f"placement on {device}"] = nodes
    return facts | {f"sha256 of {name}": digest for name, digest in report.files.items()}


def _number(value: float) -> str:
    return "no number" if value != value else f"{value:.2e}"
