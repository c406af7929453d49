"""Put a parity report into a bundle: as `parity.json`, and as a section of the model card."""

import json
from dataclasses import asdict

from pipeline.export.manifest import replace_files
from pipeline.export.model_card import render_card
from pipeline.parity.comparison_result import Comparison, describe_share
from pipeline.parity.quantization_loss import QuantizationLoss
from pipeline.parity.report import ParityReport
from serving.bundle import CARD, METRICS, PARITY, Bundle


def add_report(bundle: Bundle, report: ParityReport) -> Bundle:
    """Write the report and the card that describes it into the bundle, and seal it again."""
    card = render_card(asdict(bundle.manifest), bundle.read_json(METRICS), describe_report(report))
    text = json.dumps(report.to_json(), indent=1, allow_nan=False)
    return replace_files(bundle, {PARITY: text, CARD: card})


def describe_report(report: ParityReport) -> str:
    """Render the card's section: the verdict, and the worst comparison of each output."""
    rows = report.comparisons
    verdict = "Passed" if report.passed else "Failed"
    lines = [
        f"**{verdict}** on {' and '.join(report.devices)} ({report.processor}): of {len(rows):,} "
        f"comparisons with torch, {sum(row.passed for row in rows):,} are within the error that "
        "torch's own arithmetic makes.",
        "",
        "| output | largest error | allowed | used |",
        "|---|--:|--:|--:|",
        *(_describe_comparison(row) for row in report.worst() if row.rule == "values"),
        "",
        "For each output, the comparison that used most of its tolerance; `parity.json` has all of "
        "them.",
    ]
    loss = report.quantization_loss
    return "\n".join(lines) + ("" if loss is None else _describe_loss(loss))


def _describe_comparison(row: Comparison) -> str:
    error = "no number" if row.max_error != row.max_error else f"{row.max_error:.1e}"
    tf32 = " with TF32" if row.tf32 else ""
    return (
        f"| {row.operation}.{row.output}{tf32} | {error} | {row.max_tolerance:.1e} "
        f"| {describe_share(row.share)} |"
    )


def _describe_loss(loss: QuantizationLoss) -> str:
    """Describe what rounding the weights costs; the metrics of the card are those of float32."""
    measured = "Their ELBO is not a number."
    if loss.difference == loss.difference:
        measured = (
            f"Over {loss.rows} held-out rows their ELBO is {loss.difference:+.2g} nats from "
            f"float64's, allowed {loss.tolerance:.2g}."
        )
    text = (
        f"\n\nThe graphs are in **{loss.precision}**, and torch ran with their weights; the "
        f"metrics above are those of float32. {measured}"
    )
    if loss.cost is None:
        return text
    rates = (
        f"| {row.operation}, batch {row.batch} | {row.float32_rows_per_s:,.0f} rows/s "
        f"| {row.rows_per_s:,.0f} rows/s |"
        for row in loss.cost.rates
    )
    sizes = (
        f"| {graph} | {size.float32:,} bytes | {size.reduced:,} bytes |"
        for graph, size in loss.cost.bytes.items()
    )
    head = [f"{text}\n", f"| what | float32 | {loss.precision} |", "|---|---|---|"]
    return "\n".join([*head, *sizes, *rates, "", "The rates are those of one machine."])
