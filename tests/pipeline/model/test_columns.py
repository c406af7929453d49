"""Each kind of column is compared with scipy, summed or integrated, and taken to its limits."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from pipeline.model.count_columns import Counts, log_gamma, log_rising
from pipeline.model.number_columns import Positives, Reals
from pipeline.model.word_columns import Words
from serving.schema import Column

REAL = Column(name="a", kind="real")
POSITIVE = Column(name="a", kind="positive")
COUNT = Column(name="a", kind="count")
WORDS = Column(name="a", kind="category", type="text", words=("x", "y", "z"))


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def fitted(kind, column: Column, values: np.ndarray):  # type: ignore[no-untyped-def]
    module = kind([column]).double()
    with torch.no_grad():
        module.fit([values])
    return module


def log_density(module, params: torch.Tensor, x: np.ndarray) -> np.ndarray:  # type: ignore[no-untyped-def]
    u = module.standardize(torch.from_numpy(x)[:, None])
    value = module.log_prob(params, u) - module.log_unit(u)
    return np.asarray(value[:, 0].numpy())


@pytest.fixture
def normal() -> np.ndarray:
    return np.random.default_rng(0).normal(50, 4, 1000)


@pytest.fixture
def heavy() -> np.ndarray:
    return np.random.default_rng(0).standard_cauchy(1000) * 3 + 10


def test_a_real_column_is_normal(normal: np.ndarray) -> None:
    module = fitted(Reals, REAL, normal)
    loc, log_scale, x = 0.3, -0.7, np.linspace(20, 80, 41)
    params = row(loc, log_scale).expand(41, 2)
    centre = module.mean(row(loc, log_scale)[None]).item()
    scale = math.exp(log_scale) * normal.std()
    assert centre == pytest.approx(normal.mean() + loc * normal.std(), rel=1e-9)
    expected = stats.norm(centre, scale).logpdf(x)
    np.testing.assert_allclose(log_density(module, params, x), expected, rtol=1e-9)


def test_a_column_with_heavy_tails_is_johnson_s_u(heavy: np.ndarray) -> None:
    module = fitted(Reals, REAL, heavy)
    assert module.heavy.item() == 1
    loc, log_scale, x = -0.4, 0.2, np.array([-1e5, -40, 0, 10, 10.5, 13, 900, 1e6])
    centre, width, shift, unit = (
        getattr(module, name).item() for name in ("centre", "width", "shift", "unit")
    )
    scale = unit * math.exp(log_scale)
    reference = stats.johnsonsu(-(shift + unit * loc) / scale, 1 / scale, centre, width)
    found = log_density(module, row(loc, log_scale).expand(len(x), 2), x)
    np.testing.assert_allclose(found, reference.logpdf(x), rtol=1e-8)
    assert module.mean(row(loc, log_scale)[None]).item() == pytest.approx(reference.median())


@pytest.mark.parametrize("zeros", [0, 40])
def test_a_positive_column_is_log_normal(zeros: int) -> None:
    values = np.random.default_rng(0).lognormal(3, 1.2, 500)
    values[:zeros] = 0
    module = fitted(Positives, POSITIVE, values)
    offset = values[values > 0].min() / 2 if zeros else 0
    logs = np.log(values + offset)
    loc, log_scale, x = 0.5, -0.2, np.array([values[values > 0].min(), 2, 30, 1e4, 1e7])
    mu, sigma = logs.mean() + loc * logs.std(), math.exp(log_scale) * logs.std()
    expected = stats.lognorm(sigma, -offset, math.exp(mu)).logpdf(x)
    found = log_density(module, row(loc, log_scale).expand(len(x), 2), x)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert module.mean(row(loc, log_scale)[None]).item() == pytest.approx(math.exp(mu) - offset)


@pytest.mark.parametrize(("mean", "size"), [(0.02, 0.1), (3, 2), (40, 1000), (5000, 0.5)])
def test_a_count_is_negative_binomial(mean: float, size: float) -> None:
    module = fitted(Counts, COUNT, np.arange(10.0))
    counts = np.array([0, 1, 2, 7, 40, 1000, 20_000])
    found = log_density(module, row(mean, size).log().expand(7, 2), counts.astype(np.float64))
    expected = stats.nbinom(size, size / (size + mean)).logpmf(counts)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_words_and_what_is_no_word_are_categories() -> None:
    module = fitted(Words, WORDS, np.array([0.0, 1, 1]))
    logits = row(0.5, -1, 2, -3)
    codes = np.array([0, 1, 2, 3, 4, 77, -1], np.float64)
    expected = special.log_softmax(logits.numpy())[[0, 1, 2, 3, 3, 3, 3]]
    found = log_density(module, logits.expand(7, 4), codes)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert module.mean(logits[None]).item() == 2


def test_columns_of_words_do_not_mix() -> None:
    many = [
        Column(name=name, kind="category", type="text", words=tuple("abcdefg"[:size]))
        for name, size in (("p", 2), ("q", 7), ("r", 1))
    ]
    module = Words(many).double()
    module.writable.fill_(1)  # as if training had words of no name in each
    logits = torch.randn(5, module.params_width, dtype=torch.float64)
    codes = torch.tensor([[0, 6, 1], [1, 0, 0], [2, 7, 0], [0, 3, 1], [1, 1, 1]]).double()
    found = module.log_prob(logits, codes)
    for index, part in enumerate(logits.split([3, 8, 2], -1)):
        expected = part.log_softmax(-1).gather(1, codes[:, index : index + 1].long())[:, 0]
        torch.testing.assert_close(found[:, index], expected)
        assert (module.mean(logits)[:, index] == part.argmax(-1)).all()


def test_columns_of_words_share_a_softmax_without_loss() -> None:
    module = Words([WORDS, WORDS])
    params = torch.tensor([[30.0, 29, 25, 20, -28, -29, -30, -31]], requires_grad=True)
    u = torch.tensor([[1.0, 1.0]])
    found = module.log_prob(params, u)
    exact = params.detach().double().clamp(-30, 30)
    expected = torch.stack([part.log_softmax(-1)[0, 1] for part in exact.chunk(2, -1)])
    np.testing.assert_allclose(found[0].detach(), expected, rtol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), params)
    expected_gradient = -torch.cat([part.softmax(-1) for part in exact.chunk(2, -1)], -1)
    expected_gradient[0, [1, 5]] += 1
    expected_gradient[0, 7] = 0  # it is beyond the limit
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)


@pytest.mark.parametrize("kind", ["real", "heavy", "positive"])
def test_densities_integrate_to_one(kind: str, normal: np.ndarray, heavy: np.ndarray) -> None:
    values = {"real": normal, "heavy": heavy, "positive": np.exp(normal / 10)}[kind]
    column, module_of = (POSITIVE, Positives) if kind == "positive" else (REAL, Reals)
    module = fitted(module_of, column, values)
    params = row(0.4, -0.5)[None]
    middle = float(module.mean(params).item())

    def density(x: float) -> float:
        return float(np.exp(log_density(module, params, np.array([x]))[0]))

    ends = (0, np.inf) if kind == "positive" else (-np.inf, np.inf)
    total = sum(
        integrate.quad(density, low, high, limit=500)[0]
        for low, high in ((ends[0], middle), (middle, ends[1]))
    )
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("mean", "size"), [(0.02, 0.1), (3, 2), (40, 900)])
def test_probabilities_of_counts_sum_to_one(mean: float, size: float) -> None:
    module = fitted(Counts, COUNT, np.arange(10.0))
    counts = np.arange(20_000.0)
    found = log_density(module, row(mean, size).log().expand(len(counts), 2), counts)
    assert np.exp(found).sum() == pytest.approx(1, abs=1e-5)


def test_log_gamma_is_that_of_scipy() -> None:
    x = np.concatenate([np.geomspace(1e-3, 1e6, 400), np.arange(1, 50)])
    found = log_gamma(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, special.gammaln(x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_rising_factorial_is_a_difference_of_log_gammas(dtype: torch.dtype) -> None:
    x = torch.tensor([math.exp(-5), 0.3, 1, 40, math.exp(7)], dtype=dtype)[:, None]
    n = torch.tensor([0, 1, 7, 3000, 2.0**24], dtype=dtype)
    both, alone = special.gammaln((x.double() + n.double()).numpy()), special.gammaln(x.numpy())
    error = np.abs(log_rising(x, n).numpy() - (both - alone)) / np.maximum(1, both)
    assert error.max() < (1e-10 if dtype == torch.float64 else 4e-6)


@pytest.mark.parametrize("kind", ["real", "heavy", "positive", "count", "words"])
def test_gradients_are_finite_at_the_extremes(kind: str, heavy: np.ndarray) -> None:
    modules = {
        "real": (Reals, REAL, np.linspace(0, 1, 9)),
        "heavy": (Reals, REAL, heavy),
        "positive": (Positives, POSITIVE, np.array([0, 1e-3, 5, 1e6])),
        "count": (Counts, COUNT, np.array([0, 3, 900.0])),
        "words": (Words, WORDS, np.array([0.0, 1])),
    }
    module = fitted(*modules[kind]).float()
    width = module.params_width
    x = torch.tensor([0, 1e-30, 1, 1e6, 3e38, -1, -3e38])[:, None]
    u = module.standardize(x)
    assert u.isfinite().all()
    for size in (0.0, 1e-3, 1.0, 30.0, 1e4):
        for sign in (1, -1):
            params = torch.full((len(x), width), sign * size, requires_grad=True)
            value = module.log_prob(params, u) - module.log_unit(u)
            assert value.isfinite().all()
            (slope,) = torch.autograd.grad(value.sum(), params)
            assert slope.isfinite().all()


@pytest.mark.parametrize(("kind", "column"), [(Reals, REAL), (Positives, POSITIVE)])
def test_a_constant_column_has_a_unit(kind, column: Column) -> None:  # type: ignore[no-untyped-def]
    module = fitted(kind, column, np.full(20, 7.0))
    assert np.isfinite(log_density(module, row(0, 0)[None], np.array([7.0])))
    assert module.mean(row(0, 0)[None]).item() == pytest.approx(7)


def test_the_bias_of_counts_and_words_fits_each_column_alone() -> None:
    counts = np.random.default_rng(0).negative_binomial(2, 0.2, 4000).astype(np.float64)
    log_mean, log_size = fitted(Counts, COUNT, counts).output_bias([counts]).tolist()
    assert math.exp(log_mean) == pytest.approx(counts.mean(), rel=1e-5)
    assert math.exp(log_size) == pytest.approx(2, rel=0.15)
    codes = np.array([0, 0, 0, 2, 2, 1, 3, 3])
    bias = fitted(Words, WORDS, codes).output_bias([codes.astype(np.float64)])
    np.testing.assert_allclose(bias.exp().numpy(), np.array([4, 2, 3, 3]) / 12, rtol=1e-6)
