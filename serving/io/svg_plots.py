"""Draw distributions as inline SVG, which takes its colours from the page's style sheet.

In: the share of rows in each bin. Out: SVG, in which the classes `new` and `held` mark the new and
the held-out rows.
"""

import html
import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

WIDTH, HEIGHT = 330, 172
LEFT, RIGHT, TOP, BOTTOM = 34, 8, 20, 32
DIGIT = 5.6
"""Width of a digit, in the units of the plot."""
_FLOOR = HEIGHT - BOTTOM
_ROWS = "share of rows"


def plot_histogram(edges: Array, shares: Array, below: str, held: Array | None = None) -> str:
    """Draw the share in each bin as a bar; draw the shares of held-out rows as a line of steps."""
    top = max(float(shares.max()), float(held.max()) if held is not None else 0, 1e-12)
    parts = list(_frame(edges, below, f"{top:.0%}" if top >= 0.1 else f"{top:.1%}"))
    for low, high, share in zip(edges, edges[1:], shares, strict=False):
        left, right = _x(edges, low), _x(edges, high)
        height = max((_FLOOR - TOP) * share / top, 1.0) if share else 0  # even one row is visible
        first, last = _label(low, high - low), _label(high, high - low)
        title = f"<title>{first} to {last}: {share:.3%}</title>"
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


def plot_series(
    names: Sequence[str], values: Array, upright: str, limit: float | None = None
) -> str:
    """Draw a value for each of some names in order, and a dashed line at `limit`.

    The upright axis holds all values and the limit.
    """
    marks = [limit] if limit is not None else []
    low, high = (float(end([*values, *marks])) for end in (np.min, np.max))
    if not high > low:
        low, high = low - 0.5, high + 0.5
    step = (high - low) / 100
    ends = _label(low, step), _label(high, step)
    edge = max(LEFT, 6 + DIGIT * max(map(len, ends)))  # all of the longer label has room
    parts = list(draw_frame((upright, ""), ends, edge, HEIGHT))
    places = np.linspace(edge + 4, WIDTH - RIGHT - 4, len(names)) if len(names) > 1 else [WIDTH / 2]
    heights = [_FLOOR - (_FLOOR - TOP) * (value - low) / (high - low) for value in values]
    points = list(zip(places, heights, strict=True))
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts.append(f'<polyline class="new" points="{line}"/>')
    for (x, y), name, value in zip(points, names, values, strict=True):
        title = f"<title>{html.escape(name)}: {_label(value, step)}</title>"
        parts.append(f'<circle class="new" cx="{x:.1f}" cy="{y:.1f}" r="2.2">{title}</circle>')
    if limit is not None:
        y = f"{_FLOOR - (_FLOOR - TOP) * (limit - low) / (high - low):.1f}"
        parts.append(f'<line class="limit" x1="{edge:g}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
    parts.append(draw_text(edge, _FLOOR + 12, names[0], "start"))
    if len(names) > 1:
        parts.append(draw_text(WIDTH - RIGHT, _FLOOR + 12, names[-1], "end"))
    return draw_svg(parts, f"{upright} over time")


def bulk_range(least: float, low: float, high: float, most: float) -> tuple[float, float]:
    """Return the range of all but outliers, which would squeeze all others into one bar.

    It reaches from `least` to `most`, but beyond the bulk of the values, which lies between `low`
    and `high`, not further than this is wide.
    """
    return max(least, 2 * low - high), min(most, 2 * high - low)


def bin_edges(low: float, high: float, bins: int) -> Array:
    """Return edges of equal bins from `low` to `high`; an empty range is widened."""
    if not high > low:
        middle, half = (low + high) / 2, max(abs(low) * 1e-3, 0.5)
        low, high = middle - half, middle + half
    return np.linspace(low, high, bins + 1)


def _x(edges: Array, value: float) -> float:
    share = (value - edges[0]) / (edges[-1] - edges[0])
    return float(LEFT + (WIDTH - LEFT - RIGHT) * share)


def _ticks(edges: Array) -> list[tuple[float, str]]:
    """Return where the labels of the lower axis are, and the labels: as many as there is room."""
    low, high = float(edges[0]), float(edges[-1])
    least = math.floor(math.log10((high - low) / 10))
    for power, factor in product(range(least, least + 4), (1, 2, 5)):
        step = factor * 10.0**power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        values = [i * step for i in range(first, last + 1)]
        labels = [_label(value, step) for value in values]
        halves = [DIGIT * len(label) / 2 + 2 for label in labels]
        places = [
            min(max(_x(edges, value), half), WIDTH - half)
            for value, half in zip(values, halves, strict=True)
        ]
        ends = zip(places[1:], halves[1:], places, halves, strict=False)
        if len(labels) <= 6 and all(x - half >= x0 + half0 for x, half, x0, half0 in ends):
            break
    return list(zip(places, labels, strict=True))


def _label(value: float, step: float) -> str:
    """Write a number with the digits that tell it from its neighbours, `step` away."""
    power = math.floor(math.log10(step) + 1e-9)
    if not value:
        return "0"
    if power < -6 or abs(value) >= 1e12:
        digits = max(math.floor(math.log10(abs(value)) + 1e-9) - power, 0)
        return f"{value:.{digits}e}"
    return f"{value:,.{max(-power, 0)}f}"


def _frame(edges: Array, below: str, top: str) -> Iterator[str]:
    yield from draw_frame((_ROWS, below), ("0", top), LEFT, HEIGHT)
    for x, label in _ticks(edges):
        yield draw_text(x, _FLOOR + 12, label, "middle")


def draw_frame(
    names: tuple[str, str], ends: tuple[str, str], left: float, height: int
) -> Iterator[str]:
    """Draw the axes: `names` of the upright and the lower one, `ends` of the upright one."""
    floor = height - BOTTOM
    yield f'<path class="axis" d="M{left:g} {TOP}V{floor}H{WIDTH - RIGHT}"/>'
    yield draw_text(2, 10, names[0], "start")
    yield draw_text(left - 4, TOP + 7, ends[1], "end")
    yield draw_text(left - 4, floor, ends[0], "end")
    yield draw_text((left + WIDTH) / 2, height - 4, names[1], "middle")


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
