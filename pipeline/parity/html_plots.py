"""Two plots of a parity report as inline SVG: the errors of one output, and its tolerance by batch.

In: comparisons of one output. Out: SVG that takes its colours from the page (`--ink`, `--mild`,
`--good`, `--bad`). Errors that are not numbers are at the far end, in `--bad`.
"""

import math
from collections.abc import Sequence

from pipeline.parity.comparison_result import Comparison
from serving.io.svg_plots import (
    BOTTOM,
    DIGIT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    draw_frame,
    draw_svg,
    draw_text,
)

HEIGHT = 164
DECADES = (-4, 1)
"""Shares of the tolerance that are shown, as powers of ten; 0 is the whole tolerance."""
_FLOOR = HEIGHT - BOTTOM


def plot_histogram(rows: Sequence[Comparison], edges: Sequence[float]) -> str:
    """Draw bars over log10(error / tolerance), summed over comparisons; outer bins are open."""
    counts = [sum(row.histogram[i] for row in rows) for i in range(len(edges) + 1)]
    largest = max(*counts, 1)
    left = _margin(f"{largest:,}")
    width = (WIDTH - left - RIGHT) / len(counts)
    names = ("numbers compared", "error as a share of the tolerance")
    parts = list(draw_frame(names, ("0", f"{largest:,}"), left, HEIGHT))
    for i, count in enumerate(counts):
        # an error above the tolerance must be seen among a million below
        height = max((_FLOOR - TOP) * count / largest, 2.5) if count else 0
        kind = "bad" if i == len(edges) or (i > 0 and edges[i - 1] >= 0) else "good"
        title = f"<title>{_bin_name(i, edges)}: {count:,}</title>"
        parts.append(
            f'<rect class="{kind}" x="{left + i * width + 0.5:.1f}" y="{_FLOOR - height:.1f}" '
            f'width="{width - 1:.1f}" height="{height:.1f}">{title}</rect>'
        )
    for i, edge in enumerate(edges):
        x = left + (i + 1) * width
        if edge == 0:
            parts.append(_limit(x, x, TOP, _FLOOR))
        if float(edge).is_integer():
            parts.append(draw_text(x, _FLOOR + 12, _power(edge), "middle"))
    return draw_svg(parts, f"histogram of {sum(counts):,} errors", HEIGHT)


def plot_batches(rows: Sequence[Comparison]) -> str:
    """Draw a dot for each comparison over its batch size, and a line along the largest."""
    batches = sorted({row.batch for row in rows})
    low, high = DECADES
    left = _margin(_power(low))
    step = (WIDTH - left - RIGHT) / max(len(batches), 1)
    place = {batch: left + (i + 0.5) * step for i, batch in enumerate(batches)}

    def height(row: Comparison) -> float:
        share = row.share
        power = math.log10(share) if share > 0 else -math.inf
        return TOP + (_FLOOR - TOP) * (high - min(max(power, low), high)) / (high - low)

    names = ("share of the tolerance used", "rows in the batch")
    parts = list(draw_frame(names, (_power(low), _power(high)), left, HEIGHT))
    limit = TOP + (_FLOOR - TOP) * high / (high - low)
    parts.append(_limit(left, WIDTH - RIGHT, limit, limit))
    parts.append(draw_text(left - 4, limit + 3, "1", "end"))
    tops = {batch: min(height(row) for row in rows if row.batch == batch) for batch in batches}
    points = " ".join(f"{place[batch]:.1f},{tops[batch]:.1f}" for batch in batches)
    parts.append(f'<polyline points="{points}"/>')
    dots = {(row.batch, f"{height(row):.1f}", row.passed) for row in rows}
    for batch, y, passed in sorted(dots):
        kind = "good" if passed else "bad"
        parts.append(f'<circle class="{kind}" cx="{place[batch]:.1f}" cy="{y}" r="2.4"/>')
    parts += [draw_text(x, _FLOOR + 12, f"{batch:,}", "middle") for batch, x in place.items()]
    return draw_svg(parts, f"share of the tolerance used at {len(batches)} batch sizes", HEIGHT)


def _margin(label: str) -> float:
    """Return a margin on the left in which the whole label is seen."""
    return max(LEFT, 8 + DIGIT * len(label))


def _bin_name(i: int, edges: Sequence[float]) -> str:
    if i == 0:
        return f"below {10 ** edges[0]:.2g} of the tolerance"
    if i == len(edges):
        return f"above {10 ** edges[-1]:.2g} of the tolerance, or not a number"
    return f"{10 ** edges[i - 1]:.2g} to {10 ** edges[i]:.2g} of the tolerance"


def _power(exponent: float) -> str:
    return "1" if exponent == 0 else f"{10.0**exponent:g}"


def _limit(x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="limit" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'
