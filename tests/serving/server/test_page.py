"""The page at /docs in a browser draws images, and shows other rows as numbers."""

import html
import http.server
import io
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from serving.server.page import PAGE

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
ERROR_COLOUR = (0xAA, 0, 0)

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="there is no browser"),
    pytest.mark.slow,
]


@contextmanager
def answering(x_loc: NDArray[Any], black: float = 0, white: float = 255) -> Iterator[str]:
    """Serve the page with `x_loc` as every sample; give the URL of the page."""
    output = {"shape": x_loc.shape, "data": x_loc.reshape(-1).tolist()}
    document = {
        "info": {"title": "a model"},
        "x-operations": {},
        "x-picture-range": [black, white],
        "paths": {},
    }
    answers: dict[str, bytes] = {
        "/docs": PAGE,
        "/docs/": PAGE,
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


@pytest.mark.parametrize("end", ["", "/"], ids=["path", "slash"])
def test_rows_of_a_table_are_shown_as_numbers(tmp_path: Path, end: str) -> None:
    x_loc = np.array([[1234.5678, 0.25], [-3, 1e-7]])
    with answering(x_loc) as url:
        document = browse(tmp_path, url + end, "--dump-dom")
    texts = dict(re.findall(r'id="(error|rows)"[^>]*>([^<]*)<', document))
    assert html.unescape(texts["rows"]) == "1235, 0.25\n-3, 1e-7"
    assert texts["error"] == ""
    assert ERROR_COLOUR not in photograph(tmp_path, x_loc)
