"""Make the pictures of the page in `tests/pictures`: serve three models, and photograph them.

Run `python -m tests.make_page_pictures` when the page looks different; it trains for some minutes,
or takes bundles that an earlier run left in the folder given to it. What an observer knows is made
up by `tests.live_facts`.
"""

import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.live_facts import live_file_of, make_live_status
from tests.page_models import make_colours, make_digits, make_homes
from tests.serving.running import Running, serve
from tests.serving.server.browser import Chromium, Page, start_chromium

PICTURES = Path(__file__).parent / "pictures"
MODELS = {"digits": make_digits, "colour-digits": make_colours, "homes": make_homes}
WATCHED_S = 45
"""Seconds for which the page watches before it is photographed."""
LIMIT = 60_000
"""Bytes of a picture."""
COLUMNS = ("rent", "area", "rooms", "district", "heating", "built", "furnished")


def main(folder: Path) -> None:
    """Make all pictures."""
    for name, make in MODELS.items():
        if not (folder / name).exists():
            make(folder)
    with start_chromium(folder) as browser:
        with served(folder, "digits") as server:
            make_live_status(server.digest, shift=0.03).write(live_file_of(server.log.parent))
            with browser.open(server.rest, width=1180, height=1480) as page:
                time.sleep(WATCHED_S)
                keep(page, "page_digits")
        with served(folder, "colour-digits") as server:
            play(browser, server, "page_colours", width=1180, height=1480)
        with served(folder, "homes") as server:
            play(browser, server, "page_homes", width=1180, height=1180, scroll="row-title")
            live = make_live_status(server.digest, shift=0.5, alarm=True, columns=COLUMNS)
            live.write(live_file_of(server.log.parent))
            with browser.open(server.rest, width=390, height=1750, dark=True) as page:
                time.sleep(WATCHED_S)
                keep(page, "page_phone")


@contextmanager
def served(folder: Path, name: str) -> Iterator[Running]:
    """Serve a model, and send it requests at uneven rates."""
    stop = threading.Event()

    def ask(url: str) -> None:
        with httpx.Client(base_url=url) as client:
            for number in range(10**9):
                if stop.wait(0.01 + 0.05 * (number // 150 % 3)):
                    return
                size = 1 + number % 40
                body = {"parameters": {"seed": number, "num_samples": size}}
                client.post("/v2/models/sample/infer", json=body)

    with tempfile.TemporaryDirectory() as place:
        with serve(Path(place), folder / name, "--drain", "1", TMPDIR=place) as server:
            thread = threading.Thread(target=ask, args=(server.rest,))
            thread.start()
            try:
                yield server
            finally:
                stop.set()
                thread.join()


def play(
    browser: Chromium, server: Running, name: str, *, width: int, height: int, scroll: str = "main"
) -> None:
    """Photograph the playground from one of its elements on."""
    with browser.open(f"{server.rest}/#play", width=width, height=height) as page:
        page.wait_for("document.querySelector('#elbo') !== null")
        page.wait_for("document.querySelector('[aria-pressed=true]') !== null")
        page.evaluate(f"document.getElementById('{scroll}').scrollIntoView()")
        time.sleep(1)
        keep(page, name)


def keep(page: Page, name: str) -> None:
    """Write a picture of the window that is small enough."""
    assert page.errors == []
    page.evaluate("document.documentElement.style.scrollbarWidth = 'none'")
    for quality in (80, 65, 50, 35):
        content = page.photograph(format="webp", quality=quality)
        if len(content) < LIMIT:
            (PICTURES / f"{name}.webp").write_bytes(content)
            return
    raise SystemExit(f"{name} is too large: {len(content)} bytes")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as made:
            main(Path(made))
