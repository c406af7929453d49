"""Report on the scores of a job as one HTML file that needs no network, in light and in dark.

In: a finished output folder and its input. Out: the page, and its figures by name. Raises
`DataRefused` if the input cannot be read again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.batch.held_out_comparison import Comparison, compare_rows
from serving.batch.output import Output
from serving.batch.score_summary import ScoreSummary, summarize_scores
from serving.batch.scorer import Scorer
from serving.batch.shown_rows import FEATURES, describe_rows, nats, show_rows
from serving.batch.streaming_histogram import StreamingHistogram
from serving.bundle import METRICS, Manifest
from serving.drift import KNOTS, LOW_SHARE, Drift, HeldOut, read_held_out
from serving.files import staged_file
from serving.io import html_pages
from serving.io.rows import Rows
from serving.io.svg_plots import bin_edges, bulk_range, plot_functions, plot_histogram

Array = NDArray[Any]
Plot = tuple[str, str]
"""A plot as SVG, and its caption."""

_BINS = 48
_SHARES = (0.001, 0.02, 0.98, 0.999)
"""Shares of the rows below the ends of a plot, and of the bulk of the rows, see `bulk_range`."""
_SCORES = {"elbo": "ELBO", "latent": "minus KL"}
"""Words for scores whose names are no words of the page."""


def write_report(
    path: Path, output: Output, summary: Mapping[str, Any], scorer: Scorer, rows: Rows
) -> dict[str, float]:
    """Write the report of a finished job, whole or not at all; return its figures.

    Raises:
        DataRefused: the input cannot be read again.
    """
    bundle, job = scorer.engine.bundle, output.job
    part_rows = job["part_rows"]
    by, flagged = scorer.results.by or "elbo", summary.get("flagged") or 0
    scores = summarize_scores(output, summary["parts"], scorer, by, flagged)
    held_out, compared = read_held_out(bundle.read_json(METRICS)), None
    if held_out is not None:
        scored = scores.histograms["elbo"].rows
        compared = compare_rows(scorer, rows, held_out, scored=scored, part_rows=part_rows)
    lowest, highest = (
        show_rows(ends, scorer, rows, part_rows) for ends in (scores.lowest, scores.highest)
    )
    page = html_pages.render_page(
        "serving.batch",
        "html_report.html",
        subject=job["input"],
        summary=_describe_job(scores, job, summary),
        by=_SCORES.get(by, by),
        flagged=flagged,
        drift=_describe_drift(held_out, compared),
        distributions=[
            (name, *_plot_scores(name, scores.histograms[name])) for name in scores.histograms
        ],
        lowest=describe_rows(lowest, job, bundle),
        highest=describe_rows(highest, job, bundle),
        reasons=[("", [reason, f"{count:,}"]) for reason, count in scores.reasons.items()],
        facts=_list_facts(job, summary, bundle.manifest),
    )
    with staged_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return list_figures(scores, summary, compared.drift if compared else None)


def list_figures(
    scores: ScoreSummary, summary: Mapping[str, Any], drift: Drift | None
) -> dict[str, float]:
    """Return the figures to track over time: means, drift, bad rows and the rate."""
    figures = {f"score_{name}": histogram.mean for name, histogram in scores.histograms.items()}
    figures |= {f"score_{name}": summary[name] for name in ("rows", "bad", "rows_per_s")}
    if drift is not None:
        figures |= {
            "score_drift_d": drift.d,
            "score_drift_p": drift.p_value,
            "score_drift_mean_shift": drift.mean_shift,
            "score_low_share": drift.low_share,
        }
    return figures


def _describe_job(scores: ScoreSummary, job: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    elbo = scores.histograms["elbo"]
    words = (
        f"{elbo.rows:,} rows were scored by {job['model']} version {job['version']}, "
        f"at {summary['rows_per_s']:,.0f} rows/s"
    )
    if elbo.rows:
        words += f"; their mean ELBO is {nats(elbo.mean)} nats"
    words = f"{words}. {summary['bad']:,} rows have no score."
    if summary.get("flagged"):
        words += (
            f" {summary['flagged']:,} rows are flagged, which have p-values up to "
            f"{summary['threshold']:.2g}: on average, at most {100 * job['fdr']:.3g} % of "
            "flagged rows are as usual as the held-out rows."
        )
    elif "flagged" in summary:
        words += f" No row is flagged at a false discovery rate of {100 * job['fdr']:.3g} %."
    return words


def _describe_drift(held: HeldOut | None, compared: Comparison | None) -> dict[str, Sequence[Any]]:
    if held is None:
        words = (
            "Unknown: this version carries no held-out distribution. "
            "Evaluate and export it again with this version of vae-pipeline."
        )
        return {"words": [words], "plots": []}
    if compared is None:
        return {"words": ["Unknown: no row was scored."], "plots": []}
    drift = compared.drift
    words = (
        f"The mean ELBO is {nats(drift.mean_shift, '+')} ± {drift.mean_shift_se:.2f} nats from "
        f"that of the {held.rows:,} held-out rows, {nats(held.elbo_mean)}. "
        f"Kolmogorov-Smirnov: D = {drift.d:.3f} of 1, p = {drift.p_value:.2g}. "
        f"{drift.low_share:.2%} of the rows lie below {1 - LOW_SHARE:.0%} of the held-out rows."
    )
    like = (
        f"For this, {drift.rows:,} rows were scored again as the held-out rows had been, with "
        f"{_count(held.num_samples, 'draw')} per row; their mean is {nats(drift.mean)}. The scores "
        "below have the draws and the seed of the job."
    )
    hint = (
        "D is the largest distance of the two distribution functions, at the dashed line: 0 if "
        "they are equal, 1 if no row of one reaches the other. Read D: with many rows p is tiny "
        f"even if the difference does not matter. D is computed at {KNOTS} quantiles, and may be "
        f"up to {1 / (KNOTS - 1):.3f} too small."
    )
    return {"words": [words, like, hint], "plots": _plot_drift(compared.elbo, held, drift)}


def _plot_drift(elbo: StreamingHistogram, held: HeldOut, drift: Drift) -> list[Plot]:
    quantiles = np.asarray(held.elbo_quantiles)
    new_range = bulk_range(*map(elbo.quantile, _SHARES))
    low, high = np.quantile(quantiles, _SHARES[1:3])
    held_range = bulk_range(quantiles[1], low, high, quantiles[-2])
    edges = bin_edges(min(new_range[0], held_range[0]), max(new_range[1], held_range[1]), _BINS)
    fine = bin_edges(edges[0], edges[-1], 4 * _BINS)
    function = np.cumsum(elbo.histogram(np.concatenate([[-np.inf], fine, [np.inf]])))[:-1]
    # shares by bin from a distribution function at the edges; the outer bins are open
    held_shares = np.diff(np.concatenate([[0.0], held.cdf(edges)[1:-1], [1.0]]))
    shares = plot_histogram(edges, elbo.histogram(edges), "ELBO in nats", held_shares)
    functions = plot_functions(fine, function, held.cdf(fine), drift.d_at, "ELBO in nats")
    return [(shares, "share of rows by ELBO"), (functions, "share of rows up to an ELBO")]


def _plot_scores(name: str, histogram: StreamingHistogram) -> Plot:
    if not histogram.rows:
        return "", "no rows"
    edges = bin_edges(*bulk_range(*map(histogram.quantile, _SHARES)), _BINS)
    caption = (
        f"mean {nats(histogram.mean)}, standard deviation {histogram.sd:,.2f}, "
        f"median {nats(histogram.quantile(0.5))}, from {nats(histogram.least)} to "
        f"{nats(histogram.most)}"
    )
    return plot_histogram(edges, histogram.histogram(edges), f"{name} in nats"), caption


def _list_facts(
    job: Mapping[str, Any], summary: Mapping[str, Any], manifest: Manifest
) -> dict[str, str | None]:
    return {
        "model": f"{job['model']} version {job['version']}",
        "digest": job["digest"],
        "training run": manifest.run_id,
        "git commit": manifest.git.get("sha"),
        "trained on": manifest.data.get("source"),
        "seed, draws per row": f"{job['seed']}, {job['num_samples']}",
        "device": job["device"],
        "input": f"{job['input']}: {_count(len(job['files']), 'file')}, "
        f"{_count(sum(file['rows'] for file in job['files']), 'row')}",
        "columns of x": ", ".join(job["x"][:FEATURES]),
        "filter": job["where"] or None,
        "rate of the last run": f"{summary['rows_per_s']:,.0f} rows/s over "
        f"{summary['seconds']:,.3g} s",
        "parts": f"{summary['parts']:,}",
    }


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
