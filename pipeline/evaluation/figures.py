"""Pictures of a training: plots for all data, and generated pictures for images.

In: a model, its history and held-out rows. Out: PNG files in a folder.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data.dataset import Dataset
from pipeline.evaluation.evaluate import Metrics
from pipeline.evaluation.plots import plot_curves, plot_latents, plot_scores, plot_traversals
from pipeline.model.operations import Array
from pipeline.model.vae import VAE, Posterior
from serving.io.images import is_picture, write_grid, write_pairs
from serving.noise import draw_rows
from serving.value_range import Range, picture_range, to_brightness

PAIRS = 10
ENCODED_ROWS = 1024
MOST_VALUES = 2**20
"""Values that are encoded or decoded at a time; fewer rows than `ENCODED_ROWS` if they are wide."""
MAPPED_ROWS = 10_000
"""The largest number of held-out rows in the map of latents."""
SAMPLES = 100
TRAVERSED_LATENTS = 10
TRAVERSAL = np.linspace(-3, 3, 11, dtype=np.float32)


def draw_figures(
    folder: Path,
    model: VAE,
    history: Sequence[Mapping[str, float]],
    dataset: Dataset,
    metrics: Metrics,
) -> list[Path]:
    """Write all pictures that suit the data into `folder`; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    test = dataset.test
    x = test.x
    paths = [folder / "curves.png", folder / "latents.png", folder / "scores.png"]
    plot_curves(paths[0], history)
    labels = None if test.labels is None else test.labels[:MAPPED_ROWS]
    plot_latents(paths[1], _encode(model, x[:MAPPED_ROWS]), labels)
    plot_scores(paths[2], metrics.held_out, metrics.elbo)
    if is_picture(model.x_shape):
        paths += _draw_images(folder, model, x, dataset.value_range)
    return paths


def _draw_images(folder: Path, model: VAE, x: Array, values: Range) -> list[Path]:
    bright = partial(to_brightness, black_and_white=picture_range(x.dtype, values))
    reconstructions = folder / "reconstructions.png"
    rows = x[: 4 * PAIRS]
    x_loc = _decode(model, _encode(model, rows))
    write_pairs(reconstructions, bright(rows), bright(x_loc), 2 * PAIRS)
    samples = folder / "samples.png"
    drawn = _decode(model, draw_rows(0, 0, SAMPLES, model.latent_dim))
    write_grid(samples, bright(drawn), columns=10)
    traversals = folder / "traversals.png"
    drawn, names = _traverse(model, x[:ENCODED_ROWS])
    plot_traversals(traversals, bright(drawn), names, TRAVERSAL)
    return [reconstructions, samples, traversals]


@torch.no_grad()
def _encode(model: VAE, x: Array) -> Array:
    encoded: np.ndarray[Any, Any] = _infer(model, x).loc.numpy()
    return encoded


@torch.no_grad()
def _traverse(model: VAE, x: Array) -> tuple[Array, list[str]]:
    """Return a line of rows for each latent of the largest mean KL, and what to call the lines.

    The rows are decoded from the posterior mean of the first row of `x`; only one latent changes.
    """
    qz = _infer(model, x)
    kl = qz.latent_kl().mean(0).numpy()
    latents = np.argsort(-kl, kind="stable")[:TRAVERSED_LATENTS]
    z = np.repeat(qz.loc[:1].numpy(), len(latents) * len(TRAVERSAL), axis=0)
    z[np.arange(len(z)), np.repeat(latents, len(TRAVERSAL))] = np.tile(TRAVERSAL, len(latents))
    return _decode(model, z), [f"z[{latent}]: {kl[latent]:.3g} nats" for latent in latents]


@torch.no_grad()
def _decode(model: VAE, z: Array) -> Array:
    parts = torch.split(torch.from_numpy(z), _step(model))
    decoded: np.ndarray[Any, Any] = torch.cat([model.decode(part) for part in parts]).numpy()
    return decoded


def _infer(model: VAE, x: Array) -> Posterior:
    parts = [model.encode(rows) for rows in torch.split(torch.from_numpy(x), _step(model))]
    return Posterior(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _step(model: VAE) -> int:
    return max(1, min(ENCODED_ROWS, MOST_VALUES // torch.Size(model.x_shape).numel()))
