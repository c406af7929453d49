"""The functions that replace torch's kernels compute the same, also for extreme logits."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.model.operations import EPS
from pipeline.model.plain_functions import PlainFunctions

LOGITS = torch.tensor([-1e4, -200.0, -104.5, -88.0, -20.5, -1.0, -0.0, 1e-8, 3.0, 20.5, 200.0, 1e4])


@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
def test_the_cross_entropy_is_that_of_float64(target: float) -> None:
    """Where a sigmoid is zero in float32, its logarithm would be infinite."""
    targets = torch.full_like(LOGITS, target)
    exact = _entropy(LOGITS.double(), targets.double())
    with PlainFunctions():
        found = _entropy(LOGITS, targets)
    assert found.dtype == torch.float32
    error = (found.double() - exact).abs()
    assert (error <= 2 * EPS * exact.clamp(min=1)).all(), error


def test_softplus_is_that_of_float64() -> None:
    exact = torch.logaddexp(LOGITS.double(), torch.zeros((), dtype=torch.float64))
    with PlainFunctions():
        found = F.softplus(LOGITS)
    np.testing.assert_allclose(found.numpy(), exact.numpy(), rtol=2 * EPS, atol=EPS)


def test_a_net_keeps_its_own_softplus() -> None:
    layer = nn.Softplus(beta=2)
    expected = layer(LOGITS)
    with PlainFunctions():
        assert torch.equal(layer(LOGITS), expected)


def _entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
