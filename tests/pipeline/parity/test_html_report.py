import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from pipeline.parity.comparison_result import Comparison, Fault
from pipeline.parity.html_plots import plot_batches, plot_histogram
from pipeline.parity.html_report import render_page
from pipeline.parity.report import Difference, ParityReport
from serving.bundle import Bundle

EDGES = [-1.0, 0.0, 1.0]


def row(**changes: Any) -> Comparison:
    plain: dict[str, Any] = {
        "rule": "values",
        "operation": "encode",
        "output": "z_loc",
        "batch": 1,
        "rows": "held-out",
        "provider": "CPUExecutionProvider",
        "level": "all",
        "threads": 1,
        "tf32": False,
        "max_error": 0.5,
        "max_tolerance": 1.0,
        "rms_error": 0.1,
        "rms_tolerance": 1.0,
        "histogram": (1, 2, 0, 0),
    }
    return Comparison(**{**plain, **changes})


def shapes(svg: str, tag: str) -> list[dict[str, str]]:
    return [element.attrib for element in ET.fromstring(svg).iter(tag)]


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({}, 0.5),
        ({"rms_error": 0.75}, 0.75),
        ({"max_error": np.nan}, float("inf")),
        ({"max_error": 0.0, "max_tolerance": 0.0}, 0.1),
        ({"max_error": 1e-9, "max_tolerance": 0.0}, float("inf")),
    ],
    ids=["max", "rms", "no number", "exact", "not exact"],
)
def test_the_share_is_the_larger_share_of_the_two_tolerances(
    changes: dict[str, Any], share: float
) -> None:
    assert row(**changes).share == share


def test_a_histogram_sums_the_comparisons_and_marks_what_is_beyond_the_tolerance() -> None:
    svg = plot_histogram([row(histogram=(1, 1000, 0, 0)), row(histogram=(1, 0, 1, 1))], EDGES)
    bars = shapes(svg, "rect")
    assert [bar["class"] for bar in bars] == ["good", "good", "bad", "bad"]
    heights = [float(bar["height"]) for bar in bars]
    assert heights[1] == max(heights) > 100
    assert heights[0] == heights[2] == heights[3] == 2.5  # one among a thousand is seen
    counts = [title.text for title in ET.fromstring(svg).iter("title")]
    assert counts[0] == "below 0.1 of the tolerance: 2"
    assert counts[3] == "above 10 of the tolerance, or not a number: 1"


def test_wide_labels_are_not_cut_on_the_left() -> None:
    wide = [row(histogram=(1, 34_056_789_012, 0, 0))]
    for svg in (plot_histogram(wide, EDGES), plot_batches(wide)):
        labels = [
            text for text in ET.fromstring(svg).iter("text") if text.get("text-anchor") == "end"
        ]
        assert len(labels) >= 2
        for label in labels:  # 5.5 is the width of a digit in sans-serif of 9.5 pixels
            assert float(label.attrib["x"]) >= 5.5 * len(label.text or "")
    assert ">34,056,789,012<" in plot_histogram(wide, EDGES)


def test_both_axes_have_a_name() -> None:
    names = {
        plot_histogram([row()], EDGES): {"numbers compared", "error as a share of the tolerance"},
        plot_batches([row()]): {"share of the tolerance used", "rows in the batch"},
    }
    for svg, wanted in names.items():
        assert wanted <= {text.text for text in ET.fromstring(svg).iter("text")}


def test_rows_that_are_repeated_are_counted_as_such(sealed: Bundle) -> None:
    report = ParityReport.from_json(sealed.read_json("parity.json"))
    assert "1,000, 100 of them different" in Page(render_page(report, "bundle")).text
    earlier = replace(report, elbo=tuple(replace(row, different=0) for row in report.elbo))
    assert "of them different" not in Page(render_page(earlier, "bundle")).text


def test_batches_have_a_dot_each_and_a_line_along_the_largest() -> None:
    rows = [
        row(batch=1, max_error=0.1),
        row(batch=1, max_error=0.01),
        row(batch=64, max_error=np.nan),
    ]
    svg = plot_batches(rows)
    dots = shapes(svg, "circle")
    assert [dot["class"] for dot in dots].count("bad") == 1
    assert len(dots) == 2  # the rms error is the larger part of the second
    (line,) = shapes(svg, "polyline")
    points = [tuple(map(float, point.split(","))) for point in line["points"].split()]
    assert len(points) == 2
    limit = float(shapes(svg, "line")[0]["y1"])
    assert points[0][1] > limit > points[1][1]  # upwards is less in SVG


class Page(HTMLParser):
    """What a page asks for, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_needs_no_network_and_tells_all(sealed: Bundle) -> None:
    report = sealed.read_json("parity.json")
    text = render_page(ParityReport.from_json(report), "vae version 3")
    page = Page(text)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not {"src", "href", "onload", "onclick"} & page.attributes
    assert "@import" not in text
    assert "url(" not in text
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text
    outputs = {f"{c['operation']}.{c['output']}" for c in report["comparisons"]}
    assert len(outputs) == 15
    assert page.tags.count("svg") == 2 * len(outputs)
    assert all(output in page.text for output in outputs)
    assert page.tags.count("tr") > len(report["comparisons"])
    assert report["files"]["encoder.onnx"] in page.text
    assert report["machine"]["processor"] in page.text
    assert "Parity of vae version 3: passed" in page.text


def test_a_failed_page_names_what_failed_and_runs_nothing(sealed: Bundle) -> None:
    report = ParityReport.from_json(sealed.read_json("parity.json"))
    failed = replace(report.comparisons[0], max_error=np.nan, reason="<b>")
    first = Difference(
        graph="encoder.onnx",
        output="encode.z_loc",
        node="node_7",
        op_type="Gemm",
        value="v",
        detail="off by 1",
    )
    broken = replace(
        report,
        comparisons=(failed, *report.comparisons[1:]),
        graph_faults=(Fault("values", "<script>alert(1)</script>"),) * 11,
        first_difference=first,
    )
    text = render_page(broken, "<i>bundle</i>")
    page = Page(text)
    assert not {"script", "b", "i"} & set(page.tags)
    assert "Parity of <i>bundle</i>: failed" in page.text
    assert "first node: node_7 (Gemm) of encoder.onnx: off by 1" in page.text
    assert "and 3 more" in page.text
    assert "no number" in page.text
    assert re.search(r'<tr class="bad"><td>encode.z_loc', text)
    count = len(report.comparisons)
    some = f"{count - 1:,} of {count:,} comparisons"
    assert some in page.text
