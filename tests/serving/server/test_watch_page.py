"""The page at / in a browser: what is served, what the server does, and what its rows are like."""

import http.server
import math
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.live_status import LiveStatus
from serving.server.page import FILES
from serving.server.shared_counters import SharedCounters
from tests.live_facts import live_file_of, make_live_status
from tests.serving.conftest import MIXED, SEALED
from tests.serving.running import Running, serve
from tests.serving.server.browser import BROWSER, Chromium, Page
from tests.serving.server.secured import KEY

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="there is no browser"),
    pytest.mark.slow,
]

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
SHOWN = "document.querySelector('#operations tbody') !== null"


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, slow_tier: None) -> Iterator[Running]:
    """A server whose shared folder is the only one beside its log."""
    folder = tmp_path_factory.mktemp("watched")
    with serve(folder, SEALED, "--drain", "1", TMPDIR=str(folder)) as running:
        yield running


def write_live(server: Running, **facts: Any) -> LiveStatus:
    """Write what an observer could know."""
    live = make_live_status(server.digest, **facts)
    live.write(live_file_of(server.log.parent))
    return live


def wide_by(page: Page) -> int:
    """Return by how many pixels the page is wider than the window."""
    width = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    return int(page.evaluate(width))


def check_clean(page: Page, server: Running) -> None:
    """Nothing was written to the console, and no other host was asked."""
    assert page.hosts() == {server.rest.partition("://")[2]}
    assert page.errors == []


def test_it_names_what_is_served(chromium: Chromium, watched: Running) -> None:
    with chromium.open(watched.rest) as page:
        page.wait_for(SHOWN)
        assert page.text("h1") == "bundle"
        assert watched.digest in page.text("#served")
        assert page.text("#state") == "ready"
        assert page.text("#notices") == ""
        assert page.evaluate("document.title") == f"bundle, version {watched.version}"
        check_clean(page, watched)


def test_rates_are_those_of_the_requests(chromium: Chromium, watched: Running) -> None:
    rates = "[...document.querySelectorAll('.now')].map(each => each.textContent)"
    with chromium.open(watched.rest) as page, httpx.Client(base_url=watched.rest) as client:
        page.wait_for(SHOWN)
        for seed in range(40):
            client.post("/v2/models/sample/infer", json={"parameters": {"seed": seed}})
        client.post("/v2/models/sample/infer", json={"parameters": {"seed": -1}})
        page.wait_for(f"Number({rates}[3]) > 0")
        found = client.get("/status").json()["operations"]["sample"]
        line = "[...document.querySelectorAll('#operations tbody tr')]"
        cells = page.evaluate(f"{line}.map(row => [...row.cells].map(cell => cell.textContent))")
        sample = next(row for row in cells if row[0] == "sample")
        answers = sum(found["answers"].values())
        assert sample[4:] == [str(answers), str(found["answers"]["400"]), str(found["rows"])]
        assert sample[1] != "0"
        assert sample[2].endswith("s")
        path = page.evaluate("document.querySelector('.plot path').getAttribute('d')")
        assert "L" in path or "h" in path


def test_a_hidden_page_asks_nothing(chromium: Chromium, watched: Running) -> None:
    with chromium.open(watched.rest) as page:
        page.wait_for(SHOWN)
        page.evaluate("Object.defineProperty(document, 'hidden', {value: true, writable: true})")
        page.evaluate("new Promise(done => setTimeout(done, 2500))")
        asked = page.requests.count(f"{watched.rest}/status")
        page.evaluate("new Promise(done => setTimeout(done, 4500))")
        assert page.requests.count(f"{watched.rest}/status") == asked
        page.evaluate(
            "document.hidden = false; document.dispatchEvent(new Event('visibilitychange'))"
        )
        page.wait_for("new Promise(done => setTimeout(() => done(true), 300))")
        assert page.requests.count(f"{watched.rest}/status") == asked + 1


