from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.figures import draw_figures
from serving.formats import tile
from serving.noise import draw_rows
from tests.pipeline.conftest import Trained

HISTORY = [{"elbo": -3.0, "log_likelihood": -2.0, "kl": 1.0, "valid_elbo": -4.0}] * 3
HISTORY = [row | {"valid_log_likelihood": -3.0, "valid_kl": 1.0} for row in HISTORY]


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_pictures_of_images(trained: Trained, tmp_path: Path) -> None:
    model, x = trained[0].model, trained[1].test.x
    paths = draw_figures(tmp_path / "figures", model, HISTORY, x)
    assert [path.name for path in paths] == [
        "curves.png",
        "reconstructions.png",
        "samples.png",
        "traversals.png",
    ]
    import torch

    samples = model.decode(torch.from_numpy(draw_rows(0, 0, 100, 3))).numpy()
    np.testing.assert_array_equal(read(paths[2]), tile(samples, 10))
    np.testing.assert_array_equal(read(paths[1])[2:8, 2:7], x[0])  # the first original
    curves = read(paths[0])
    assert curves.shape[:2] == (350, 1200)
    assert len(np.unique(curves)) > 20


def test_a_table_has_curves_alone(trained_table: Trained, tmp_path: Path) -> None:
    checkpoint, dataset = trained_table
    paths = draw_figures(tmp_path, checkpoint.model, HISTORY, dataset.test.x)
    assert [path.name for path in paths] == ["curves.png"]
