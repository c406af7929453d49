"""The page at / of models of colour images and of a numeric table, as a browser shows them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.bundle import Bundle
from serving.engine import Engine
from tests.serving.running import Running, serve
from tests.serving.server.browser import BROWSER, Chromium, Page, start_chromium
from tests.trained_models import load, make_bundle, tiny_config, train_checkpoint

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="there is no browser"),
    pytest.mark.slow(30),
]

SCORED = "document.querySelector('#elbo') !== null"
ELBO = "Number(document.querySelector('#elbo').dataset.value)"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with start_chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Engine]]:
    """A server of images of 6 rows of 5 pixels, each with a ground of one colour."""
    folder = tmp_path_factory.mktemp("colours")
    generator = np.random.default_rng(0)
    ground = generator.integers(0, 256, (400, 1, 1, 3))
    x = np.clip(ground + generator.integers(-9, 10, (400, 6, 5, 3)), 0, 255).astype(np.uint8)
    dataset = load(folder, x)
    bundle = make_bundle(
        folder / "bundle", (train_checkpoint(dataset, tiny_config(dataset)), dataset)
    )
    with serve(folder, bundle.path, "--drain", "1") as server:
        yield server, Engine(bundle)


def pixels(page: Page, selector: str) -> np.ndarray:
    """Return the colours of a canvas, (6, 5, 3)."""
    data = page.evaluate(
        f"[...document.querySelector('{selector}').getContext('2d').getImageData(0, 0, 5, 6).data]"
    )
    return np.array(data, np.uint8).reshape(6, 5, 4)[..., :3]


def check_result(page: Page, engine: Engine, x: np.ndarray) -> None:
    """Scores and reconstruction are the engine's of this picture."""
    expected = engine.score(x[None], 16, 0)
    page.wait_for(f"Math.abs({ELBO} - {expected['elbo'][0]}) < 1e-3")
    made = engine.run("reconstruct", {"x": x[None]})["x_loc"][0]
    assert np.abs(pixels(page, ".compare figure + figure canvas") - np.round(made)).max() <= 1


def test_colours_are_shown_dropped_and_drawn(
    chromium: Chromium, colours: tuple[Running, Engine], tmp_path: Path
) -> None:
    server, engine = colours
    picture = np.zeros((60, 50, 3), np.uint8)
    picture[:30], picture[30:] = (250, 120, 10), (5, 60, 200)
    Image.fromarray(picture).save(tmp_path / "two.png")
    with chromium.open(f"{server.rest}/#play") as page:
        page.wait_for(f"{SCORED} && document.querySelector('[aria-pressed=true]') !== null")
        shown = pixels(page, "#samples .sample:nth-child(2) canvas")
        assert np.abs(shown - np.round(engine.sample(16, 7)[1])).max() <= 1
        page.choose_file(".file input", tmp_path / "two.png")
        check_result(page, engine, picture[::10, ::10])
        page.fill("input[type=color]", "#00ff40")
        page.evaluate("document.querySelector('.board').focus()")
        page.press(" ")
        drawn = pixels(page, ".board canvas")
        assert tuple(drawn[3, 2]) == (0, 255, 64)
        assert tuple(drawn[0, 0]) == (250, 120, 10)
        check_result(page, engine, drawn)
        assert page.errors == []
        assert page.hosts() == {server.rest.partition("://")[2]}


def test_a_numeric_table_is_sampled_edited_and_scored(
    chromium: Chromium, sealed_table: Bundle, tmp_path: Path
) -> None:
    engine = Engine(sealed_table)
    with serve(tmp_path, sealed_table.path, "--drain", "1") as server:
        with chromium.open(f"{server.rest}/#play", width=360, height=800) as page:
            page.wait_for(f"{SCORED} && document.querySelector('[aria-pressed=true]') !== null")
            x = engine.sample(1, 0)
            elbo = engine.score(x, 16, 0)["elbo"][0]
            assert page.evaluate(ELBO) == pytest.approx(elbo, rel=1e-4)
            cells = page.evaluate(
                "[...document.querySelectorAll('#samples tbody tr')]"
                ".map(row => [...row.cells].map(cell => cell.textContent))"
            )
            found = [
                [float(c.replace("\u2212", "-").replace(",", "")) for c in row[1:]] for row in cells
            ]
            np.testing.assert_allclose(found, engine.sample(8, 7), rtol=1e-3, atol=1e-3)
            page.fill(".fields label:nth-child(2) input", "12.5")
            x[0, 1] = 12.5
            edited = engine.score(x, 16, 0)["elbo"][0]
            assert edited != pytest.approx(elbo, rel=1e-3)
            page.wait_for(f"Math.abs({ELBO} - {edited}) < 1e-3 * {abs(edited)}")
            page.fill(".fields label:nth-child(2) input", "")
            page.wait_for("document.querySelector('#row .error').textContent.startsWith('x[1]:')")
            width = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert page.evaluate(width) == 0
            assert page.errors == []
