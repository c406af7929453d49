"""Draw distributions as inline SVG, which takes its colours from the page's style sheet.

In: the share of rows in each bin. Out: SVG, in which the classes `new` and `held` mark the new and
the held-out rows.
"""

import html
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

WIDTH, HEIGHT = 330, 160
LEFT, RIGHT, TOP, BOTTOM = 34, 8, 8, 32
_FLOOR = HEIGHT - BOTTOM


def plot_histogram(edges: Array, shares: Array, below: str, held: Array | None = None) -> str:
    """Draw the share in each bin as a bar; draw the shares of held-out rows as a line of steps."""
    top = max(float(shares.max()), float(held.max()) if held is not None else 0, 1e-12)
    parts = list(_frame(edges, below, f"{top:.0%}" if top >= 0.1 else f"{top:.1%}"))
    for low, high, share in zip(edges, edges[1:], shares, strict=False):
        left, right = _x(edges, low), _x(edges, high)
        height = max((_FLOOR - TOP) * share / top, 1.0) if share else 0  # even one row is visible
        title = f"<title>{_number(low)} to {_number(high)}: {share:.3%}</title>"
        parts.append(
            f'<rect class="new" x="{left + 0.3:.1f}" y="{_FLOOR - height:.1f}" '
            f'width="{right - left - 0.6:.1f}" height="{height:.1f}">{title}</rect>'
        )
    if held is not None:
        steps = [
            f"{_x(edges, value):.1f},{_FLOOR - (_FLOOR - TOP) * share / top:.1f}"
            for low, high, share in zip(edges, edges[1:], held, strict=False)
            for value in (low, high)
        ]
        parts.append(f'<polyline class="held" points="{" ".join(steps)}"/>')
    return draw_svg(parts, f"histogram of {below}")


def plot_functions(points: Array, new: Array, held: Array, mark: float, below: str) -> str:
    """Draw two distribution functions at `points`, and a dashed line at `mark`."""
    parts = list(_frame(points, below, "1"))
    for kind, values in (("held", held), ("new", new)):
        line = " ".join(
            f"{_x(points, point):.1f},{_FLOOR - (_FLOOR - TOP) * value:.1f}"
            for point, value in zip(points, values, strict=True)
        )
        parts.append(f'<polyline class="{kind}" points="{line}"/>')
    if points[0] <= mark <= points[-1]:
        x = f"{_x(points, mark):.1f}"
        parts.append(f'<line class="limit" x1="{x}" x2="{x}" y1="{TOP}" y2="{_FLOOR}"/>')
    return draw_svg(parts, f"distribution functions of {below}")


def bin_edges(low: float, high: float, bins: int) -> Array:
    """Return edges of equal bins from `low` to `high`; an empty range is widened."""
    if not high > low:
        middle, half = (low + high) / 2, max(abs(low) * 1e-3, 0.5)
        low, high = middle - half, middle + half
    return np.linspace(low, high, bins + 1)


def _x(edges: Array, value: float) -> float:
    share = (value - edges[0]) / (edges[-1] - edges[0])
    return float(LEFT + (WIDTH - LEFT - RIGHT) * share)


def _ticks(low: float, high: float) -> list[float]:
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _frame(edges: Array, below: str, top: str) -> Iterator[str]:
    yield f'<path class="axis" d="M{LEFT} {TOP}V{_FLOOR}H{WIDTH - RIGHT}"/>'
    yield draw_text(LEFT - 4, TOP + 7, top, "end")
    yield draw_text(LEFT - 4, _FLOOR, "0", "end")
    for tick in _ticks(float(edges[0]), float(edges[-1])):
        yield draw_text(_x(edges, tick), _FLOOR + 12, _number(tick), "middle")
    yield draw_text((LEFT + WIDTH) / 2, HEIGHT - 4, below, "middle")


def _number(value: float) -> str:
    return f"{value:,.6g}"


def draw_text(x: float, y: float, words: str, anchor: str) -> str:
    """Draw a label, with its words escaped."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'


def draw_svg(parts: Sequence[str], label: str, height: int = HEIGHT) -> str:
    """Join the parts of a plot, which is `WIDTH` wide."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{html.escape(label)}">'
        + "".join(parts)
        + "</svg>"
    )
