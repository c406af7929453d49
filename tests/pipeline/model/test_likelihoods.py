"""Every likelihood is compared with scipy, summed over a grid, and taken to its limits."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from torch.distributions import Bernoulli

from pipeline.config import LikelihoodName, ModelConfig, configure
from pipeline.model.likelihoods import (
    LIKELIHOODS,
    choose_likelihood,
    make_likelihood,
    resolve_model_config,
)
from serving.errors import DataRefused, UsageRefused

CATEGORIES = 4
f4, u1 = np.float32, np.uint8
WIDTHS = {"discretized_logistic": 2, "categorical": CATEGORIES}
EXTREMES = (-1e4, -88.0, -1.0, -1e-3, 0.0, 1e-20, 0.04, 0.06, 1.0, 17.0, 88.0, 500.0, 1e4)


def make(name: str, features: int = 1, *, dtype: torch.dtype = torch.float64, **settings):  # type: ignore[no-untyped-def]
    chosen = ModelConfig(likelihood=name, num_categories=CATEGORIES, **settings)  # type: ignore[arg-type]
    made = make_likelihood(features, chosen)
    return made.to(dtype).eval().requires_grad_(False)


def draw_params(name: str, rows: int = 50) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    width = WIDTHS.get(name, 1)
    params = torch.randn(rows, width, generator=generator, dtype=torch.float64) * 2
    params[:, 1:] = params[:, 1:].clamp(max=4)  # within the bounds of a logistic's scale
    return params


def logistic_masses(params: np.ndarray) -> np.ndarray:
    """Return the masses of the 256 bytes as differences of the distribution function."""
    loc, scale = params[:, :1] * 255, np.exp(params[:, 1:]) * 255
    ends = special.expit((np.arange(255) + 0.5 - loc) / scale)
    return np.diff(ends, prepend=0, append=1, axis=-1)


def logistic_log_mass(params: np.ndarray, x: float) -> np.ndarray:
    """Use scipy's logarithms, in the tail in which their difference does not cancel."""
    half = 0.5 / 255
    lower, upper = ((x - params[:, 0] + side) / np.exp(params[:, 1]) for side in (-half, half))
    if x == 0:
        return np.asarray(stats.logistic.logcdf(upper))
    if x == 1:
        return np.asarray(stats.logistic.logsf(lower))
    turned = lower > 0
    low, high = np.where(turned, -upper, lower), np.where(turned, -lower, upper)
    ends = stats.logistic.logcdf(high), stats.logistic.logcdf(low)
    return np.asarray(ends[0] + np.log(-np.expm1(ends[1] - ends[0])))


def continuous_bernoulli(params: np.ndarray, x: float) -> np.ndarray:
    """Use scipy's exponential density on [0, 1], mirrored where the logit is positive."""
    size = np.abs(params[:, 0])
    place = np.where(params[:, 0] > 0, 1 - x, x)
    return np.asarray(stats.truncexpon.logpdf(place * size, size) + np.log(size))


REFERENCES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "bernoulli": lambda params, x: stats.bernoulli.logpmf(x, special.expit(params[:, 0])),
    "continuous_bernoulli": continuous_bernoulli,
    "gaussian": lambda params, x: stats.norm.logpdf(x, params[:, 0]),
    "discretized_logistic": lambda params, x: logistic_log_mass(params, x),
    "categorical": lambda params, x: special.log_softmax(params, -1)[:, int(x)],
}
POINTS = {
    "bernoulli": (0.0, 1.0),
    "continuous_bernoulli": (0.0, 0.3, 1.0),
    "gaussian": (-2.0, 0.5),
    "discretized_logistic": (0.0, 3 / 255, 0.5 + 0.5 / 255, 1.0),
    "categorical": (0.0, 2.0, 3.0),
}


def log_prob(name: str, params: torch.Tensor, x: float) -> torch.Tensor:
    """Return log p of one value `x` in the network's units; a code is one-hot encoded first."""
    made = make(name)
    rows = torch.full((len(params), 1), x, dtype=torch.float64)
    if name == "categorical":
        rows = made.standardize(rows)
    value: torch.Tensor = made.log_prob(params, rows)
    return value


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_log_prob_equals_that_of_scipy(name: str) -> None:
    params = draw_params(name)
    for x in POINTS[name]:
        expected = REFERENCES[name](params.numpy(), x)
        np.testing.assert_allclose(
            log_prob(name, params, x).numpy(), expected, rtol=1e-6, atol=1e-12
        )


