"""Pictures of a training: curves for any data; samples, reconstructions and traversals for images.

In: a model, its history and held-out rows. Out: PNG files in a folder.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.model import VAE
from pipeline.reference import Array
from serving.formats import is_picture, write_grid, write_pairs
from serving.noise import draw_rows

PAIRS = 10
SAMPLES = 100
TRAVERSED_LATENTS = 10
TRAVERSAL = np.linspace(-3, 3, 11, dtype=np.float32)


def draw_figures(
    folder: Path, model: VAE, history: Sequence[Mapping[str, float]], x: Array
) -> list[Path]:
    """Write all pictures that fit the data into `folder`; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    curves = folder / "curves.png"
    plot_curves(curves, history)
    if not is_picture(model.x_shape):
        return [curves]
    unit = 1.0 if x.dtype == np.uint8 else 255.0  # floats in [0, 1] are shown as bytes
    reconstructions = folder / "reconstructions.png"
    rows = x[: 4 * PAIRS]
    write_pairs(reconstructions, rows * unit, _reconstruct(model, rows) * unit, 2 * PAIRS)
    samples = folder / "samples.png"
    drawn = _decode(model, draw_rows(0, 0, SAMPLES, model.latent_dim))
    write_grid(samples, drawn * unit, columns=10)
    traversals = folder / "traversals.png"
    write_grid(traversals, _traversals(model, x) * unit, len(TRAVERSAL))
    return [curves, reconstructions, samples, traversals]


def plot_curves(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Plot elbo, log_likelihood and kl by epoch, of training and validation."""
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    epochs = range(1, len(history) + 1)
    for axes, name in zip(figure.subplots(1, 3), ("elbo", "log_likelihood", "kl"), strict=True):
        for prefix, label in (("", "training"), ("valid_", "validation")):
            if history and prefix + name in history[0]:
                axes.plot(epochs, [row[prefix + name] for row in history], ".-", label=label)
        axes.set(title=name, xlabel="epoch", ylabel="nats a row")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=100)


@torch.no_grad()
def _reconstruct(model: VAE, x: Array) -> Array:
    return _decode(model, model.encode(torch.from_numpy(x)).loc.numpy())


@torch.no_grad()
def _traversals(model: VAE, x: Array) -> Array:
    """A line for each of the most informative latents: it moves from -3 to 3, the others rest."""
    z_loc = model.encode(torch.from_numpy(x[:1000])).loc
    latents = z_loc.var(0, correction=0).argsort(descending=True)[:TRAVERSED_LATENTS]
    z = np.repeat(z_loc[:1].numpy(), len(latents) * len(TRAVERSAL), axis=0)
    for line, latent in enumerate(latents.tolist()):
        start = line * len(TRAVERSAL)
        z[start : start + len(TRAVERSAL), latent] = TRAVERSAL
    return _decode(model, z)


@torch.no_grad()
def _decode(model: VAE, z: Array) -> Array:
    decoded: np.ndarray[Any, Any] = model.decode(torch.from_numpy(z)).numpy()
    return decoded
