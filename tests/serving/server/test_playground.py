"""The playground of the page at / in a browser: what it shows are the answers of the API."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from serving.engine import Engine
from serving.noise import draw_rows
from tests.serving.conftest import MIXED
from tests.serving.running import Running, serve
from tests.serving.server.browser import BROWSER, Chromium, Page
from tests.serving.server.rest_requests import arrays_of

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="there is no browser"),
    pytest.mark.slow,
]

SCORED = "document.querySelector('#elbo') !== null"
CANVAS = "document.querySelector('.decoded canvas')"


def gray_of(page: Page, selector: str) -> np.ndarray:
    """Return the red values of a canvas, (height, width)."""
    script = (
        f"(canvas => [canvas.height, canvas.width, ...canvas.getContext('2d').getImageData("
        f"0, 0, canvas.width, canvas.height).data])(document.querySelector({json.dumps(selector)}))"
    )
    height, width, *pixels = page.evaluate(script)
    return np.array(pixels, np.uint8).reshape(height, width, 4)[..., 0]


def steady(page: Page, selector: str, expected: np.ndarray) -> None:
    """Wait until a canvas shows the expected picture, to a level of gray."""
    for _ in range(200):
        found = gray_of(page, selector).astype(int)
        if np.abs(found - np.round(expected)).max() <= 1:
            return
        page.evaluate("new Promise(done => setTimeout(done, 50))")
    raise AssertionError(f"{selector} shows {found}, and not {expected}")


@pytest.fixture
def play(chromium: Chromium, server: Running) -> Iterator[Page]:
    with chromium.open(f"{server.rest}/#play") as page:
        page.wait_for(SCORED)
        yield page
        assert page.errors == []
        assert page.hosts() == {server.rest.partition("://")[2]}


def test_samples_are_those_of_the_seed(play: Page, engine: Engine) -> None:
    for index, picture in enumerate(engine.sample(16, 7)):
        steady(play, f"#samples .sample:nth-child({index + 1}) canvas", picture)
    play.fill("#samples input", "11")
    steady(play, "#samples .sample:nth-child(3) canvas", engine.sample(16, 11)[2])


def test_a_chosen_sample_is_shown_by_its_own_latents(play: Page, engine: Engine) -> None:
    play.click("#samples .sample:nth-child(5)")
    steady(play, ".decoded canvas", engine.sample(16, 7)[4])
    shown = play.evaluate("[...document.querySelectorAll('.sliders output')].map(o => o.value)")
    expected = draw_rows(7, 4, 5, 3)[0]
    assert [float(text.replace("−", "-")) for text in shown] == pytest.approx(expected, abs=5.1e-3)  # noqa: RUF001
    assert play.evaluate("document.querySelectorAll('[aria-pressed=true]').length") == 1


def test_latents_of_any_seed_are_those_of_the_specification(play: Page) -> None:
    play.evaluate("import('./web/noise.js').then(module => { window.noise = module })")
    for seed, row in ((0, 0), (7, 3), (2**53 - 1, 2**31 + 5)):
        found = play.evaluate(f"noise.latentsOf({seed}, {row}, 50)")
        assert found == pytest.approx(draw_rows(seed, row, row + 1, 50)[0], abs=2e-6)


def test_sliders_change_the_picture_by_keyboard_alone(play: Page, engine: Engine) -> None:
    play.click("#latents button")  # all to 0
    z = np.zeros((1, 3), np.float32)
    steady(play, ".decoded canvas", engine.run("decode", {"z": z})["x_loc"][0])
    play.evaluate("document.querySelector('.sliders input').focus()")
    play.press("ArrowRight", 20)
    play.press("ArrowDown")
    focused = "document.activeElement.getAttribute('aria-label')"
    assert play.evaluate(focused) == "latent 2"
    play.press("ArrowLeft", 30)
    z[0, :2] = (1.0, -1.5)
    steady(play, ".decoded canvas", engine.run("decode", {"z": z})["x_loc"][0])
    stops = "[...document.querySelectorAll('.sliders input')].map(input => input.tabIndex)"
    assert play.evaluate(stops) == [-1, 0, -1]


def test_dragging_a_slider_sends_one_request_at_a_time(play: Page) -> None:
    play.evaluate(
        "(() => { window.most = window.now = 0; const before = window.fetch;"
        "window.fetch = async (...given) => { most = Math.max(most, ++now);"
        "try { return await before(...given) } finally { now-- } } })()"
    )
    play.evaluate(
        "(slider => { for (let n = 0; n < 500; n++) { slider.value = n / 250 - 1;"
        "slider.dispatchEvent(new Event('input')) } })(document.querySelector('.sliders input'))"
    )
    play.wait_for("window.now === 0 && window.most > 0")
    assert play.evaluate("window.most") <= 2  # with the question to /status
    assert sum("decode" in url for url in play.requests) < 20


def test_the_line_between_two_seeds(play: Page, engine: Engine) -> None:
    ends = draw_rows(1, 0, 1, 3), draw_rows(2, 0, 1, 3)
    for step in (0, 4, 8):
        z = ((8 - step) * ends[0] + step * ends[1]) / 8
        picture = engine.run("decode", {"z": z.astype(np.float32)})["x_loc"][0]
        steady(play, f".strip .sample:nth-child({step + 1}) canvas", picture)


def shown_row(page: Page) -> np.ndarray:
    return gray_of(page, ".board canvas")


def check_result(page: Page, engine: Engine, x: np.ndarray) -> None:
    """Reconstruction, scores and latents are the engine's of this picture."""
    expected = engine.score(x[None], 16, 0)
    elbo = float(expected["elbo"][0])
    page.wait_for(f"Math.abs(document.querySelector('#elbo').dataset.value - {elbo}) < 1e-3")
    for name in ("log_likelihood", "kl", "iw_elbo"):
        found = page.evaluate(f"Number(document.querySelector('#{name}').dataset.value)")
        assert found == pytest.approx(expected[name][0], rel=1e-5)
    steady(
        page,
        ".compare figure + figure canvas",
        engine.run("reconstruct", {"x": x[None]})["x_loc"][0],
    )


