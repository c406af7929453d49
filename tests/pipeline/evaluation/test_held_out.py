"""The distribution of the ELBO of held-out rows, which a bundle holds for `vae score --report`.

The tests of `serving.drift` that need scipy are here: the environment of tests/serving has none.
"""

import json

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.evaluate import Metrics, evaluate
from serving.bundle import Bundle
from serving.drift import DriftCounter, kolmogorov_p, read_held_out, summarize
from serving.engine import Engine
from tests.trained_models import Trained


def test_the_distribution_in_a_bundle_is_that_of_the_engine_s_scores(
    sealed: Bundle, trained: Trained
) -> None:
    held = read_held_out(sealed.read_json("metrics.json"))
    assert held is not None
    x = trained[1].test.x
    elbo = Engine(sealed).score(x, held.num_samples, held.seed)["elbo"].astype(np.float64)
    assert held.rows == len(x)
    levels = np.linspace(0, 1, len(held.elbo_quantiles))
    assert held.elbo_quantiles == pytest.approx(np.quantile(elbo, levels), rel=1e-5)
    assert held.elbo_mean == pytest.approx(elbo.mean(), rel=1e-6)
    assert held.elbo_sd == pytest.approx(elbo.std(), rel=1e-4)


def test_metrics_are_the_same_after_json(trained: Trained) -> None:
    metrics = evaluate(trained[0].model, trained[1].test.x, nll_samples=1, seed=0)
    content = json.loads(json.dumps(metrics.to_json()))
    assert Metrics.from_json(content) == metrics
    assert "test_held_out" not in metrics.numbers("test_")


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.5])
def test_the_kolmogorov_smirnov_test_equals_that_of_scipy(shift: float) -> None:
    generator = np.random.default_rng(4)
    held, values = generator.normal(size=4000), generator.normal(shift, 1, 6000)
    counter = DriftCounter(summarize(held))
    counter.add(values)
    found = counter.drift(6000, values.mean(), values.std())
    reference = stats.ks_2samp(values, held, method="asymp")
    assert reference.statistic - 1 / 200 - 1 / 4000 <= found.d <= reference.statistic + 1 / 4000
    assert found.p_value == pytest.approx(
        stats.kstwobign.sf(found.d * np.sqrt(6000 * 4000 / 10000)), rel=1e-9, abs=1e-300
    )
    ours = kolmogorov_p(reference.statistic, 6000, 4000)
    assert ours == pytest.approx(reference.pvalue, rel=0.05, abs=1e-6)
