"""Evaluate a model on held-out rows: ELBO, its terms, the NLL and the active units.

In: a model, rows, the number of importance samples and a seed. Out: `Metrics`, in nats. The ELBO of
single rows is kept too, as `vae score` makes it: what the scores of new rows are compared with.
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
from pipeline.model.objective import terms
from pipeline.model.vae import VAE
from serving.drift import SCORE_SAMPLES, SCORE_SEED, HeldOut, read_held_out, summarize
from serving.noise import draw_rows

ROWS_PER_CHUNK = 64
SAMPLES_PER_CHUNK = 16
"""Together they bound memory: 1,024 decoded rows at a time, which a processor's cache can hold."""

Tick = Callable[[int], None]


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
    """-log p(x), from `nll_samples` importance samples a row; an upper bound in the mean."""
    nll_se: float
    nll_samples: int
    active_units: int
    """Latents whose posterior mean varies over rows by more than 0.01 (Burda et al., 2016)."""
    reconstruction_error: float | None = None
    """Root mean square of x less its reconstruction, in the data's units; runs of old have none."""
    bits_per_dim: float | None = None
    """The NLL of images in bits a feature. It compares with published figures only where the
    likelihood is that of whole bytes, or of bits."""
    held_out: HeldOut | None = None
    """Scores of single rows; runs of old have none."""

    def numbers(self, prefix: str) -> dict[str, float]:
        """What MLflow shows as metrics, by prefixed name."""
        values = self.to_json()
        del values["held_out"]
        known = {name: value for name, value in values.items() if value is not None}
        return {f"{prefix}{name}": float(value) for name, value in known.items()}

    def to_json(self) -> dict[str, Any]:
        """The metrics by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Metrics":
        """The metrics of `to_json`."""
        return cls(**{**content, "held_out": read_held_out(content)})


@torch.no_grad()
def evaluate(
    model: VAE,
    x: NDArray[Any],
    *,
    nll_samples: int,
    seed: int,
    device: str = "cpu",
    tick: Tick = lambda rows: None,
) -> Metrics:
    """Average the ELBO over all samples of a row; the NLL weighs the same samples.

    `tick` takes the number of rows done since the last call.

    Raises:
        TrainingDiverged: a metric is not finite.
    """
    model = model.to(device)
    generator = torch.Generator(device).manual_seed(seed)
    chunks = []
    for rows in torch.split(torch.from_numpy(x), ROWS_PER_CHUNK):
        chunks.append(_evaluate_rows(model, rows.to(device), nll_samples, generator))
        tick(len(rows))
    log_likelihood, kl, log_p, z_loc, squares = (
        torch.cat(values).double() for values in zip(*chunks, strict=True)
    )
    nll = -log_p.mean().item()
    elbo = log_likelihood - kl
    root = len(x) ** 0.5
    metrics = Metrics(
        rows=len(x),
        elbo=elbo.mean().item(),
        elbo_se=elbo.std(correction=0).item() / root,
        log_likelihood=log_likelihood.mean().item(),
        log_likelihood_se=log_likelihood.std(correction=0).item() / root,
        kl=kl.mean().item(),
        kl_se=kl.std(correction=0).item() / root,
        nll=nll,
        nll_se=log_p.std(correction=0).item() / root,
        nll_samples=nll_samples,
        active_units=int((z_loc.var(0, correction=0) > 0.01).sum()),
        reconstruction_error=squares.mean().sqrt().item(),
        bits_per_dim=nll / (x[0].size * math.log(2)) if x.ndim > 2 else None,
        held_out=summarize(score_rows(model, x, device)),
    )
    model.cpu()
    if not np.isfinite(list(metrics.numbers("").values())).all():
        raise TrainingDiverged(f"a held-out metric is not finite: {metrics.to_json()}")
    return metrics


@torch.no_grad()
def score_rows(model: VAE, x: NDArray[Any], device: str = "cpu") -> NDArray[Any]:
    """ELBO of each row in nats, over the noise that `vae score` shares over rows, (rows,)."""
    noise = torch.from_numpy(draw_rows(SCORE_SEED, 0, SCORE_SAMPLES, model.latent_dim)).to(device)
    chunks = [
        terms(model, rows.to(device), noise.expand(len(rows), *noise.shape), torch.float64).elbo()
        for rows in torch.split(torch.from_numpy(x), ROWS_PER_CHUNK)
    ]
    elbo: NDArray[Any] = torch.cat(chunks).cpu().numpy()
    return elbo


def _evaluate_rows(
    model: VAE, x: Tensor, nll_samples: int, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Mean log_likelihood, kl and the estimate of log p(x), each (rows,); z_loc; and squares.

    The squares, (rows,), are the mean squared errors of the reconstructions.
    """
    log_likelihood = torch.zeros(len(x), device=x.device)
    log_sum = torch.full((len(x),), -torch.inf, device=x.device)
    for start in range(0, nll_samples, SAMPLES_PER_CHUNK):
        samples = min(SAMPLES_PER_CHUNK, nll_samples - start)
        eps = torch.randn(len(x), samples, model.latent_dim, generator=generator, device=x.device)
        row_terms = terms(model, x, eps)
        log_likelihood += row_terms.log_likelihood.sum(-1)
        log_sum = torch.logaddexp(log_sum, row_terms.log_weights().logsumexp(-1))
    log_p = log_sum - float(np.log(nll_samples))
    z_loc = model.encode(x).loc
    squares = (model.decode(z_loc) - x).square().flatten(1).mean(1)
    return log_likelihood / nll_samples, row_terms.kl, log_p, z_loc, squares
