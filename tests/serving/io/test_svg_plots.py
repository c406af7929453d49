from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from serving.io.svg_plots import (
    BOTTOM,
    DIGIT,
    HEIGHT,
    WIDTH,
    bin_edges,
    bulk_range,
    draw_text,
    plot_functions,
    plot_histogram,
    plot_series,
)

HOSTILE = '</svg><script>alert(1)</script>&"'
EDGES = bin_edges(0, 1, 4)
SHARES = np.full(4, 0.25)


def test_plots_escape_the_words_they_embed() -> None:
    plots = [
        plot_histogram(EDGES, SHARES, HOSTILE),
        plot_functions(EDGES, np.linspace(0, 1, 5), np.linspace(0, 1, 5), 0.5, HOSTILE),
    ]
    for plot in plots:
        root = ElementTree.fromstring(plot)
        assert "<script" not in plot
        assert HOSTILE in [element.text for element in root.iter("text")]
        assert HOSTILE in root.attrib["aria-label"]


def test_a_label_escapes_its_words() -> None:
    assert ElementTree.fromstring(draw_text(1, 2, HOSTILE, "end")).text == HOSTILE


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (-35, -15, ["-35", "-30", "-25", "-20", "-15"]),
        (-93.9, 30, ["-80", "-60", "-40", "-20", "0", "20"]),
        (-1e-9, 2e-9, ["-1e-09", "0", "1e-09", "2e-09"]),
        (-654321, 123456, ["-600,000", "-400,000", "-200,000", "0"]),
        (1e9, 1e9 + 5, ["1,000,000,000", "1,000,000,002", "1,000,000,004"]),
        (-1234567, -1234560, ["-1,234,566", "-1,234,564", "-1,234,562", "-1,234,560"]),
        (0.0012, 0.00123, ["0.00120", "0.00121", "0.00122", "0.00123"]),
        (1e15, 1.01e15, ["1.000e+15", "1.005e+15", "1.010e+15"]),
        (7, 7, ["6.6", "6.8", "7.0", "7.2", "7.4"]),
    ],
    ids=["tens", "uneven", "tiny", "wide", "offset", "far", "close", "huge", "empty"],
)
def test_labels_of_any_range_are_told_apart_and_lie_in_the_picture(
    low: float, high: float, labels: list[str]
) -> None:
    edges = bin_edges(low, high, 48)
    plots = [
        plot_histogram(edges, np.full(48, 1 / 48), "ELBO in nats"),
        plot_functions(edges, np.linspace(0, 1, 49), np.linspace(0, 1, 49), low, "ELBO in nats"),
    ]
    for plot in plots:
        words = list(ElementTree.fromstring(plot).iter("text"))
        ticks = [word for word in words if word.attrib["y"] == f"{HEIGHT - BOTTOM + 12:.1f}"]
        assert [tick.text for tick in ticks] == labels
        spans = [span(word) for word in words]
        assert min(left for left, _ in spans) >= 0
        assert max(right for _, right in spans) <= WIDTH
        below = [span(tick) for tick in ticks]
        assert all(right < left for (_, right), (left, _) in pairwise(below))


@pytest.mark.parametrize(
    ("outliers", "expected"),
    [([], (-2, 2)), ([-1e6], (-6, 2)), ([-1e6, 3, 1e30], (-6, 6))],
    ids=["none", "below", "both"],
)
def test_outliers_do_not_squeeze_all_others_into_a_bar(
    outliers: list[float], expected: tuple[float, float]
) -> None:
    values = np.concatenate([np.linspace(-2, 2, 201), outliers])
    ends = bulk_range(*np.quantile(values, (0.001, 0.02, 0.98, 0.999), method="nearest"))
    assert ends == pytest.approx(expected, abs=0.3)


def span(word: ElementTree.Element) -> tuple[float, float]:
    """Return where a label begins and ends, if all its characters are as wide as a digit."""
    width = 5.5 * len(word.text or "")
    left = (
        float(word.attrib["x"])
        - {"start": 0, "middle": 0.5, "end": 1}[word.attrib["text-anchor"]] * width
    )
    return left, left + width


def test_both_axes_have_a_name() -> None:
    words = ElementTree.fromstring(plot_histogram(EDGES, SHARES, "kl in nats")).iter("text")
    assert {"share of rows", "kl in nats"} <= {word.text for word in words}


def test_a_series_has_a_mark_for_each_name_and_holds_its_limit() -> None:
    plot = plot_series([HOSTILE, "b", "c"], np.array([1.0, 3.0, -1.0]), "log e-value", 5.0)
    root = ElementTree.fromstring(plot)
    marks = [element for element in root.iter("circle")]
    heights = [float(mark.attrib["cy"]) for mark in marks]
    assert [mark[0].text for mark in marks] == [f"{HOSTILE}: 1.00", "b: 3.00", "c: -1.00"]
    assert heights[1] < heights[0] < heights[2] == HEIGHT - BOTTOM
    (limit,) = root.iter("line")
    assert float(limit.attrib["y1"]) < heights[1]
    assert "<script" not in plot


def test_the_longer_label_of_an_upright_axis_has_room() -> None:
    root = ElementTree.fromstring(plot_series(["a"], np.array([-0.0555]), "shift", 0.0))
    low = next(text for text in root.iter("text") if text.text == "-0.0555")
    assert float(low.attrib["x"]) >= DIGIT * len("-0.0555")
    (limit,) = root.iter("line")
    assert float(limit.attrib["x1"]) > float(low.attrib["x"])


def test_a_series_may_have_one_value_and_no_limit() -> None:
    root = ElementTree.fromstring(plot_series(["a"], np.array([2.0]), "shift"))
    (mark,) = root.iter("circle")
    assert float(mark.attrib["cx"]) == WIDTH / 2
    assert not list(root.iter("line"))
