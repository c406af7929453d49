from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn.decomposition import PCA

from pipeline.config import ModelConfig
from pipeline.data.dataset import Dataset, Split
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.figures import draw_figures
from pipeline.evaluation.plots import (
    plot_curves,
    plot_latents,
    plot_scores,
    principal_components,
)
from pipeline.model.vae import VAE
from serving.drift import summarize
from serving.io.images import tile
from serving.noise import draw_rows
from tests.trained_models import Trained

HISTORY = [{"elbo": -3.0, "log_likelihood": -2.0, "kl": 1.0, "valid_elbo": -4.0}] * 3
HISTORY = [row | {"valid_log_likelihood": -3.0, "valid_kl": 1.0} for row in HISTORY]
HELD_OUT = summarize(np.linspace(-9, -2, 500))
METRICS: Any = SimpleNamespace(held_out=HELD_OUT, elbo=-5.25)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_images_have_plots_and_generated_pictures(trained: Trained, tmp_path: Path) -> None:
    model, x = trained[0].model, trained[1].test.x
    test = replace(trained[1].test, labels=np.arange(len(x)) % 3)
    dataset = replace(trained[1], test=test)
    paths = draw_figures(tmp_path / "figures", model, HISTORY, dataset, METRICS)
    assert [path.name for path in paths] == [
        "curves.png",
        "latents.png",
        "scores.png",
        "reconstructions.png",
        "samples.png",
        "traversals.png",
    ]
    samples = model.decode(torch.from_numpy(draw_rows(0, 0, 100, 3))).numpy()
    np.testing.assert_array_equal(read(paths[4]), tile(samples, 10))
    np.testing.assert_array_equal(read(paths[3])[2:62:10, 2:52:10], x[0])  # the first original
    curves = read(paths[0])
    assert curves.shape[:2] == (350, 1200)
    assert len(np.unique(curves)) > 20
    # three labels have the first three colours of the palette
    colours = {tuple(pixel) for pixel in read(paths[1])[..., :3].reshape(-1, 3).tolist()}
    assert {(31, 119, 180), (255, 127, 14), (44, 160, 44)} <= colours
    assert (214, 39, 40) not in colours


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 1.0), (0.0, 200.0), (0.0, 16.0), (-1.0, 1.0), (0.0, 0.06), (-300.0, 9.0)],
    ids=["up to 1", "in units of bytes", "levels", "about 0", "small", "far below 0"],
)
def test_floats_are_shown_in_their_own_range(low: float, high: float, tmp_path: Path) -> None:
    x = np.linspace(low, high, 40 * 30, dtype=np.float32).reshape(40, 6, 5)
    model = VAE((6, 5), ModelConfig(likelihood="gaussian", hidden_dims=(4,), latent_dim=3))
    dataset = Dataset("drawn", *(Split(part, "") for part in (x, x[:0], x)))
    paths = draw_figures(tmp_path, model, HISTORY, dataset, METRICS)
    pictures = {path.name: read(path) for path in paths}
    shown = pictures["reconstructions.png"][2:62:10, 2:]  # the first originals
    assert shown.min() == 0
    expected = (x[19].astype(float) - low) / (high - low) * 255
    assert shown[:, 19 * 52 : 19 * 52 + 50 : 10] == pytest.approx(expected, abs=0.51)
    with torch.no_grad():
        samples = model.decode(torch.from_numpy(draw_rows(0, 0, 100, 3))).numpy()
    samples = (samples - low) / (high - low) * 255
    assert pictures["samples.png"] == pytest.approx(tile(samples, 10).astype(float), abs=1)


def test_a_table_has_only_plots(trained_table: Trained, tmp_path: Path) -> None:
    checkpoint, dataset = trained_table
    paths = draw_figures(tmp_path, checkpoint.model, HISTORY, dataset, METRICS)
    assert [path.name for path in paths] == ["curves.png", "latents.png", "scores.png"]


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(None, id="none"),
        pytest.param(np.linspace(0, 1, 60), id="a scale"),
        pytest.param(np.array([f"name {row}" for row in range(60)]), id="too many words"),
    ],
)
def test_latents_are_plotted_for_any_labels(labels: np.ndarray | None, tmp_path: Path) -> None:
    z = np.random.default_rng(0).standard_normal((60, 1)).astype(np.float32)
    plot_latents(tmp_path / "latents.png", z, labels)
    assert read(tmp_path / "latents.png").shape[:2] == (600, 700)


