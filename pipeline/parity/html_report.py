"""Render a parity report as one HTML file that needs no network, in light and in dark.

In: the content of `parity.json`, and what it speaks of. Out: HTML. Values are shown as they stand:
the verdict is the report's, nothing is judged again.
"""

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from pipeline.export.parity_summary import describe_share, worst_comparisons
from pipeline.parity.html_plots import plot_batches, plot_histogram
from serving.files import staged_file

Row = Mapping[str, Any]

PAGE = "parity.html"
"""Name of the report beside `parity.json`."""
_MAX_FAULTS = 10

_COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "output": lambda row: f"{row['operation']}.{row['output']}",
    "rule": lambda row: row["rule"],
    "rows": lambda row: row["rows"],
    "provider": lambda row: _provider(row),
    "level": lambda row: row["level"],
    "batch": lambda row: f"{row['batch']:,}",
    "threads": lambda row: str(row["threads"]),
    "max error": lambda row: _number(row["max_error"]),
    "allowed": lambda row: _number(row["max_budget"]),
    "rms error": lambda row: _number(row["rms_error"]),
    "rms allowed": lambda row: _number(row["rms_budget"]),
    "used": lambda row: describe_share(row),
    "verdict": lambda row: "passed" if row["passed"] else row["reason"] or "failed",
}
_BOUND_COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "provider": lambda row: _provider(row),
    "rows": lambda row: f"{row['rows']:,}",
    "mean error": lambda row: _number(row["mean_error"]),
    "allowed": lambda row: _number(row["mean_budget"]),
    "row error": lambda row: _number(row["row_error"]),
    "row allowed": lambda row: _number(row["row_budget"]),
    "verdict": lambda row: "passed" if row["passed"] else "failed",
}
_WORST_COLUMNS = {name: show for name, show in _COLUMNS.items() if name != "rule"}
_WORDS = {"output", "rule", "rows", "provider", "level", "verdict"}


def render_page(report: Mapping[str, Any], subject: str) -> str:
    """Fill the page in from a report; `subject` names the bundle or the version."""
    comparisons: Sequence[Row] = report["comparisons"]
    valued = [row for row in comparisons if row["rule"] == "values"]
    outputs = dict.fromkeys(_COLUMNS["output"](row) for row in valued)
    grouped = {name: [row for row in valued if _COLUMNS["output"](row) == name] for name in outputs}
    edges = report["histogram_edges"]
    histograms = {name: plot_histogram(rows, edges) for name, rows in grouped.items()}
    batches = {name: plot_batches(rows) for name, rows in grouped.items()}
    template = Template((resources.files("pipeline.parity") / "html_report.html").read_text())
    return template.substitute(
        subject=html.escape(subject),
        verdict=html.escape(report["verdict"]),
        summary=_summary(report),
        faults=_faults(report),
        worst=_table(_WORST_COLUMNS, worst_comparisons(report)),
        bounds=_table(_BOUND_COLUMNS, report["elbo"]),
        histograms=_figures(histograms, grouped),
        batches=_figures(batches, grouped),
        environment=_environment(report),
        count=f"{len(comparisons):,}",
        all=_table(_COLUMNS, comparisons),
    )


def write_page(path: Path, report: Mapping[str, Any], subject: str) -> None:
    """Write the page to a file, whole or not at all."""
    with staged_file(path) as temporary:
        temporary.write_text(render_page(report, subject))


def _summary(report: Mapping[str, Any]) -> str:
    rows, machine = report["comparisons"], report["machine"]
    passed = sum(bool(row["passed"]) for row in rows)
    words = (
        f"{passed:,} of {len(rows):,} comparisons are within budget, on "
        f"{' and '.join(report['devices'])} of {machine.get('processor') or 'an unknown processor'}"
        f", in {report['precision']}."
    )
    return html.escape(words)


def _faults(report: Mapping[str, Any]) -> str:
    lines = [f"{fault['message']} (rule: {fault['rule']})" for fault in report["faults"]]
    if first := report["first_difference"]:
        where = f"first output that differs: {first['output']}; " if first["output"] else ""
        node = f"first node: {first['node']} ({first['op_type']}) of {first['graph']}"
        lines.insert(0, f"{where}{node}: {first['detail']}")
    if len(lines) > _MAX_FAULTS:
        lines[_MAX_FAULTS:] = [f"and {len(lines) - _MAX_FAULTS} more"]
    if not lines:
        return ""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f'<ul class="faults">{items}</ul>'


def _figures(plots: Mapping[str, str], grouped: Mapping[str, Sequence[Row]]) -> str:
    def caption(rows: Sequence[Row]) -> str:
        failed = sum(not row["passed"] for row in rows)
        return f"{len(rows):,} comparisons, {failed:,} failed"

    return "".join(
        f"<figure><h3>{html.escape(name)}</h3>{plot}"
        f"<figcaption>{caption(grouped[name])}</figcaption></figure>"
        for name, plot in plots.items()
    )


def _table(columns: Mapping[str, Callable[[Row], str]], rows: Iterable[Row]) -> str:
    def cell(tag: str, column: str, words: str) -> str:
        kind = "" if column in _WORDS else ' class="n"'
        return f"<{tag}{kind}>{html.escape(words)}</{tag}>"

    head = "".join(cell("th", column, column) for column in columns)
    lines = (
        ("<tr>" if row["passed"] else '<tr class="bad">')
        + "".join(cell("td", column, show(row)) for column, show in columns.items())
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _environment(report: Mapping[str, Any]) -> str:
    facts = {**report["machine"], **report["versions"], "threads": report["threads"]}
    for device, counts in report["placement"].items():
        nodes = ", ".join(f"{count} nodes on {provider}" for provider, count in counts.items())
        facts[f"placement on {device}"] = nodes
    facts |= {f"sha256 of {name}": digest for name, digest in report["files"].items()}
    lines = (
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    return f'<table class="facts">{"".join(lines)}</table>'


def _provider(row: Row) -> str:
    name = row["provider"].removesuffix("ExecutionProvider")
    return f"{name} with TF32" if row["tf32"] else name


def _number(value: float | None) -> str:
    return "no number" if value is None else f"{value:.2e}"
