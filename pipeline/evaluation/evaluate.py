"""Evaluate a model on held-out rows: ELBO, its terms, the NLL and the active units.

In: a model, rows, the number of importance samples and a seed. Out: `Metrics`, in nats. They
include the distribution of the ELBO of single rows, as `vae score` computes it, so that the scores
of new rows can be compared with it.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import TrainingDiverged
from pipeline.model.objective import ElboTerms, elbo_terms
from pipeline.model.vae import VAE
from serving.drift import SCORE_SEED, HeldOut, held_out_samples, summarize
from serving.errors import DataRefused
from serving.noise import draw_eps

ROWS_PER_CHUNK = 64
SAMPLES_PER_CHUNK = 16
"""Together they bound memory to 1,024 decoded rows at a time, which fit a processor's cache."""
MOST_VALUES = 2**20
"""Decoded values at a time, so that wide rows do not fill memory; 1,024 rows of MNIST are fewer."""

ACTIVE_VARIANCE = 0.01
INFORMATIVE = 0.1
"""Nats from which on a latent tells something about a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Means over rows in nats; `_se` is a standard error over rows."""

    rows: int
    elbo: float
    elbo_se: float
    log_likelihood: float
    log_likelihood_se: float
    kl: float
    kl_se: float
    nll: float
    """-log p(x) by `nll_samples` importance samples per row; in expectation an upper bound."""
    nll_se: float
    nll_samples: int
    active_units: int
    """Latents whose posterior mean has a variance over rows above 0.01 (Burda et al., 2016)."""
    informative_units: int | None = None
    """Latents that tell more than `INFORMATIVE` nats about a row, of which an untrained model has
    few; None if an older version of the package evaluated the model."""
    reconstruction_error: float | None
    """Root mean square of x minus its reconstruction, in the data's units; None for mixed tables,
    whose columns have no common unit."""
    bits_per_dim: float | None
    """The NLL of images in bits per feature; None for tables. It compares with published figures
    only if the likelihood is one of whole bytes, or of bits."""
    held_out: HeldOut
    """The distribution of the ELBO of single rows."""
    warnings: tuple[str, ...] = ()
    """What a person should know before they use the model; the card and the run show it."""

    def numbers(self, prefix: str) -> dict[str, float]:
        """Return the metrics to log to MLflow, by prefixed name."""
        values = self.to_json()
        del values["held_out"], values["warnings"]
        known = {name: value for name, value in values.items() if value is not None}
        return {f"{prefix}{name}": float(value) for name, value in known.items()}

    def to_json(self) -> dict[str, Any]:
        """Return the metrics by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Metrics":
        """Read the content that `to_json` returned."""
        held_out = HeldOut.from_json(content["held_out"])
        warnings = tuple(content.get("warnings", ()))
        return cls(**{**content, "held_out": held_out, "warnings": warnings})


@torch.no_grad()
def evaluate(
    model: VAE,
    x: NDArray[Any],
    *,
    nll_samples: int,
    seed: int,
    device: str = "cpu",
    advance: Callable[[int], None] = lambda samples: None,
) -> Metrics:
    """Average the ELBO over all samples of a row; estimate the NLL from the same samples.

    `advance` receives the number of samples, of all rows, done since its last call.

    Raises:
        DataRefused: a metric is not finite, because of some of the rows.
        TrainingDiverged: no row has finite metrics.
    """
    model = model.to(device)
    generator = torch.Generator(device).manual_seed(seed)
    chunks = []
    for rows in torch.split(torch.from_numpy(x), ROWS_PER_CHUNK):
        chunks.append(_evaluate_rows(model, rows.to(device), nll_samples, generator, advance))
    log_likelihood, kl, log_p, squared_errors, z_loc, z_log_scale = (
        torch.cat(values).double() for values in zip(*chunks, strict=True)
    )
    _check_finite(x, log_likelihood - kl, log_p, squared_errors)
    active = int((z_loc.var(0, correction=0) > ACTIVE_VARIANCE).sum())
    informative = int((_information(z_loc, z_log_scale) > INFORMATIVE).sum())
    means = {
        **_mean_and_error("elbo", log_likelihood - kl),
        **_mean_and_error("log_likelihood", log_likelihood),
        **_mean_and_error("kl", kl),
        **_mean_and_error("nll", -log_p),
    }
    metrics = Metrics(
        **means,
        rows=len(x),
        nll_samples=nll_samples,
        active_units=active,
        informative_units=informative,
        reconstruction_error=None if model.mixed else squared_errors.mean().sqrt().item(),
        bits_per_dim=means["nll"] / (x[0].size * math.log(2)) if x.ndim > 2 else None,
        held_out=summarize(score_rows(model, x, device), mixed=model.mixed is not None),
        warnings=tuple(_warn_of_latents(active, informative)) if len(x) > 1 else (),
    )
    model.cpu()
    return metrics


def _information(z_loc: Tensor, z_log_scale: Tensor) -> Tensor:
    """Return how many nats each latent tells about a row, (latent_dim,).

    It is the entropy of a normal with the variance of z over all rows, minus the mean entropy of
    q(z given x): the mutual information if z is normal, otherwise an upper bound. Unlike the KL it
    is zero for a latent that is the same for every row, whatever its value.
    """
    variance = z_loc.var(0, correction=0) + (2 * z_log_scale).exp().mean(0)
    return variance.log() / 2 - z_log_scale.mean(0)


def _warn_of_latents(active: int, informative: int) -> Iterator[str]:
    if not active:
        yield (
            "no latent is active (posterior collapse): the model has learned nothing but the mean "
            "row, and all its samples are alike; try another --likelihood, more --epochs or "
            "--kl-warmup-steps, and look for outliers and for the scale of the data"
        )
    elif not informative:
        yield (
            f"no latent tells more than {INFORMATIVE} nats about a row: the model has learned "
            "hardly more than the mean row; train it longer, or the features do not depend on "
            "each other"
        )


def _check_finite(x: NDArray[Any], *values: Tensor) -> None:
    """Refuse values (rows,) that are not finite: by the rows, or because training diverged."""
    bad = ~torch.stack(values).isfinite().all(0).cpu().numpy()
    if bad.all():
        raise TrainingDiverged(
            f"the model has diverged: its ELBO or its errors are not finite on any of {len(x)} "
            "held-out rows; try a lower --learning-rate"
        )
    if bad.any():
        first = int(bad.argmax())
        raise DataRefused(
            f"the ELBO or the error of a reconstruction is not finite on {int(bad.sum())} of "
            f"{len(x)} held-out rows; the first is held-out row {first}, whose values are from "
            f"{x[first].min():.3g} to {x[first].max():.3g}: correct such rows, or leave them out"
        )


def _mean_and_error(name: str, values: Tensor) -> dict[str, float]:
    error = values.std(correction=0).item() / len(values) ** 0.5
    return {name: values.mean().item(), f"{name}_se": error}


@torch.no_grad()
def score_rows(model: VAE, x: NDArray[Any], device: str = "cpu") -> NDArray[Any]:
    """Return the ELBO of each row in nats, (rows,), each with `held_out_samples` of its own."""
    num_samples = held_out_samples(mixed=model.mixed is not None)
    chunks = []
    for start in range(0, len(x), ROWS_PER_CHUNK):
        rows = x[start : start + ROWS_PER_CHUNK]
        eps = torch.from_numpy(draw_eps(rows, SCORE_SEED, num_samples, model.latent_dim))
        terms = _terms(model, torch.from_numpy(rows).to(device), eps.to(device), torch.float64)
        chunks += [each.elbo() for each in terms]
    elbo: NDArray[Any] = torch.cat(chunks).cpu().numpy()
    return elbo


def _terms(
    model: VAE, x: Tensor, eps: Tensor, dtype: torch.dtype | None = None
) -> Iterator[ElboTerms]:
    """Yield the terms of the rows, of so many at a time as fit in memory."""
    step = max(1, MOST_VALUES // (x[0].numel() * eps.shape[1]))
    for rows, noise in zip(torch.split(x, step), torch.split(eps, step), strict=True):
        yield elbo_terms(model, rows, noise, dtype)


def _evaluate_rows(
    model: VAE,
    x: Tensor,
    nll_samples: int,
    generator: torch.Generator,
    advance: Callable[[int], None],
) -> tuple[Tensor, ...]:
    """Return log_likelihood (mean over samples), kl, log p(x) and errors, each (rows,).

    The errors are the mean squared errors of the reconstructions. Then z_loc and the log of
    z_scale follow, (rows, latent_dim).
    """
    log_likelihood = torch.zeros(len(x), device=x.device)
    log_sum = torch.full((len(x),), -torch.inf, device=x.device)
    for start in range(0, nll_samples, SAMPLES_PER_CHUNK):
        samples = min(SAMPLES_PER_CHUNK, nll_samples - start)
        eps = torch.randn(len(x), samples, model.latent_dim, generator=generator, device=x.device)
        sums = [
            (terms.log_likelihood.sum(-1), terms.log_weights().logsumexp(-1), terms.kl)
            for terms in _terms(model, x, eps)
        ]
        of_draws, weights, kl = (torch.cat(values) for values in zip(*sums, strict=True))
        log_likelihood += of_draws
        log_sum = torch.logaddexp(log_sum, weights)
        advance(len(x) * samples)
    log_p = log_sum - float(np.log(nll_samples))
    qz = model.encode(x)
    errors = torch.zeros_like(x[:, :1]) if model.mixed else model.decode(qz.loc) - x
    squared_errors = errors.square().flatten(1).mean(1)
    return log_likelihood / nll_samples, kl, log_p, squared_errors, qz.loc, qz.log_scale