def test_an_outlier_does_not_squeeze_the_other_scores_into_one_bar(tmp_path: Path) -> None:
    """Most of the width is covered by bars, as it is without the outlier."""
    elbo = np.linspace(-9, -2, 500)
    for name, values in {"plain": elbo, "outlier": np.append(elbo, -9e4)}.items():
        plot_scores(tmp_path / f"{name}.png", summarize(values), -5.5)
        blue = (read(tmp_path / f"{name}.png")[..., :3] == (31, 119, 180)).all(-1)
        assert blue.any(0).mean() > 0.5, name


def keep_figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Return a list that receives every figure that is saved from now on."""
    drawn: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments: Any, **settings: Any) -> None:
        drawn.append(figure)
        save(figure, *arguments, **settings)

    monkeypatch.setattr(Figure, "savefig", keep)
    return drawn


def test_epochs_are_whole_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = keep_figures(monkeypatch)
    for epochs in (1, 2, 3, 40):
        plot_curves(tmp_path / "curves.png", HISTORY[:1] * epochs)
        for axes in drawn[-1].axes:
            low, high = axes.get_xlim()
            ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
            assert ticks
            assert 1 <= ticks[0] <= ticks[-1] <= epochs  # no epoch 0
            assert all(tick == round(tick) for tick in ticks)


def test_traversals_name_the_latents_that_matter_most(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The labels hold the mean KL of each latent, by its closed form, the largest first."""
    model, x = trained[0].model, trained[1].test.x
    drawn = keep_figures(monkeypatch)
    draw_figures(tmp_path, model, HISTORY, trained[1], METRICS)
    with torch.no_grad():
        qz = model.encode(torch.from_numpy(x))
        normal = torch.distributions.Normal(0, 1)
        exact = torch.distributions.kl_divergence(
            torch.distributions.Normal(qz.loc, qz.scale), normal
        )
    kl = exact.mean(0).numpy()
    labels = [text.get_text() for text in drawn[-1].axes[0].get_yticklabels()]
    order = np.argsort(-kl)
    assert labels == [f"z[{latent}]: {kl[latent]:.3g} nats" for latent in order]


def test_principal_components_equal_those_of_scikit_learn() -> None:
    z = np.random.default_rng(0).standard_normal((200, 5)) * [1, 4, 0.1, 2, 1] + 3
    reference = PCA(2).fit(z)
    points, shares = principal_components(z)
    np.testing.assert_allclose(np.abs(points), np.abs(reference.transform(z)), rtol=1e-6)
    np.testing.assert_allclose(shares, reference.explained_variance_ratio_, rtol=1e-6)
    assert principal_components(np.zeros((3, 4)))[1].tolist() == [0, 0]


def test_equal_scores_are_plotted(tmp_path: Path) -> None:
    plot_scores(tmp_path / "scores.png", summarize(np.full(20, -3.0)), -3.0)
    assert len(np.unique(read(tmp_path / "scores.png"))) > 2


def test_the_scores_have_the_mean_that_the_run_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Trained
) -> None:
    drawn = keep_figures(monkeypatch)
    metrics = evaluate(trained[0].model, trained[1].test.x, nll_samples=50, seed=0)
    draw_figures(tmp_path, trained[0].model, HISTORY, trained[1], metrics)
    assert f"held-out rows, mean {metrics.elbo:.2f}" in drawn[2].axes[0].get_title()
    # one draw of noise for each row gives the same mean up to its error
    error = metrics.held_out.elbo_sd / metrics.rows**0.5
    assert abs(metrics.held_out.elbo_mean - metrics.elbo) < 4 * error