def test_an_alarm_is_shown_with_the_windows_of_the_drift(
    chromium: Chromium, watched: Running
) -> None:
    live = write_live(watched, shift=0.5, alarm=True, capture_fault="No space left on device")
    assert live.drift is not None
    with chromium.open(watched.rest) as page:
        page.wait_for(SHOWN)
        assert page.text("#state") == "needs a look"
        assert "no longer like the held-out rows" in page.text("#notices")
        assert "No space left on device" in page.text("#notices")
        assert page.text(".verdict").startswith("Alarm since")
        assert page.text("#e-value").startswith("1.1 ")
        counts = "document.querySelector('#drift figure + p').textContent"
        assert page.evaluate(counts).startswith("96,000 rows")
        page.click("input[name=window][value='300']")
        page.wait_for(f"{counts}.startsWith('640 rows')")
        heights = (
            "[...document.querySelectorAll('.bar-live')].map(each => +each.getAttribute('height'))"
        )
        bars, rows = page.evaluate(heights), live.drift.windows[0].counts
        assert [bar / sum(bars) for bar in bars] == pytest.approx([n / sum(rows) for n in rows])
        page.evaluate("document.querySelector('input[name=window]:checked').focus()")
        page.press("ArrowRight")
        page.wait_for(f"{counts}.startsWith('7,300 rows')")
        assert page.evaluate("document.activeElement.value") == "3600"
        assert "+0.418 ± 0.037 nats" in page.text("#shadow")
        assert "55.7 MiB" in page.text("#capture")
        check_clean(page, watched)


def test_a_column_is_red_from_its_alarm_on(chromium: Chromium, watched: Running) -> None:
    live = write_live(watched, alarm=True)
    assert live.drift is not None
    limit = -math.log(live.drift.level)
    columns = {"age": limit + 0.01, "size": limit - 0.01, "a": 0.0, "b": 0.0}
    drift = replace(live.drift, drifted=("elbo", "age"), columns=columns)
    replace(live, drift=drift).write(live_file_of(watched.log.parent))
    with chromium.open(watched.rest) as page:
        page.wait_for(SHOWN)
        red = "[...document.querySelectorAll('.bars tr:has(.bad) th')].map(th => th.textContent)"
        assert page.evaluate(red) == ["age"]
        assert "rows: whole rows, age" in page.text(".verdict")
        check_clean(page, watched)


def test_rows_that_are_lost_and_a_promoted_challenger_are_said(
    chromium: Chromium, watched: Running
) -> None:
    counters = SharedCounters(live_file_of(watched.log.parent).with_name("counters"), 2, 0)
    for reason, rows in (("busy", 1200), ("size", 3)):
        counters.add("unwatched_rows", reason, value=rows)
    live = write_live(watched, shadow_fault="it is the version served")
    assert live.shadow is not None
    promoted = replace(live, shadow=replace(live.shadow, digest=watched.digest))
    promoted.write(live_file_of(watched.log.parent))
    with chromium.open(watched.rest) as page:
        page.wait_for(SHOWN)
        lost = "1,200, since the machine was busy; 3, since the request was too large"
        assert lost in page.text("#drift")
        assert "The challenger is the version served" in page.text("#shadow")
        assert page.evaluate("document.querySelector('#shadow .bad')") is None
        assert page.text("#state") == "ready"
        check_clean(page, watched)


def test_hostile_names_are_text(
    chromium: Chromium, tmp_path: Path, mixed_copy: Path, slow_tier: None
) -> None:
    hostile = mixed_copy.rename(mixed_copy.parent / HOSTILE.replace("/", ""))
    with serve(tmp_path, hostile, "--drain", "1", TMPDIR=str(tmp_path)) as server:
        write_live(server, columns=[HOSTILE, "size"], shadow_fault=HOSTILE)
        with chromium.open(server.rest) as page:
            page.wait_for(SHOWN)
            assert page.text("h1") == hostile.name
            assert page.text("#drift").count(HOSTILE) == 1
            assert page.text("#shadow").count(HOSTILE) == 1
            assert page.evaluate("document.querySelectorAll('main img').length") == 0
            assert page.evaluate("document.title").startswith(hostile.name)
            check_clean(page, server)


@pytest.fixture
def mixed_copy(tmp_path: Path) -> Path:
    shutil.copytree(MIXED, tmp_path / "models" / "mixed")
    return tmp_path / "models" / "mixed"


def test_the_key_is_asked_for_once_and_kept_in_the_tab(chromium: Chromium, locked: Running) -> None:
    with chromium.open(locked.rest) as page:
        page.wait_for("document.querySelector('#key-dialog').open")
        assert page.evaluate("document.activeElement.id") == "key"
        page.fill("#key", "wrong")
        page.press("Enter")
        page.wait_for("document.querySelector('#key-error').textContent !== ''")
        for letter in KEY:
            page.press(letter)
        page.press("Enter")
        page.wait_for(SHOWN)
        assert not page.evaluate("document.querySelector('#key-dialog').open")
        page.errors.clear()  # the browser reports each 401
        page.send("Page.reload")
        page.wait_for(f"document.readyState === 'complete' && {SHOWN}")
        assert not page.evaluate("document.querySelector('#key-dialog').open")
        check_clean(page, locked)


