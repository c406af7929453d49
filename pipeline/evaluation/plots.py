"""Plots of numbers: curves of a training, a map of latents, the distribution of scores.

In: numbers. Out: PNG files.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from serving.drift import HeldOut

MAX_GROUPS = 20
"""Labels of more values than this are shown as a scale, or not at all where they are words."""


def plot_curves(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Plot elbo, log_likelihood and kl by epoch, of training and validation."""
    figure = _figure(12, 3.5)
    epochs = range(1, len(history) + 1)
    for axes, name in zip(figure.subplots(1, 3), ("elbo", "log_likelihood", "kl"), strict=True):
        for prefix, label in (("", "training"), ("valid_", "validation")):
            if history and prefix + name in history[0]:
                axes.plot(epochs, [row[prefix + name] for row in history], ".-", label=label)
        axes.set(title=name, xlabel="epoch", ylabel="nats a row")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=100)


def plot_latents(path: Path, z_loc: NDArray[Any], labels: NDArray[Any] | None) -> None:
    """Map latents (rows, latent_dim) to their first two principal components, by label."""
    figure = _figure(7, 6)
    axes = figure.subplots()
    places, shares = principal_components(z_loc)
    x, y = places.T
    groups = np.unique(labels) if labels is not None else np.empty(0)
    if labels is None or (len(groups) > MAX_GROUPS and labels.dtype.kind not in "iuf"):
        axes.scatter(x, y, s=4)
    elif len(groups) > MAX_GROUPS:
        points = axes.scatter(x, y, s=4, c=labels)
        figure.colorbar(points, label="label")
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


def plot_scores(path: Path, held_out: HeldOut) -> None:
    """Plot the density of the ELBO of held-out rows, from its quantiles."""
    figure = _figure(7, 3.5)
    axes = figure.subplots()
    knots = np.asarray(held_out.elbo_quantiles)
    # every piece between two quantiles holds the same share of rows
    axes.hist((knots[1:] + knots[:-1]) / 2, bins=40, density=True)
    axes.axvline(held_out.elbo_mean, color="black", linewidth=1)
    axes.set(
        title=f"ELBO of {held_out.rows:,} held-out rows as vae score gives it, "
        f"mean {held_out.elbo_mean:.2f}",
        xlabel="nats a row",
        ylabel="density",
    )
    figure.savefig(path, dpi=100)


def principal_components(z: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Coordinates (rows, 2) on the two widest axes, and the variance shares of these.

    A single latent has a second axis of zeros.
    """
    centred = z - z.mean(0, dtype=np.float64)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    places, shares = np.zeros((len(z), 2)), np.zeros(2)
    found = min(2, len(sizes))
    places[:, :found] = centred @ axes[:found].T
    shares[:found] = sizes[:found] ** 2 / max(float((sizes**2).sum()), np.finfo(float).tiny)
    return places, shares


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
