"""Evaluate a model on held-out rows: ELBO, its terms, the NLL and the active units.

In: a model, rows, the number of importance samples and a seed. Out: `Metrics`, in nats. They
include the distribution of the ELBO of single rows, as `vae score` computes it, so that the scores
of new rows can be compared with it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import TrainingDiverged
from pipeline.model.objective import elbo_terms
from pipeline.model.vae import VAE
from serving.drift import SCORE_SAMPLES, SCORE_SEED, HeldOut, summarize
from serving.noise import draw_rows

ROWS_PER_CHUNK = 64
SAMPLES_PER_CHUNK = 16
"""Together they bound memory to 1,024 decoded rows at a time, which fit a processor's cache."""


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
    reconstruction_error: float
    """Root mean square of x minus its reconstruction, in the data's units."""
    bits_per_dim: float | None
    """The NLL of images in bits per feature; None for tables. It compares with published figures
    only if the likelihood is one of whole bytes, or of bits."""
    held_out: HeldOut
    """The distribution of the ELBO of single rows."""

    def numbers(self, prefix: str) -> dict[str, float]:
        """Return the metrics to log to MLflow, by prefixed name."""
        values = self.to_json()
        del values["held_out"]
        known = {name: value for name, value in values.items() if value is not None}
        return {f"{prefix}{name}": float(value) for name, value in known.items()}

    def to_json(self) -> dict[str, Any]:
        """Return the metrics by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Metrics":
        """Read the content that `to_json` returned."""
        return cls(**{**content, "held_out": HeldOut.from_json(content["held_out"])})


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
        TrainingDiverged: a metric is not finite.
    """
    model = model.to(device)
    generator = torch.Generator(device).manual_seed(seed)
    chunks = []
    for rows in torch.split(torch.from_numpy(x), ROWS_PER_CHUNK):
        chunks.append(_evaluate_rows(model, rows.to(device), nll_samples, generator, advance))
    log_likelihood, kl, log_p, z_loc, squared_errors = (
        torch.cat(values).double() for values in zip(*chunks, strict=True)
    )
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
        active_units=int((z_loc.var(0, correction=0) > 0.01).sum()),
        reconstruction_error=squared_errors.mean().sqrt().item(),
        bits_per_dim=means["nll"] / (x[0].size * math.log(2)) if x.ndim > 2 else None,
        held_out=summarize(score_rows(model, x, device)),
    )
    model.cpu()
    if not np.isfinite(list(metrics.numbers("").values())).all():
        raise TrainingDiverged(f"a held-out metric is not finite: {metrics.to_json()}")
    return metrics


def _mean_and_error(name: str, values: Tensor) -> dict[str, float]:
    error = values.std(correction=0).item() / len(values) ** 0.5
    return {name: values.mean().item(), f"{name}_se": error}


@torch.no_grad()
def score_rows(model: VAE, x: NDArray[Any], device: str = "cpu") -> NDArray[Any]:
    """Return the ELBO of each row in nats, (rows,), with the noise that `vae score` uses."""
    noise = torch.from_numpy(draw_rows(SCORE_SEED, 0, SCORE_SAMPLES, model.latent_dim)).to(device)
    chunks = [
        elbo_terms(model, rows.to(device), noise.expand(len(rows), -1, -1), torch.float64).elbo()
        for rows in torch.split(torch.from_numpy(x), ROWS_PER_CHUNK)
    ]
    elbo: NDArray[Any] = torch.cat(chunks).cpu().numpy()
    return elbo


def _evaluate_rows(
    model: VAE,
    x: Tensor,
    nll_samples: int,
    generator: torch.Generator,
    advance: Callable[[int], None],
) -> tuple[Tensor, ...]:
    """Return log_likelihood (mean over samples), kl and log p(x), each (rows,); z_loc; and errors.

    The errors, (rows,), are the mean squared errors of the reconstructions.
    """
    log_likelihood = torch.zeros(len(x), device=x.device)
    log_sum = torch.full((len(x),), -torch.inf, device=x.device)
    for start in range(0, nll_samples, SAMPLES_PER_CHUNK):
        samples = min(SAMPLES_PER_CHUNK, nll_samples - start)
        eps = torch.randn(len(x), samples, model.latent_dim, generator=generator, device=x.device)
        terms = elbo_terms(model, x, eps)
        log_likelihood += terms.log_likelihood.sum(-1)
        log_sum = torch.logaddexp(log_sum, terms.log_weights().logsumexp(-1))
        advance(len(x) * samples)
    log_p = log_sum - float(np.log(nll_samples))
    z_loc = model.encode(x).loc
    squared_errors = (model.decode(z_loc) - x).square().flatten(1).mean(1)
    return log_likelihood / nll_samples, terms.kl, log_p, z_loc, squared_errors