@pytest.mark.parametrize("name", ["bernoulli", "discretized_logistic", "categorical"])
def test_masses_sum_to_one(name: str) -> None:
    params = draw_params(name)
    bytes_ = np.arange(256) / 255
    grid = {"bernoulli": (0, 1), "categorical": range(CATEGORIES), "discretized_logistic": bytes_}
    total = sum(log_prob(name, params, float(x)).exp().numpy() for x in grid[name])
    np.testing.assert_allclose(total, 1, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        pytest.param("continuous_bernoulli", np.linspace(0, 1, 100_001), id="continuous_bernoulli"),
        pytest.param("gaussian", np.linspace(-40, 40, 100_001), id="gaussian"),
    ],
)
def test_densities_integrate_to_one(name: str, grid: np.ndarray) -> None:
    params = torch.cat([draw_params(name, 5), torch.tensor([[-20.0], [1e-4], [0.051], [300.0]])])
    params = params if name == "continuous_bernoulli" else params[:5]
    x = torch.from_numpy(grid)[:, None]
    for row in params:
        density = make(name).log_prob(row.expand(len(x), 1), x).exp().numpy()
        assert integrate.simpson(density, x=grid) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_gradients_are_finite_at_extreme_parameters(name: str, dtype: torch.dtype) -> None:
    width = WIDTHS.get(name, 1)
    values = torch.tensor(EXTREMES, dtype=dtype)
    params = torch.cartesian_prod(*[values] * width).reshape(-1, width).requires_grad_()
    made = make(name, dtype=dtype)
    for x in (0.0, 1.0):
        rows = torch.full((len(params), 1), x, dtype=dtype)
        row = made.standardize(rows) if name == "categorical" else rows
        total = made.log_prob(params, row)
        (gradient,) = torch.autograd.grad(total.sum(), params)
        assert torch.isfinite(total).all()
        assert torch.isfinite(gradient).all()


def test_bernoulli_equals_torch_on_binary_data() -> None:
    made = make("bernoulli", 7)
    params, x = torch.randn(4, 7, dtype=torch.float64), torch.ones(4, 7, dtype=torch.float64)
    expected = Bernoulli(logits=params).log_prob(x).sum(-1)
    torch.testing.assert_close(made.log_prob(params, x), expected)


def test_bernoulli_of_gray_values_is_the_mean_over_binary_draws() -> None:
    made = make("bernoulli", 7)
    params, gray = torch.randn(1, 7, dtype=torch.float64), torch.rand(1, 7, dtype=torch.float64)
    draws = torch.bernoulli(gray.expand(200_000, 7), generator=torch.Generator().manual_seed(0))
    sampled = Bernoulli(logits=params).log_prob(draws).sum(-1)
    error = sampled.std() / len(draws) ** 0.5
    assert (sampled.mean() - made.log_prob(params, gray)).abs().item() < 4 * error.item()


def test_gaussian_is_the_density_in_the_units_of_the_data() -> None:
    made = make("gaussian", 7)
    data = np.random.default_rng(0).normal(5, [1, 2, 3, 4, 5, 6, 7], (50, 7))
    made.fit(data)
    made.x_log_scale.data.fill_(-0.3)
    x = torch.from_numpy(data[:4])
    params = torch.randn(4, 7, dtype=torch.float64)
    scale = math.exp(-0.3) * data.std(0)
    expected = stats.norm.logpdf(data[:4], made.mean(params).detach().numpy(), scale).sum(-1)
    got = made.log_prob(params, made.standardize(x)).detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("size", [1e4, 1e15], ids=str)
