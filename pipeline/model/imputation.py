"""The gaps of a row, given its cells that are seen: MIWAE, section 3.2.

Mattei & Frellsen (2019), Deep Generative Modelling and Imputation of Incomplete Data Sets.
"""

import torch
from torch import Tensor

from pipeline.model.inversion import Drawn
from pipeline.model.objective import elbo_terms
from pipeline.model.vae import VAE
from serving.errors import UsageRefused


def impute(
    model: VAE, x: Tensor, eps: Tensor, dtype: torch.dtype | None = None
) -> tuple[Drawn, Tensor, Tensor]:
    """Return every cell as the seen ones predict it, log-weights and latents of the draws.

    With z_k ~ q(z given seen), the expectation of a missing cell is approximated by
    sum_k w_k E[cell given z_k], where w_k is proportional to p(seen given z_k) p(z_k) /
    q(z_k given seen), and sums to 1 (equations 10 and 11: single imputation). To pick a z_k with
    the probability w_k and draw the cell from p(x given z_k) is multiple imputation.
    """
    terms = elbo_terms(model, x, eps, dtype)
    if model.mixed is None or terms.params is None:
        raise UsageRefused("impute needs a model of a table with --likelihood mixed")
    log_weights = terms.log_weights()
    log_weights = log_weights - log_weights.amax(-1, keepdim=True)
    log_weights = log_weights - log_weights.exp().sum(-1, keepdim=True).log()
    return model.mixed.impute(terms.params, log_weights.exp()), log_weights, terms.z