def test_a_drawing_is_reconstructed_and_scored(play: Page, engine: Engine) -> None:
    play.click(".drawing button")  # clear
    check_result(play, engine, np.zeros((6, 5), np.uint8))
    play.evaluate("document.querySelector('.board').scrollIntoView({block: 'center'})")
    box = play.evaluate(
        "(box => [box.x, box.y, box.width, box.height])"
        "(document.querySelector('.board').getBoundingClientRect())"
    )
    x, y = box[0] + box[2] / 2, box[1] + box[3] / 2
    play.drag([(x - 60, y), (x, y), (x + 60, y)])
    drawn = shown_row(play)
    assert drawn.max() > 150 > 50 > drawn.min()
    check_result(play, engine, drawn)


def test_drawing_by_keyboard(play: Page, engine: Engine) -> None:
    play.click(".drawing button")
    play.evaluate("document.querySelector('.board').focus()")
    play.press("ArrowUp", 9)
    play.press("ArrowLeft", 9)
    play.press(" ")
    drawn = shown_row(play)
    assert drawn.argmax() == 0
    assert drawn[4:].max() == 0
    check_result(play, engine, drawn)


def test_a_file_is_resized_to_the_shape(play: Page, engine: Engine, tmp_path: Path) -> None:
    picture = np.zeros((60, 50, 3), np.uint8)
    picture[:30] = (255, 0, 0)
    Image.fromarray(picture).save(tmp_path / "red.png")
    play.choose_file(".file input", tmp_path / "red.png")
    play.wait_for(f"{CANVAS} !== null")
    expected = np.zeros((6, 5))
    expected[:3] = 0.299 * 255
    steady(play, ".board canvas", expected)
    check_result(play, engine, np.round(expected).astype(np.uint8))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, slow_tier: None) -> Iterator[Running]:
    with serve(tmp_path_factory.mktemp("mixed"), MIXED, "--drain", "1") as running:
        yield running