def test_extreme_parameters_give_finite_terms_and_gradients(
    likelihood: LikelihoodName, size: float
) -> None:
    made = make(likelihood, 7, dtype=torch.float32)
    params = torch.tensor([[size, -size] * 3 + [0.0]], requires_grad=True)
    x = torch.tensor([[0.0, 1.0] * 3 + [0.5]])
    log_prob = made.log_prob(params, x).sum()
    log_prob.backward()
    assert params.grad is not None
    assert torch.isfinite(log_prob)
    assert torch.isfinite(params.grad).all()
    assert (params.grad[0, :6] != 0).all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_samples_are_drawn_by_inversion(name: str) -> None:
    """The average over an even grid of noise is the mean, and samples increase with the noise."""
    made, params = make(name), draw_params(name, 6)
    params[:, -1] = params[:, -1].clamp(max=1)
    noise = torch.from_numpy(stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000))[:, None, None]
    drawn = made.draw(params.expand(20_000, -1, -1), noise.expand(-1, len(params), 1)).x
    if name == "discretized_logistic":
        expected = (logistic_masses(params.numpy()) * np.arange(256)).sum(-1)
    else:
        expected = made.mean(params)[:, 0].numpy()
    np.testing.assert_allclose(drawn.mean((0, 2)).numpy(), expected, rtol=1e-3, atol=1e-3)
    assert (drawn.diff(dim=0) >= 0).all()


def test_the_mean_of_a_continuous_bernoulli_equals_its_integral() -> None:
    made = make("continuous_bernoulli")
    for logit in (-30.0, -0.9, -1e-3, 0.0, 0.5, 1.1, 12.0):
        params = torch.full((1, 1), logit, dtype=torch.float64)
        grid = torch.linspace(0, 1, 50_001, dtype=torch.float64)[:, None]
        density = made.log_prob(params.expand(len(grid), 1), grid).exp()[:, None] * grid
        expected = integrate.simpson(density[:, 0].numpy(), x=grid[:, 0].numpy())
        assert made.mean(params).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_output_bias_is_the_best_constant(name: str) -> None:
    """At the bias, the gradient of the training rows' likelihood is nearly zero."""
    generator = np.random.default_rng(0)
    byte = generator.integers(0, 200, (5000, 3)).astype(np.uint8)
    real = generator.normal([0, 5, -3], [1, 2, 0.1], (5000, 3)).astype(np.float32)
    code = generator.integers(0, 3, (5000, 3)).astype(np.uint8)
    train = {"gaussian": real, "categorical": code}.get(name, byte)
    made = make(name, 3)
    made.fit(train)
    bias = made.output_bias(train).double().requires_grad_()
    x = made.standardize(torch.from_numpy(train))
    (slope,) = torch.autograd.grad(made.log_prob(bias.expand(len(x), -1), x).mean(), bias)
    # for a logistic, matching moments is near to maximum likelihood, but not equal
    limit = 0.5 if name == "discretized_logistic" else 2e-3
    assert slope.abs().max() < limit


def test_optimal_sigma_is_the_root_mean_square_error() -> None:
    made = make("gaussian", 3, sigma="optimal").train()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 3, generator=generator, dtype=torch.float64) * 0.3
    params = torch.zeros_like(x)
    for _ in range(400):
        value = made.log_prob(params, x)
    assert made.x_log_scale.exp().item() == pytest.approx(x.square().mean().sqrt().item(), rel=1e-3)
    expected = -3 / 2 * (torch.log(2 * torch.pi * x.square().mean()) + 1)  # sigma-VAE, equation 6
    assert value.mean().item() == pytest.approx(expected.item(), rel=1e-9)
    frozen = made.eval().log_prob(params[:1], x[:1])
    assert frozen.item() == pytest.approx(made.log_prob(params[:9], x[:9])[0].item(), rel=1e-12)


@pytest.mark.parametrize("steps", [1, 10])
def test_optimal_sigma_forgets_its_initial_value(steps: int) -> None:
    made = make("gaussian", 3, sigma="optimal").train()
    x = torch.full((9, 3), 0.01, dtype=torch.float64)
    for _ in range(steps):
        made.log_prob(torch.zeros_like(x), x)
    assert made.x_log_scale.exp().item() == pytest.approx(0.01, rel=1e-6)
    made.log_prob(x, x)  # all errors are zero
    assert torch.isfinite(made.x_log_scale)


