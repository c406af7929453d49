import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from pipeline.model.vae import Posterior


def test_kl_equals_torch_and_the_textbook_formula() -> None:
    loc, log_scale = torch.randn(2, 50, 4, dtype=torch.float64)
    kl = Posterior(loc, log_scale).kl()
    standard = Normal(torch.zeros_like(loc), torch.ones_like(loc))
    expected = kl_divergence(Independent(Normal(loc, log_scale.exp()), 1), Independent(standard, 1))
    torch.testing.assert_close(kl, expected, rtol=1e-12, atol=1e-12)
    log_variance = 2 * log_scale
    textbook = -0.5 * (1 + log_variance - loc**2 - log_variance.exp()).sum(-1)
    torch.testing.assert_close(kl, textbook, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("log_scale", [1e-2, 5e-4, -1e-3], ids=str)
def test_kl_keeps_its_digits_near_the_prior(log_scale: float) -> None:
    single = Posterior(torch.zeros(1, 1), torch.tensor([[log_scale]])).kl().item()
    exact = (math.expm1(2 * log_scale) - 2 * log_scale) / 2
    assert single == pytest.approx(exact, rel=1e-3)