def test_a_server_that_is_gone_is_said(chromium: Chromium, tmp_path: Path, slow_tier: None) -> None:
    with serve(tmp_path, SEALED, "--drain", "0") as server:
        context = chromium.open(server.rest)
        page = context.__enter__()
        page.wait_for(SHOWN)
    try:
        page.wait_for("document.querySelector('#state').textContent === 'no answer'")
        assert "cannot be reached" in page.text("#notices")
    finally:
        context.__exit__(None, None, None)


@pytest.mark.parametrize("view", ["watch", "play"])
def test_a_phone_needs_no_scrolling_to_the_side(
    chromium: Chromium, watched: Running, view: str
) -> None:
    write_live(watched, alarm=True, columns=["a_long_name_without_any_blank" * 4, "x"])
    with chromium.open(f"{watched.rest}/#{view}", width=360, height=700) as page:
        page.wait_for(f"{SHOWN} && document.querySelector('#{view}').offsetHeight > 900")
        assert wide_by(page) == 0


def test_a_dark_screen_gets_a_dark_page(chromium: Chromium, watched: Running) -> None:
    found = {}
    for dark in (False, True):
        with chromium.open(watched.rest, dark=dark, still=True) as page:
            page.wait_for(SHOWN)
            style = "(name => getComputedStyle(document.body)[name].match(/\\d+/g).map(Number))"
            colours = [sum(page.evaluate(f"{style}('{n}')")) for n in ("backgroundColor", "color")]
            found[dark] = colours
            duration = "getComputedStyle(document.querySelector('nav a')).transitionDuration"
            assert page.evaluate(duration) == "0s"  # motion is reduced
    assert found[False][0] > 600 > 200 > found[False][1]
    assert found[True][0] < 150 < 600 < found[True][1]


def test_the_views_and_the_content_are_reached_by_keyboard(
    chromium: Chromium, watched: Running
) -> None:
    focused = "document.activeElement.textContent.trim()"
    with chromium.open(watched.rest) as page:
        page.wait_for(SHOWN)
        page.press("Tab")
        assert page.evaluate(focused) == "Skip to the content"
        page.press("Tab", 2)
        assert page.evaluate(focused) == "Play"
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(outline) == "solid"
        page.press("Enter")
        page.wait_for("!document.querySelector('#play').hidden")
        current = "document.querySelector('nav [aria-current]').textContent"
        assert page.evaluate(current) == "Play"


def test_it_works_behind_a_prefix(chromium: Chromium, watched: Running, proxy: str) -> None:
    for end in ("/", ""):
        with chromium.open(f"{proxy}/models/vae{end}") as page:
            page.wait_for(SHOWN)
            assert page.text("h1") == "bundle"
            page.click("nav a[href=docs]")
            page.wait_for("document.querySelector('#operations tr + tr') !== null")
            assert page.evaluate("location.pathname") == "/models/vae/docs"


@pytest.fixture
def proxy(watched: Running) -> Iterator[str]:
    """A proxy that serves the server below /models/vae."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.removeprefix("/models/vae")
            answer = httpx.get(f"{watched.rest}{path or '/'}")
            inside = path != self.path
            self.send_response(answer.status_code if inside else 404)
            for name in ("content-type", "content-security-policy"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *args: object) -> None:
            """Log nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_no_other_script_can_run(chromium: Chromium, watched: Running) -> None:
    with chromium.open(watched.rest) as page:
        page.wait_for(SHOWN)
        page.evaluate(
            "(script => { script.textContent = 'document.title = \"owned\"'; "
            "document.body.append(script) })(document.createElement('script'))"
        )
        assert page.evaluate("document.title") != "owned"
        page.wait_for("true")
        assert "Content Security Policy" in str(page.errors)


def test_the_files_have_fixed_names_types_and_tags(watched: Running) -> None:
    with httpx.Client(base_url=watched.rest) as client:
        for name, file in FILES.items():
            answer = client.get(f"/web/{name}")
            assert (answer.status_code, answer.content) == (200, file.content)
            assert answer.headers["content-type"] == file.content_type
            again = client.get(f"/web/{name}", headers={"if-none-match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        for name in ("index.html", "%2e%2e", "%2e%2e%2fpage.html", "app.js%00", "nope.js"):
            assert client.get(f"/web/{name}").status_code == 404
        assert {"index.html", "page.html"}.isdisjoint(FILES)
