from xml.etree import ElementTree

import numpy as np

from serving.io.svg_plots import bin_edges, draw_text, plot_functions, plot_histogram

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
