"""The page at /docs in a browser draws images, and shows other rows as numbers."""

import html
import http.server
import io
import json
import re
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from serving.server.page import DOCS
from tests.serving.server.browser import BROWSER

ERROR_COLOUR = (0xC6, 0x2F, 0x2F)

MEASURE = b"""<!doctype html>
<iframe src=/docs width=400 height=900 style=border:0></iframe><pre id=wide></pre>
<script>setTimeout(() => {
  const page = document.querySelector("iframe").contentDocument.documentElement;
  document.getElementById("wide").textContent = page.scrollWidth - page.clientWidth;
}, 3000)</script>"""
"""A page that shows how much wider than a narrow screen /docs is."""
OUTPUTS = [{"name": name, "datatype": "FP32", "shape": ["batch"]} for name in ("elbo", "kl")]
DARK = "--blink-settings=preferredColorScheme=0"

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="there is no browser"),
    pytest.mark.slow,
]


@contextmanager
def answering(
    x_loc: NDArray[Any], black: float = 0, white: float = 255, *, columns: Sequence[str] = ()
) -> Iterator[str]:
    """Serve the page with `x_loc` as every sample; give the URL of the page."""
    output = {"shape": x_loc.shape, "data": x_loc.reshape(-1).tolist()}
    document = {
        "info": {"title": "a model"},
        "x-operations": {"score": {"inputs": [], "outputs": OUTPUTS}},
        "x-picture-range": [black, white],
        "x-columns": columns,
        "paths": {"/v2/models/{name}/versions/{version}/infer": {"post": {"summary": "Run it"}}},
    }
    answers: dict[str, bytes] = {
        "/docs": DOCS,
        "/docs/": DOCS,
        "/measure": MEASURE,
        "/openapi.json": json.dumps(document).encode(),
        "/v2/models/sample/infer": json.dumps({"outputs": [output]}).encode(),
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = answers.get(self.path, b"")
            self.send_response(200 if content else 404)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            """Log nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/docs"
        finally:
            server.shutdown()
            thread.join()


def browse(folder: Path, url: str, *options: str) -> str:
    """Return the page's document after its script has run."""
    assert BROWSER is not None
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        "--virtual-time-budget=10000",
        *(f"--user-data-dir={folder / 'profile'}", "--window-size=600,900", *options, url),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return done.stdout


def photograph(folder: Path, x_loc: NDArray[Any], *values: float) -> set[tuple[int, int, int]]:
    """Return the colours on the page when `x_loc` is the sample."""
    with answering(x_loc, *values) as url:
        browse(folder, url, f"--screenshot={folder / 'page.png'}")
    with Image.open(io.BytesIO((folder / "page.png").read_bytes())) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    return {(int(red), int(green), int(blue)) for red, green, blue in np.unique(pixels, axis=0)}


def test_colour_and_gray_images_are_drawn(tmp_path: Path) -> None:
    colours = np.zeros((2, 8, 8, 3))
    colours[0, :, :] = (200, 30, 90)
    colours[1, :, :] = (10, 220, 130)
    found = photograph(tmp_path, colours)
    assert {(200, 30, 90), (10, 220, 130)} <= found
    assert ERROR_COLOUR not in found
    assert (100, 100, 100) in photograph(tmp_path, np.full((3, 8, 8), 100))


@pytest.mark.parametrize(
    ("black", "white"),
    [(0, 1), (0, 16), (-1, 1), (100, 2e5)],
    ids=["shares", "levels", "about 0", "large"],
)
def test_the_ends_of_the_data_are_black_and_white(
    black: float, white: float, tmp_path: Path
) -> None:
    shares = np.array([51, 200, 254])[:, None, None] / 255
    x_loc = black + np.broadcast_to(shares, (3, 8, 8)) * (white - black)
    found = photograph(tmp_path, x_loc, black, white)
    assert {(51, 51, 51), (200, 200, 200), (254, 254, 254)} <= found


def shown_rows(document: str) -> list[list[str]]:
    """Return the cells of the table of samples."""
    (table,) = re.findall(r'<table id="rows">(.*?)</table>', document, re.DOTALL)
    lines = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    return [list(map(html.unescape, re.findall(r"<t[hd]>(.*?)</t[hd]>", line))) for line in lines]


@pytest.mark.parametrize("end", ["", "/"], ids=["path", "slash"])
def test_rows_of_a_table_are_shown_as_numbers(tmp_path: Path, end: str) -> None:
    x_loc = np.array([[1234.5678, 0.25], [-3, 1e-7], [-123456.7, 8.3974e8]])
    with answering(x_loc) as url:
        document = browse(tmp_path, url + end, "--dump-dom")
    assert shown_rows(document) == [
        ["column", "sample 1", "sample 2", "sample 3"],
        ["x[0]", "1235", "-3", "-123500"],
        ["x[1]", "0.25", "1e-7", "8.397e+8"],
    ]
    assert re.findall(r'id="(?:error|more)"[^>]*>([^<]*)<', document) == ["", ""]
    assert ERROR_COLOUR not in photograph(tmp_path, x_loc)


def test_the_columns_of_a_table_are_named(tmp_path: Path) -> None:
    names = ["mean <b>area</b>", "x", *(f"sensor {index}" for index in range(68))]
    with answering(np.arange(1400).reshape(20, 70), columns=names) as url:
        document = browse(tmp_path, url, "--dump-dom")
    head, *lines = shown_rows(document)
    assert head[-1] == "sample 16"
    assert [line[0] for line in lines] == names[:64]
    assert lines[2][:3] == ["sensor 0", "2", "72"]
    assert "6 more columns and 4 more samples are not shown." in document


@pytest.mark.parametrize(
    "x_loc",
    [np.full((3, 40), -1.234e9), np.zeros((256, 8, 8))],
    ids=["table", "pictures"],
)
def test_a_narrow_screen_scrolls_only_what_is_wide(tmp_path: Path, x_loc: NDArray[Any]) -> None:
    with answering(x_loc, columns=["a_name_of_a_column_without_any_blank" * 3] * 40) as url:
        document = browse(tmp_path, url.replace("/docs", "/measure"), "--dump-dom")
    assert re.findall(r'id="wide">([^<]*)<', document) == ["0"]


def test_a_dark_screen_gets_a_dark_page(tmp_path: Path) -> None:
    screens = {"light.png": (), "dark.png": (DARK,)}
    with answering(np.zeros((1, 2))) as url:
        for name, options in screens.items():
            browse(tmp_path, url, f"--screenshot={tmp_path / name}", *options)
    for name in screens:
        with Image.open(tmp_path / name) as image:
            pixels = np.asarray(image.convert("L")).astype(int)
        assert (np.median(pixels) < 127) == (name == "dark.png")
        assert pixels.max() - pixels.min() > 200  # what is written can be read
