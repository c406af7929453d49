import pytest
import torch

from pipeline.config import PromoteConfig
from pipeline.model.objective import elbo_terms
from serving.bundle import Bundle
from tests.pipeline.registry.versions import promote_with, register
from tests.trained_models import Trained


@pytest.mark.usefixtures("store")
def test_the_gate_scores_what_the_torch_model_scores(sealed: Bundle, trained: Trained) -> None:
    """Compare with the torch model on other noise: they differ by no more than the noise allows."""
    decision = promote_with(trained, register(sealed), PromoteConfig(gate_samples=200))
    x = torch.from_numpy(trained[1].test.x)
    eps = torch.randn(len(x), 2000, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        rows = elbo_terms(trained[0].model, x, eps)
    elbo = (rows.log_likelihood.mean(-1) - rows.kl).double()
    noise = float(rows.log_likelihood.std(-1).double().pow(2).mean().sqrt()) / (200 * 100) ** 0.5
    assert decision.judgement is not None
    assert decision.judgement.elbo == pytest.approx(float(elbo.mean()), abs=5 * noise)
