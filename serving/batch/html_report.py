"""Report on the scores of a job as one HTML file that needs no network, in light and in dark.

In: a finished output folder and its input. Out: the page, and its figures by name. Raises
`DataRefused` where the input cannot be read again.
"""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.batch.output import Output
from serving.batch.score_summary import Extreme, Findings, fetch_x, gather
from serving.batch.scorer import Scorer
from serving.batch.streaming_histogram import Tally
from serving.bundle import METRICS, Manifest
from serving.drift import KNOTS, LOW_SHARE, read_held_out
from serving.files import staged_file
from serving.io.images import byte_unit, encode_png, is_picture
from serving.io.rows import Rows
from serving.io.svg_plots import bin_edges, plot_functions, plot_histogram

Array = NDArray[Any]

_BINS = 48
_TAIL = 0.001
"""Share of the rows at either end that a plot need not show apart."""
_FEATURES = 24


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A row at an end of the distribution; None where the input no longer holds it."""

    row: Extreme
    x: Array | None
    x_loc: Array | None


def write_report(
    path: Path, output: Output, summary: Mapping[str, Any], scorer: Scorer, rows: Rows
) -> dict[str, float]:
    """Write the report of a finished job, whole or not at all; return its figures.

    Raises:
        DataRefused: the input cannot be read again.
    """
    bundle = scorer.engine.bundle
    held_out = read_held_out(bundle.read_json(METRICS))
    findings = gather(output, summary["parts"], scorer.ids, held_out)
    part_rows = output.job["part_rows"]
    shown = [_show(ends, scorer, rows, part_rows) for ends in (findings.lowest, findings.highest)]
    page = render_page(findings, output.job, summary, bundle.manifest, *shown)
    with staged_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return list_figures(findings, summary)


def list_figures(findings: Findings, summary: Mapping[str, Any]) -> dict[str, float]:
    """What is worth a line over time: means, drift, bad rows and the rate."""
    figures = {f"score_{name}": tally.mean for name, tally in findings.tallies.items()}
    figures |= {f"score_{name}": summary[name] for name in ("rows", "bad", "rows_per_s")}
    if drift := findings.drift:
        figures |= {
            "score_drift_d": drift.d,
            "score_drift_p": drift.p_value,
            "score_drift_mean_shift": drift.mean_shift,
            "score_low_share": drift.low_share,
        }
    return figures


def render_page(
    findings: Findings,
    job: Mapping[str, Any],
    summary: Mapping[str, Any],
    manifest: Manifest,
    lowest: Sequence[ShownRow],
    highest: Sequence[ShownRow],
) -> str:
    """Fill the page in."""
    template = Template((resources.files("serving.batch") / "html_report.html").read_text("utf-8"))
    return template.substitute(
        subject=html.escape(str(job["input"])),
        summary=html.escape(_summarize(findings, job, summary)),
        drift=_render_drift(findings, job),
        histograms="".join(_render_tally(*item) for item in findings.tallies.items()),
        lowest=_render_rows(lowest, job),
        highest=_render_rows(highest, job),
        bad=_render_bad(findings, summary),
        facts=_facts(job, summary, manifest),
    )


def _show(
    extremes: Sequence[Extreme], scorer: Scorer, rows: Rows, part_rows: int
) -> list[ShownRow]:
    found = fetch_x(extremes, scorer, rows, part_rows)
    return [
        ShownRow(row, x, None if x is None else scorer.engine.reconstruct(x[None])[0])
        for row, x in zip(extremes, found, strict=True)
    ]


def _summarize(findings: Findings, job: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    elbo = findings.tallies["elbo"]
    words = (
        f"{elbo.rows:,} rows were scored by {job['model']} version {job['version']}, "
        f"at {summary['rows_per_s']:,.0f} rows/s"
    )
    if elbo.rows:
        words += f"; their mean ELBO is {_nats(elbo.mean)} nats"
    return f"{words}. {summary['bad']:,} rows have no score."


def _render_drift(findings: Findings, job: Mapping[str, Any]) -> str:
    held, drift, elbo = findings.held_out, findings.drift, findings.tallies["elbo"]
    if held is None:
        return (
            "<p>Unknown: this version carries no held-out distribution. "
            "Evaluate and export it again with this version of vae-pipeline.</p>"
        )
    if drift is None:
        return "<p>Unknown: no row was scored.</p>"
    words = (
        f"The mean ELBO lies {_nats(drift.mean_shift, '+')} ± {drift.mean_shift_se:.2f} nats from "
        f"that of the {held.rows:,} held-out rows, {_nats(held.elbo_mean)}. "
        f"Kolmogorov-Smirnov: D = {drift.d:.3f} of 1, p = {drift.p_value:.2g}. "
        f"{drift.low_share:.2%} of the rows lie below all but {LOW_SHARE:.0%} of the held-out rows."
    )
    hint = (
        "D is the largest distance of the two distribution functions, where the dashed line is: "
        "0 for equal ones, 1 where no row of one reaches the other. Read D: with many rows p is "
        "tiny even where the difference does not matter. "
        f"D is seen at {KNOTS} quantiles, and may be up to {1 / (KNOTS - 1):.3f} too small."
    )
    if (held.seed, held.num_samples) != (job["seed"], job["num_samples"]):
        hint += (
            f" Compare with care: these rows were scored with seed {job['seed']} and "
            f"{job['num_samples']} draws a row, the held-out rows with seed {held.seed} and "
            f"{held.num_samples}, and the noise is shared over rows."
        )
    quantiles = np.asarray(held.elbo_quantiles)
    edges = bin_edges(
        min(elbo.quantile(_TAIL), quantiles[1]), max(elbo.quantile(1 - _TAIL), quantiles[-2]), _BINS
    )
    fine = bin_edges(edges[0], edges[-1], 4 * _BINS)
    function = np.cumsum(elbo.histogram(np.concatenate([[-np.inf], fine, [np.inf]])))[:-1]
    plots = (
        plot_histogram(edges, elbo.histogram(edges), "ELBO in nats", _held_shares(held.cdf(edges))),
        plot_functions(fine, function, held.cdf(fine), drift.d_at, "ELBO in nats"),
    )
    captions = ("share of rows by ELBO", "share of rows up to an ELBO")
    key = '<span class="key new">■ these rows</span>, <span class="key held">■ held-out rows</span>'
    figures = "".join(
        f"<figure>{plot}<figcaption>{caption}: {key}</figcaption></figure>"
        for plot, caption in zip(plots, captions, strict=True)
    )
    return f'<p>{words}</p><p class="mild">{hint}</p><div class="plots">{figures}</div>'


def _held_shares(function: Array) -> Array:
    """Shares by bin from a distribution function at its edges; the outer bins are open."""
    return np.diff(np.concatenate([[0.0], function[1:-1], [1.0]]))


def _render_tally(name: str, tally: Tally) -> str:
    if not tally.rows:
        return f"<figure><h3>{name}</h3><figcaption>no rows</figcaption></figure>"
    edges = bin_edges(tally.quantile(_TAIL), tally.quantile(1 - _TAIL), _BINS)
    caption = (
        f"mean {_nats(tally.mean)}, standard deviation {tally.sd:,.2f}, "
        f"median {_nats(tally.quantile(0.5))}, from {_nats(tally.least)} to {_nats(tally.most)}"
    )
    plot = plot_histogram(edges, tally.histogram(edges), f"{name} in nats")
    return f"<figure><h3>{name}</h3>{plot}<figcaption>{caption}</figcaption></figure>"


def _render_rows(rows: Sequence[ShownRow], job: Mapping[str, Any]) -> str:
    if not rows:
        return "<p>No row was scored.</p>"
    values = next((row.x for row in rows if row.x is not None), None)
    words = ""
    if any(row.x is None for row in rows):
        words = "<p>Some rows are not shown: the input holds others in their place by now.</p>"
    if values is not None and is_picture(values.shape):
        unit = byte_unit(np.stack([row.x for row in rows if row.x is not None]))
        figures = "".join(_render_picture(row, unit) for row in rows)
        hint = '<p class="mild">Each row, and its reconstruction beside it.</p>'
        return f'{words}{hint}<div class="rows">{figures}</div>'
    return words + _render_features(rows, job["x"])


def _render_picture(shown: ShownRow, unit: float) -> str:
    row, pictures = shown.row, ""
    if shown.x is not None and shown.x_loc is not None:
        pictures = "".join(
            f'<img alt="{words}" src="data:image/png;base64,{_png(values * unit)}">'
            for words, values in (("row", shown.x), ("reconstruction", shown.x_loc))
        )
    ids = html.escape(", ".join(f"{name} {value}" for name, value in row.ids.items()))
    return (
        f"<figure>{pictures}<figcaption><b>{_nats(row.elbo)}</b> nats<br>"
        f"log_likelihood {_nats(row.log_likelihood)}<br>kl {_nats(row.kl)}<br>{ids}"
        "</figcaption></figure>"
    )


def _png(image: Array) -> str:
    return base64.b64encode(encode_png(image)).decode()


def _render_features(rows: Sequence[ShownRow], columns: Sequence[str]) -> str:
    size = next((row.x.size for row in rows if row.x is not None), 0)
    names = columns if len(columns) == size else [f"x[{index}]" for index in range(size)]
    lines = []
    for shown in rows:
        row = shown.row
        scores = [_nats(value) for value in (row.elbo, row.log_likelihood, row.kl)]
        lines.append(("", [*map(str, row.ids.values()), *scores, *_cells(shown.x)]))
        if shown.x_loc is not None:
            blank = [""] * (len(row.ids) + len(scores) - 1)
            lines.append(("mild", [*blank, "reconstruction", *_cells(shown.x_loc)]))
    head = [*rows[0].row.ids, "elbo", "log_likelihood", "kl", *names[:_FEATURES]]
    more = size - _FEATURES
    note = f'<p class="mild">{more} more features are not shown.</p>' if more > 0 else ""
    return f'<div class="scroll">{_table(head, lines)}</div>{note}'


def _cells(values: Array | None) -> list[str]:
    return [] if values is None else [f"{value:.4g}" for value in values.reshape(-1)[:_FEATURES]]


def _render_bad(findings: Findings, summary: Mapping[str, Any]) -> str:
    if not summary["bad"]:
        return "<p>None.</p>"
    lines = [("", [reason, f"{count:,}"]) for reason, count in findings.reasons.items()]
    return _table(["reason", "rows"], lines)


def _facts(job: Mapping[str, Any], summary: Mapping[str, Any], manifest: Manifest) -> str:
    facts = {
        "model": f"{job['model']} version {job['version']}",
        "digest": job["digest"],
        "training run": manifest.run_id,
        "git commit": manifest.git.get("sha"),
        "trained on": manifest.data.get("source"),
        "seed, draws a row": f"{job['seed']}, {job['num_samples']}",
        "device": job["device"],
        "input": f"{job['input']}: {len(job['files']):,} files, "
        f"{sum(file['rows'] for file in job['files']):,} rows",
        "columns of x": ", ".join(job["x"][:_FEATURES]),
        "filter": job["where"] or None,
        "rate of the last run": f"{summary['rows_per_s']:,.0f} rows/s over "
        f"{summary['seconds']:,.1f} s",
        "parts": f"{summary['parts']:,}",
    }
    lines = "".join(
        f"<tr><th>{name}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in facts.items()
        if value is not None
    )
    return f'<table class="facts">{lines}</table>'


def _table(head: Sequence[str], lines: Iterable[tuple[str, Sequence[str]]]) -> str:
    columns = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(
        f'<tr class="{kind}">{"".join(f"<td>{html.escape(cell)}</td>" for cell in cells)}</tr>'
        for kind, cells in lines
    )
    return f"<table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"


def _nats(value: float, sign: str = "") -> str:
    return f"{value:{sign},.2f}"
