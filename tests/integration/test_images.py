"""Folders of images as data, and colour through the whole bundle."""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from pipeline.cli.main import cli
from pipeline.data.dataset import Dataset, load_dataset
from pipeline.data.readers import read_source
from pipeline.evaluation.figures import draw_figures
from pipeline.training.loop import train
from serving.bundle import PARITY, Bundle
from serving.engine import Engine
from serving.errors import DataRefused
from serving.io.images import tile
from tests.pipeline.evaluation.test_figures import HISTORY, METRICS
from tests.trained_models import Trained, make_bundle, tiny_config, train_checkpoint

Array = NDArray[Any]

HEIGHT, WIDTH = 6, 5


def draw(seed: int, *channels: int) -> Array:
    size = (HEIGHT, WIDTH, *channels)
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def save(path: Path, pixels: Array) -> Array:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def draw_discs(folder: Path, rows: int, height: int, width: int) -> Path:
    """Discs at random places on gray, red ones in one folder and blue ones in another."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    for row in range(rows):
        name, colour = (("red", (230, 40, 40)), ("blue", (40, 60, 230)))[row % 2]
        at = generator.uniform(0.3, 0.7, 2) * (height, width)
        inside = (y - at[0]) ** 2 + (x - at[1]) ** 2 < (min(height, width) / 4) ** 2
        save(
            folder / name / f"{row:03d}.png", np.where(inside[..., None], colour, 220).astype("u1")
        )
    return folder


@pytest.mark.parametrize("channels", [(), (3,)], ids=["gray", "colour"])
def test_images_come_in_the_order_of_their_names(tmp_path: Path, channels: tuple[int, ...]) -> None:
    names = ("b.png", "a.PNG", "c/x.png", "_not.png", ".hidden.png", "__MACOSX/d.png")
    images = {name: save(tmp_path / name, draw(i, *channels)) for i, name in enumerate(names)}
    (tmp_path / "notes.txt").write_text("no image")
    rest, test, _ = read_source(str(tmp_path))
    expected = np.stack([images[name] for name in ("a.PNG", "b.png", "c/x.png")])
    np.testing.assert_array_equal(rest.x, expected, strict=True)
    assert rest.labels is None  # some lie in no folder
    assert test is None


def test_jpeg_is_read_as_pillow_decodes_it(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg", draw(0, 3))
    save(tmp_path / "b.jpeg", draw(1, 3))
    x = read_source(str(tmp_path))[0].x
    with Image.open(tmp_path / "b.jpeg") as image:
        np.testing.assert_array_equal(x[1], np.asarray(image), strict=True)


def test_a_gray_image_among_coloured_ones_gets_three_equal_channels(tmp_path: Path) -> None:
    gray, colour = save(tmp_path / "a.png", draw(0)), save(tmp_path / "b.png", draw(1, 3))
    x = read_source(str(tmp_path))[0].x
    np.testing.assert_array_equal(x, np.stack([np.stack([gray] * 3, -1), colour]), strict=True)


def test_folders_are_the_labels_of_their_images(tmp_path: Path) -> None:
    for row, name in enumerate(("dog/b.png", "cat/2/a.png", "dog/a.png")):
        save(tmp_path / name, draw(row))
    np.testing.assert_array_equal(read_source(str(tmp_path))[0].labels, ["cat", "dog", "dog"])


def test_folders_train_and_test_are_splits_with_labels_below(tmp_path: Path) -> None:
    for row, name in enumerate(("train/a.png", "train/b.png", "test/one/a.png", "test/two/a.png")):
        save(tmp_path / name, np.full((HEIGHT, WIDTH), row, np.uint8))
    rest, test, _ = read_source(str(tmp_path))
    assert test is not None
    assert (rest.x[:, 0, 0].tolist(), test.x[:, 0, 0].tolist()) == ([0, 1], [2, 3])
    np.testing.assert_array_equal(test.labels, ["one", "two"])


def test_a_folder_to_validate_on_is_the_validation_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("Training/cat/a.png", "Training/dog/b.jpg", "Val/cat/a.png", "Testing/dog/a.png")
    images = [save(tmp_path / name, draw(row)) for row, name in enumerate(names)]
    (tmp_path / "README.md").touch()
    dataset = load_dataset(str(tmp_path), valid_fraction=0.5, test_fraction=0.5)
    np.testing.assert_array_equal(dataset.sample[0], images[0])
    np.testing.assert_array_equal(dataset.valid.x, images[2:3])
    np.testing.assert_array_equal(dataset.test.x, images[3:])
    np.testing.assert_array_equal(dataset.test.labels, ["dog"])
    assert capsys.readouterr().err == (
        f"{tmp_path}: Training to train on, Val to validate on, Testing to test on; passed over "
        "1 other file, 1 .md (README.md)\n"
    )


def test_a_class_of_trains_is_a_class(tmp_path: Path) -> None:
    for row, name in enumerate(("bus/a.png", "plane/a.png", "train/a.png")):
        save(tmp_path / name, draw(row))
    train, test, valid = read_source(str(tmp_path))
    np.testing.assert_array_equal(train.labels, ["bus", "plane", "train"])
    assert test is valid is None


def other_size(folder: Path) -> None:
    save(folder / "b.png", draw(0).T)


def alpha(folder: Path) -> None:
    save(folder / "b.png", draw(0, 4))


def renamed(folder: Path) -> None:
    (folder / "b.png").write_text("text")


def cut_off(folder: Path) -> None:
    save(folder / "b.png", draw(0, 3))
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:60])


def third_folder(folder: Path) -> None:
    (folder / "a.png").unlink()
    for name in ("train", "test", "extra"):
        save(folder / name / "b.png", draw(0))


def image_beside_splits(folder: Path) -> None:
    for name in ("train", "test"):
        save(folder / name / "b.png", draw(0))


def empty_half(folder: Path) -> None:
    (folder / "a.png").unlink()
    save(folder / "train" / "b.png", draw(0))
    (folder / "test" / "not.png").mkdir(parents=True)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            other_size,
            "images must be of one size: {folder}/a.png has 5x6 pixels, {folder}/b.png has 6x5",
        ),
        (
            alpha,
            "cannot read {folder}/b.png: parts of it are transparent: lay it on a background",
        ),
        (
            renamed,
            "cannot read {folder}/b.png: it is not an image (PNG, JPEG, WebP, BMP, GIF, TIFF, "
            "PNM), or it is damaged",
        ),
        (cut_off, "cannot read {folder}/b.png: its pixels are damaged or cut off"),
        (
            third_folder,
            "{folder} has 'extra' beside 'train' and 'test': move it into one of them, or away",
        ),
        (
            image_beside_splits,
            "{folder} has a.png beside train, test: move images into one of these folders, or away",
        ),
        (empty_half, "no files in {folder}/test"),
    ],
    ids=["size", "alpha", "text", "cut off", "third folder", "image beside", "empty half"],
)
def test_refuses_and_says_why(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    save(tmp_path / "a.png", draw(1))
    spoil(tmp_path)
    with pytest.raises(DataRefused) as caught:
        load_dataset(str(tmp_path), valid_fraction=0, test_fraction=0.1)
    assert str(caught.value) == message.format(folder=tmp_path)


def test_colour_images_of_64_pixels_train(tmp_path: Path) -> None:
    folder = draw_discs(tmp_path, 40, 64, 64)
    dataset = load_dataset(str(folder), valid_fraction=0.1, test_fraction=0.25)
    assert dataset.x_shape == (64, 64, 3)
    assert dataset.test.labels is not None
    for x, label in zip(dataset.test.x, dataset.test.labels, strict=True):
        assert label == ("red" if (x[..., 0] == 230).any() else "blue")
    result = train(dataset, tiny_config(dataset, epochs=2, batch_size=10))
    assert result.history[1]["elbo"] > result.history[0]["elbo"]


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = draw_discs(tmp_path_factory.mktemp("discs"), 60, HEIGHT, WIDTH)
    dataset: Dataset = load_dataset(str(folder), valid_fraction=0.1, test_fraction=0.25)
    return train_checkpoint(dataset, tiny_config(dataset)), dataset


@pytest.fixture(scope="module")
def coloured(discs: Trained, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("coloured") / "bundle", discs)


def read(content: bytes | Path) -> Array:
    with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def vae(*arguments: object) -> None:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


def test_a_bundle_of_colour_images_passes_parity_and_shows_them(
    coloured: Bundle, discs: Trained
) -> None:
    assert coloured.read_json(PARITY)["verdict"] == "passed"
    card = (coloured.path / "MODEL_CARD.md").read_text()
    assert re.findall(r"!\[.*?\]\((.*?)\)", card) == ["samples.png", "reconstructions.png"]
    x = discs[1].test.x[:10]
    lines = tile(np.concatenate([x, Engine(coloured).reconstruct(x)]), 10)
    got = read(coloured.path / "reconstructions.png").astype(int)
    assert np.abs(got - lines).max() <= 1  # onnx and torch may round apart


def test_samples_and_reconstructions_are_written_in_colour(
    coloured: Bundle, discs: Trained, tmp_path: Path
) -> None:
    engine, x = Engine(coloured), discs[1].test.x[:3]
    np.save(tmp_path / "x.npy", x)
    grid, pairs = tmp_path / "grid.png", tmp_path / "pairs.png"
    vae("sample", "--model", coloured.path, "--count", 5, "--seed", 7, "--out", grid)
    vae("reconstruct", tmp_path / "x.npy", "--model", coloured.path, "--out", pairs)
    np.testing.assert_array_equal(read(grid), tile(engine.sample(5, 7)))
    turns = np.stack([x, engine.reconstruct(x)], axis=1).reshape(-1, *x.shape[1:])
    np.testing.assert_array_equal(read(pairs), tile(turns, 4))


def test_a_report_on_scores_shows_rows_in_colour(
    coloured: Bundle, discs: Trained, tmp_path: Path
) -> None:
    x = discs[1].test.x
    np.save(tmp_path / "x.npy", x)
    page = tmp_path / "r.html"
    vae("score", tmp_path / "x.npy", tmp_path / "out", "--model", coloured.path, "--report", page)
    shown = re.findall(r'alt="row" src="data:image/png;base64,(.*?)"', page.read_text())
    lowest = Engine(coloured).score(x, num_samples=1, seed=0)["elbo"].argmin()
    np.testing.assert_array_equal(read(base64.b64decode(shown[0])), x[lowest])


def test_figures_of_a_training_are_in_colour(discs: Trained, tmp_path: Path) -> None:
    checkpoint, dataset = discs
    paths = draw_figures(tmp_path, checkpoint.model, HISTORY, dataset, METRICS)[1:]
    names = ["latents.png", "scores.png", "reconstructions.png", "samples.png", "traversals.png"]
    assert [path.name for path in paths] == names
    rows = len(dataset.test.x)  # fewer than a line takes
    pairs = read(paths[2])
    assert pairs.shape == (2 * (10 * HEIGHT + 2) + 2, rows * (10 * WIDTH + 2) + 2, 3)
    for row, image in enumerate(dataset.test.x):
        left = 2 + row * (10 * WIDTH + 2)
        shown = pairs[2 : 2 + 10 * HEIGHT : 10, left : left + 10 * WIDTH : 10]  # enlarged
        np.testing.assert_array_equal(shown, image)
    assert read(paths[3]).shape[2] == 3
    with Image.open(paths[4]) as plot:
        pixels = np.asarray(plot.convert("RGB")).astype(int)
    assert np.ptp(pixels, axis=2).max() > 20  # what is gray has three equal channels
