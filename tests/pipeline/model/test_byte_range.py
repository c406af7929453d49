"""Bytes that reach only a few levels, such as the digits of scikit-learn, which are 0 to 16."""

import numpy as np
import pytest
import torch
from scipy import special, stats

from pipeline.config import ModelConfig
from pipeline.data.dataset import binarize
from pipeline.model.likelihoods import AnyLikelihood, choose_likelihood, make_likelihood
from pipeline.training.binarization import binarize_batch
from serving.errors import DataRefused

TOP = 16
LEVELS = np.arange(TOP + 1, dtype=np.uint8)[:, None]


@pytest.mark.parametrize(
    ("x", "name", "kind"),
    [
        (np.array([[0, 1]], np.uint8), "bernoulli", "bytes of zeros and ones"),
        (LEVELS, "bernoulli", "bytes that reach only 16 of 255, which are shares of 16"),
        (np.array([[0, 128]], np.uint8), "bernoulli", "bytes"),
        (LEVELS / np.float32(255), "gaussian", "numbers that reach only 0.0627 of 1"),
    ],
    ids=["bits", "levels", "half of the bytes", "levels as shares of 255"],
)
def test_the_choice_follows_the_range_of_the_data(x: np.ndarray, name: str, kind: str) -> None:
    assert choose_likelihood("none", x) == (name, kind)


def fitted(name: str) -> AnyLikelihood:
    made = make_likelihood(1, ModelConfig(likelihood=name)).double().eval()  # type: ignore[arg-type]
    made.requires_grad_(False)
    made.fit(LEVELS, TOP)
    return made


def log_probs(made: AnyLikelihood, params: np.ndarray) -> np.ndarray:
    rows = made.standardize(torch.from_numpy(LEVELS))
    value: np.ndarray = made.log_prob(torch.from_numpy(params).expand(TOP + 1, -1), rows).numpy()
    return value


def test_a_bernoulli_takes_them_as_shares_of_the_largest() -> None:
    made, p = fitted("bernoulli"), special.expit(0.7)
    shares = LEVELS[:, 0] / TOP
    expected = shares * np.log(p) + (1 - shares) * np.log(1 - p)
    np.testing.assert_allclose(log_probs(made, np.array([[0.7]])), expected, rtol=1e-12)
    assert made.mean(torch.tensor([0.7], dtype=torch.float64)).item() == pytest.approx(TOP * p)


def test_a_gaussian_is_their_density_in_their_own_units() -> None:
    params = np.array([[0.4]])  # the scale is 1 in units of the largest
    expected = stats.norm.logpdf(LEVELS[:, 0], 0.4 * TOP, TOP)
    np.testing.assert_allclose(log_probs(fitted("gaussian"), params), expected, rtol=1e-12)


@pytest.mark.parametrize("log_scale", [-3.0, -1.0, 1.0])
def test_the_masses_of_a_discretized_logistic_sum_to_one(log_scale: float) -> None:
    made = fitted("discretized_logistic")
    masses = np.exp(log_probs(made, np.array([[0.3, log_scale]])))
    assert masses.sum() == pytest.approx(1, rel=1e-12)
    ends = special.expit((np.arange(TOP) + 0.5 - 0.3 * TOP) / (np.exp(log_scale) * TOP))
    np.testing.assert_allclose(masses, np.diff(ends, prepend=0, append=1), rtol=1e-9)


@pytest.mark.parametrize("name", ["bernoulli", "continuous_bernoulli", "discretized_logistic"])
def test_a_larger_byte_is_refused(name: str) -> None:
    made = fitted(name)
    made.check(LEVELS)
    with pytest.raises(DataRefused, match=r"bytes must be from 0 to 16, .* got 200"):
        made.check(np.array([[200]], np.uint8))


def test_a_level_is_its_share_of_ones_when_binarized() -> None:
    draws = 40_000
    p = LEVELS[:, 0] / TOP
    tolerance = 5 * np.sqrt(p * (1 - p) / draws)  # so 0 and the largest must be exact
    rows = np.broadcast_to(LEVELS[:, 0], (draws, TOP + 1))
    once = binarize(rows, np.random.default_rng(0), TOP)
    anew = binarize_batch(torch.from_numpy(rows.copy()), torch.Generator().manual_seed(0), TOP)
    for ones in (once, anew.numpy()):
        assert np.unique(ones).tolist() == [0, TOP]
        assert (np.abs((ones > 0).mean(0) - p) <= tolerance).all()
