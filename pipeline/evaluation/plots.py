"""Plots of training curves, of latents and of the distribution of scores.

In: numbers. Out: PNG files.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from serving.drift import HeldOut
from serving.io.images import tile

MAX_GROUPS = 20
"""Labels with more distinct values are shown on a colour scale, or omitted if they are words."""


def plot_curves(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Plot elbo, log_likelihood and kl by epoch, of training and validation."""
    figure = _figure(12, 3.5)
    epochs = range(1, len(history) + 1)
    for axes, name in zip(figure.subplots(1, 3), ("elbo", "log_likelihood", "kl"), strict=True):
        for prefix, label in (("", "training"), ("valid_", "validation")):
            if history and prefix + name in history[0]:
                axes.plot(epochs, [row[prefix + name] for row in history], ".-", label=label)
        axes.set(title=name, xlabel="epoch", ylabel="nats per row")
        axes.set_xlim(0.5, max(len(history), 1) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=100)


def plot_latents(path: Path, z_loc: NDArray[Any], labels: NDArray[Any] | None) -> None:
    """Plot the first two principal components of latents (rows, latent_dim), coloured by label."""
    figure = _figure(7, 6)
    axes = figure.subplots()
    points, shares = principal_components(z_loc)
    x, y = points.T
    groups = np.unique(labels) if labels is not None else np.empty(0)
    if labels is None or (len(groups) > MAX_GROUPS and labels.dtype.kind not in "iuf"):
        axes.scatter(x, y, s=4)
    elif len(groups) > MAX_GROUPS:
        scattered = axes.scatter(x, y, s=4, c=labels)
        figure.colorbar(scattered, label="label")
    else:
        colours = colormaps["tab10" if len(groups) <= 10 else "tab20"]
        for index, group in enumerate(groups):
            rows = labels == group
            axes.scatter(x[rows], y[rows], s=4, color=colours(index), label=str(group))
        axes.legend(markerscale=3, fontsize="small")
    axes.set(
        title="z_loc of held-out rows",
        xlabel=f"first component, {shares[0]:.0%} of the variance",
        ylabel=f"second component, {shares[1]:.0%}",
    )
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


def plot_scores(path: Path, held_out: HeldOut, mean: float) -> None:
    """Plot the density of the ELBO of held-out rows, computed from its quantiles, and its mean.

    The mean is over many draws of each row's noise, while the quantiles are of one draw.
    """
    figure = _figure(7, 3.5)
    axes = figure.subplots()
    knots = np.asarray(held_out.elbo_quantiles)
    # every interval between two quantiles holds the same share of rows
    elbo = (knots[1:] + knots[:-1]) / 2
    low, high = _bulk(elbo)
    axes.hist(elbo, bins=40, range=(low, high), density=True)
    axes.axvline(mean, color="black", linewidth=1)
    outside = 1 - np.mean((low <= elbo) & (elbo <= high))
    axes.set(
        title=f"ELBO of {held_out.rows:,} held-out rows, mean {mean:.2f}",
        xlabel="nats per row" + (f"; {outside:.1%} of the rows lie outside" if outside else ""),
        ylabel="density",
    )
    if low < high:
        axes.set_xlim(low, high)
    figure.savefig(path, dpi=100)


def _bulk(values: NDArray[Any]) -> tuple[float, float]:
    """Return the range of all values but outliers, which would squeeze the others into one bin.

    Of a normal distribution it would hold all within six standard deviations.
    """
    low, high = np.quantile(values, (0.02, 0.98), method="nearest")
    width = max(high - low, 1e-3 * abs(high))
    shown = values[(low - width <= values) & (values <= high + width)]
    return float(shown.min()), float(shown.max())


def plot_traversals(
    path: Path, images: NDArray[Any], latents: Sequence[str], values: NDArray[Any]
) -> None:
    """Plot images from 0 to 255, a line for each of `latents` and a column for each of `values`."""
    picture = tile(images, len(values))
    # tile keeps 2 pixels around each image
    height, width = (picture.shape[0] - 2) / len(latents), (picture.shape[1] - 2) / len(values)
    figure = _figure(2.2 + 0.6 * len(values), 0.8 + 0.6 * len(latents) * height / width)
    axes = figure.subplots()
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="equal")
    axes.set_xticks([1 + width * (index + 0.5) for index in range(len(values))])
    axes.set_xticklabels([f"{value:.1f}" for value in values])
    axes.set_yticks([1 + height * (index + 0.5) for index in range(len(latents))])
    axes.set_yticklabels(latents)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(title="One latent changes; its mean KL at the left", xlabel="value of the latent")
    figure.savefig(path, dpi=100)


def principal_components(z: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return coordinates (rows, 2) on the two axes of most variance, and their variance shares.

    With a single latent, the second coordinate is zero.
    """
    centred = z - z.mean(0, dtype=np.float64)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    points, shares = np.zeros((len(z), 2)), np.zeros(2)
    found = min(2, len(sizes))
    points[:, :found] = centred @ axes[:found].T
    shares[:found] = sizes[:found] ** 2 / max(float((sizes**2).sum()), np.finfo(float).tiny)
    return points, shares


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