def test_fixed_sigma_is_not_trained() -> None:
    made = make("gaussian", sigma="fixed", fixed_sigma=0.1)
    assert "x_log_scale" not in dict(made.named_parameters())
    expected = stats.norm.logpdf(0.25, 0.2, 0.1)
    value = made.log_prob(torch.tensor([[0.2]]).double(), torch.tensor([[0.25]]).double())
    assert value.item() == pytest.approx(expected, rel=1e-6)
    narrow = make("gaussian", sigma="fixed", fixed_sigma=1e-4)
    value = narrow.log_prob(torch.zeros(1, 1).double(), torch.zeros(1, 1).double())
    assert value.item() == pytest.approx(stats.norm.logpdf(0, 0, 1e-4), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "x", "message"),
    [
        pytest.param("bernoulli", np.array([[0.5, 7]], f4), "got 0.5 to 7", id="bernoulli"),
        pytest.param("continuous_bernoulli", np.array([[-1, 1]], f4), "got -1 to 1", id="cb"),
        pytest.param("discretized_logistic", np.array([[0, 1]], f4), "needs bytes", id="logistic"),
        pytest.param(
            "categorical", np.array([[0, 1.5]], f4), "0 to 1.5 with fractions", id="codes"
        ),
        pytest.param("categorical", np.array([[-1, 3]], f4), "got -1 to 3", id="negative"),
    ],
)
def test_data_outside_the_support_is_refused_with_its_range(
    name: str, x: np.ndarray, message: str
) -> None:
    with pytest.raises(DataRefused, match=message):
        make(name, 2).check(x)


@pytest.mark.parametrize("code", [77, 3, -1, -7])
def test_an_unknown_code_scores_low_and_finite(code: int) -> None:
    made = make("categorical", 1)
    train = np.zeros((1000, 1), np.uint8)
    params = made.output_bias(train).double()[None]
    known, unknown = (
        made.log_prob(params, made.standardize(torch.tensor([[value]]))) for value in (0, code)
    )
    assert known > -0.01
    assert -8 < unknown < -6


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        pytest.param(np.array([[0, 255]], u1), ("bernoulli", "bytes"), id="bytes"),
        pytest.param(np.array([[0, 1]], f4), ("bernoulli", "zeros and ones"), id="bits"),
        pytest.param(
            np.array([[0, 0.7]], f4),
            ("continuous_bernoulli", "numbers from 0 to 1"),
            id="unit",
        ),
        pytest.param(np.array([[-0.1, 1]], f4), ("gaussian", "reals"), id="reals"),
    ],
)
def test_the_default_likelihood_follows_from_the_data(
    x: np.ndarray, expected: tuple[str, str]
) -> None:
    assert choose_likelihood("none", x) == expected


def test_binarized_data_needs_a_bernoulli_whatever_the_training_rows_are() -> None:
    gray = np.array([[0, 0.3]], f4)
    config = configure(binarize="dynamic")
    assert resolve_model_config(config, gray).likelihood == "bernoulli"
    with pytest.raises(UsageRefused, match="use --likelihood bernoulli, got gaussian"):
        resolve_model_config(configure(binarize="static", likelihood="gaussian"), gray)


def test_codes_are_counted_and_one_is_added() -> None:
    config = configure(likelihood="categorical")
    assert (
        resolve_model_config(config, np.array([[0, 4]], u1), np.array([[6, 1]], u1)).num_categories
        == 8
    )
    given = configure(likelihood="categorical", num_categories=40)
    assert resolve_model_config(given, np.array([[0, 4]], u1)).num_categories == 40
    few = configure(likelihood="categorical", num_categories=5)
    with pytest.raises(UsageRefused, match="must be at least 6, one more than the codes"):
        resolve_model_config(few, np.array([[0, 4]], u1))


def test_a_fixed_sigma_without_sigma_fixed_is_refused() -> None:
    with pytest.raises(UsageRefused, match=r"--fixed-sigma 0.5 needs --sigma fixed, got learned"):
        resolve_model_config(configure(fixed_sigma=0.5), np.array([[0, 4]], f4))
