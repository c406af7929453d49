"""A mixed model of five normal columns and one latent, for which everything has a closed form."""

import math

import numpy as np
import torch
from scipy import stats

from pipeline.config import ModelConfig
from pipeline.model.vae import VAE
from serving.schema import Column, Schema

COLUMNS = 5
REALS = Schema(columns=tuple(Column(name=n, kind="real") for n in "abcde"))
W = np.array([0.4, -0.5, 0.3, 0.45, -0.3])
BIAS = np.array([0.2, -0.1, 0.0, 0.3, 0.1])
SCALE = np.array([0.5, 0.8, 0.6, 0.7, 0.9])


def linear_gaussian(seen: np.ndarray) -> VAE:
    """x = W z + bias + scale * noise, with the exact posterior of z given the cells `seen`."""
    settings = ModelConfig(likelihood="mixed", hidden_dims=(), latent_dim=1, fit_sizes=False)
    model = VAE((COLUMNS,), settings, REALS).double().eval().requires_grad_(False)
    precision = 1 + (W[seen] ** 2 / SCALE[seen] ** 2).sum()
    gain = np.where(seen, W / SCALE**2, 0) / precision
    model.decoder.x_params.weight.zero_()
    model.decoder.x_params.weight[:COLUMNS, 0] = torch.from_numpy(W)
    model.decoder.x_params.bias.copy_(torch.from_numpy(np.concatenate([BIAS, np.log(SCALE)])))
    for head in (model.encoder.z_loc, model.encoder.z_log_scale):
        head.weight.zero_()
    model.encoder.z_loc.weight[0, :COLUMNS] = torch.from_numpy(gain)
    model.encoder.z_loc.bias.fill_(float(-(gain * BIAS).sum()))
    model.encoder.z_log_scale.bias.fill_(-math.log(precision) / 2)
    return model


def marginal(seen: np.ndarray) -> stats.rv_continuous:
    covariance = np.outer(W[seen], W[seen]) + np.diag(SCALE[seen] ** 2)
    return stats.multivariate_normal(BIAS[seen], covariance)


def rows_with(seen: np.ndarray, rows: int = 20) -> torch.Tensor:
    generator = np.random.default_rng(1)
    x = generator.normal(size=(rows, 1)) * W + BIAS + SCALE * generator.normal(size=(rows, COLUMNS))
    x[:, ~seen] = np.nan
    return torch.from_numpy(x)


def noise(rows: int, num_samples: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, num_samples, 1, generator=generator, dtype=torch.float64)