def score_of(server: Running, **changes: Any) -> dict[str, np.ndarray]:
    """Score the example row by the API, with other cells in it."""
    example = httpx.get(f"{server.rest}/openapi.json").json()["x-row-by-columns"]
    inputs = [
        {**each, "data": [changes.get(each["name"], each["data"][0])]} for each in example["inputs"]
    ]
    body = {"inputs": inputs, "parameters": {"seed": 0, "num_samples": 16}}
    return arrays_of(httpx.post(f"{server.rest}/v2/models/score/infer", json=body))


def test_editing_a_row_of_a_table_changes_its_score(chromium: Chromium, mixed: Running) -> None:
    labels = "[...document.querySelectorAll('.fields label')]"
    field = f"{labels}.find(label => label.textContent.startsWith('{{}}')).lastChild"
    elbo = "Number(document.querySelector('#elbo').dataset.value)"
    with chromium.open(f"{mixed.rest}/#play") as page:
        page.wait_for(SCORED)
        assert page.evaluate(elbo) == pytest.approx(score_of(mixed)["elbo"][0], rel=1e-5)
        names = page.evaluate(
            "[...document.querySelectorAll('.fields span')].map(s => s.textContent)"
        )
        assert names == ["size", "colour", "visits", "income", "member", "opened", "grade"]
        changes: dict[str, Any] = {"size": 3.25, "colour": "white", "visits": 40}
        changes |= {"opened": "2024-02-29", "member": None}
        for name, value in changes.items():
            text = "" if value is None else 3 if name == "colour" else value
            page.evaluate(
                f"(f => {{ f.value = {json.dumps(text)}; f.dispatchEvent(new Event('input', "
                f"{{bubbles: true}})) }})({field.format(name)})"
            )
        expected = score_of(mixed, **changes)
        page.wait_for(f"Math.abs({elbo} - {expected['elbo'][0]}) < 1e-3")
        costs = page.evaluate(
            "[...document.querySelectorAll('#column-costs tbody th')].map(t => t.textContent)"
        )
        parameters = httpx.get(f"{mixed.rest}/v2/models/score").json()["parameters"]
        log_likelihood = expected["column_log_likelihood"][0]
        known = np.flatnonzero(~np.isnan(log_likelihood))
        order = known[np.argsort(log_likelihood[known], kind="stable")]
        assert costs[:3] == [parameters["x_columns"][place] for place in order[:3]]
        page.evaluate(
            f"(f => {{ f.value = 4; f.dispatchEvent(new Event('input', {{bubbles: true}})) }})"
            f"({field.format('colour')})"
        )
        page.wait_for("document.querySelector('.result .notice') !== null")
        assert "colour" in page.text(".result .notice")
        assert page.errors == []


def test_a_value_that_cannot_be_read_is_said(chromium: Chromium, mixed: Running) -> None:
    with chromium.open(f"{mixed.rest}/#play") as page:
        page.wait_for(SCORED)
        page.fill(".fields label:nth-child(3) input", "2.5")  # visits are whole
        page.wait_for("document.querySelector('#row .error').textContent.startsWith('visits:')")


def test_samples_of_a_table_are_words_and_dates(chromium: Chromium, mixed: Running) -> None:
    body = {"parameters": {"seed": 7, "num_samples": 8, "content_type": "pd"}}
    answer = httpx.post(f"{mixed.rest}/v2/models/sample/infer", json=body).json()
    outputs = {each["name"]: each["data"] for each in answer["outputs"]}
    with chromium.open(f"{mixed.rest}/#play", width=360, height=800) as page:
        page.wait_for("document.querySelector('#samples [aria-pressed=true]') !== null")
        cells = page.evaluate(
            "[...document.querySelectorAll('#samples tbody tr')]"
            ".map(row => [...row.cells].map(cell => cell.textContent))"
        )
        assert [row[2] for row in cells] == outputs["colour"]
        assert [row[6] for row in cells] == outputs["opened"]
        page.click("#samples .sample")
        page.wait_for("document.querySelector('#latents tbody') !== null")
        width = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(width) == 0
