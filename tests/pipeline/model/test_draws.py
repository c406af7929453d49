"""What every likelihood draws, beside the distributions of scipy; seeds are fixed."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from pipeline.config import ModelConfig
from pipeline.model.count_columns import Counts
from pipeline.model.inversion import Drawn, draw_count, log_tail, logit_of, lower_and_upper
from pipeline.model.likelihoods import LIKELIHOODS
from pipeline.model.number_columns import Positives, Reals
from pipeline.model.word_columns import Words
from serving.noise import draw_noise
from serving.schema import Column

ROWS = 20_000
LEAST = 1e-3
"""Of the p-value, over tests that are few and whose seeds are fixed."""
Floats = NDArray[np.float64]


def noise(width: int, rows: int = ROWS) -> Tensor:
    return torch.from_numpy(draw_noise(5, 0, rows, width)).double()


def ladder(rows: int = ROWS) -> Tensor:
    """Noise at even places of its distribution."""
    return torch.from_numpy(stats.norm.ppf((np.arange(rows) + 0.5) / rows))


def draw(name: str, params: Tensor, **settings: int) -> Floats:
    """Draw features with the parameters (features, width of each)."""
    made = LIKELIHOODS[name](len(params), ModelConfig(likelihood=name, **settings)).double()  # type: ignore[arg-type]
    if name in ("bernoulli", "continuous_bernoulli"):
        made.fit(np.zeros((1, len(params)), np.float32))
    rows = params.reshape(1, -1).expand(ROWS, -1)
    drawn = made.draw(rows, noise(len(params)))
    assert drawn.x.shape == drawn.gap.shape
    return np.asarray(drawn.x.detach().numpy())


def assert_codes(x: Floats, shares: Floats) -> None:
    counts = np.bincount(x.astype(int), minlength=len(shares))
    wanted = shares * len(x)
    assert counts[shares == 0].sum() == 0
    kept = shares > 0
    assert stats.chisquare(counts[kept], wanted[kept]).pvalue > LEAST


def column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_the_tails_of_a_normal_are_those_of_scipy() -> None:
    at = torch.linspace(-12, 12, 2001, dtype=torch.float64)
    lower, upper = lower_and_upper(at)
    np.testing.assert_allclose(lower.numpy(), stats.norm.cdf(at.numpy()), rtol=2e-7)
    np.testing.assert_allclose(upper.numpy(), stats.norm.sf(at.numpy()), rtol=2e-7)
    far = torch.tensor([0.0, 40.0], dtype=torch.float64)
    np.testing.assert_allclose(log_tail(far).numpy(), stats.norm.logsf(far.numpy()), rtol=1e-6)
    logits = stats.norm.logcdf(at.numpy()) - stats.norm.logsf(at.numpy())
    np.testing.assert_allclose(logit_of(at).numpy(), logits, rtol=1e-6, atol=1e-6)
    assert torch.isfinite(logit_of(torch.tensor([-100.0, 100.0]))).all()


def test_a_bernoulli_draws_ones_with_its_probability() -> None:
    logits = [-9.0, -2.0, 0.0, 0.5, 4.0]
    x = draw("bernoulli", column(logits))
    assert set(np.unique(x)) == {0.0, 1.0}
    for place, logit in enumerate(logits):
        share = float(1 / (1 + np.exp(-logit)))
        assert stats.binomtest(int(x[:, place].sum()), ROWS, share).pvalue > LEAST


def test_a_continuous_bernoulli_is_that_of_its_distribution_function() -> None:
    logits = [-200.0, -3.0, -0.11, -0.09, 0.0, 0.05, 2.0, 30.0]
    x = draw("continuous_bernoulli", column(logits))
    for place, logit in enumerate(logits):

        def below(u: Floats, logit: float = logit) -> Floats:
            if logit == 0:
                return u
            if logit > 0:  # without overflow
                return np.asarray((np.exp(logit * (u - 1)) - np.exp(-logit)) / -np.expm1(-logit))
            return np.asarray(np.expm1(logit * u) / np.expm1(logit))

        assert stats.kstest(x[:, place], below).pvalue > LEAST


def test_a_gaussian_is_normal() -> None:
    means = [-3.0, 0.0, 12.0]
    x = draw("gaussian", column(means))
    for place, mean in enumerate(means):
        assert stats.kstest(x[:, place], stats.norm(mean, 1).cdf).pvalue > LEAST


def test_a_discretized_logistic_has_the_masses_of_its_bytes() -> None:
    params = torch.tensor([[0.5, -2.5], [0.02, -3.0], [0.99, -5.0]], dtype=torch.float64)
    x = draw("discretized_logistic", params)
    for place, (loc, log_scale) in enumerate(params.tolist()):
        edges = (np.arange(257) - 0.5) / 255
        edges[0], edges[-1] = -np.inf, np.inf
        masses = np.diff(stats.logistic(loc, np.exp(log_scale)).cdf(edges))
        common = masses * ROWS >= 5
        counts = np.bincount(x[:, place].astype(int), minlength=256)
        found = [*counts[common], counts[~common].sum()]
        wanted = [*masses[common], masses[~common].sum()]
        assert_codes(np.repeat(np.arange(len(found)), found), np.array(wanted))


def test_a_categorical_draws_codes_with_their_probabilities() -> None:
    logits = torch.tensor([[0.0, 2.0, -1.0, 0.5], [5.0, 5.0, -3.0, -40.0]], dtype=torch.float64)
    x = draw("categorical", logits, num_categories=4)
    for place in range(2):
        shares = logits[place].softmax(-1).numpy()
        codes = x[:, place]
        assert (codes <= 2 + (place == 0)).all()
        used = np.where(shares * ROWS < 1e-9, 0, shares)
        assert_codes(codes, used / used.sum())


def fitted(kind: type, columns: list[Column], values: list[Floats]):  # type: ignore[no-untyped-def]
    module = kind(columns).double()
    with torch.no_grad():
        module.fit(values)
    return module


def drawn_by(module, params: list[float], rows: int = ROWS) -> Floats:  # type: ignore[no-untyped-def]
    given = torch.tensor(params, dtype=torch.float64).expand(rows, -1)
    found: Drawn = module.draw(given, noise(1, rows))
    return np.asarray(found.x[:, 0].detach().numpy())


def test_a_real_column_is_normal_and_one_of_heavy_tails_is_johnson_s_u() -> None:
    generator = np.random.default_rng(0)
    plain = fitted(Reals, [Column(name="a", kind="real")], [generator.normal(50, 4, 1000)])
    values = drawn_by(plain, [0.3, -0.7])
    centre, unit = float(plain.mean(torch.zeros(1, 2, dtype=torch.float64))), 1.0
    unit = float(plain.mean(torch.tensor([[1.0, 0.0]], dtype=torch.float64))) - centre
    expected = stats.norm(centre + 0.3 * unit, np.exp(-0.7) * unit)
    assert stats.kstest(values, expected.cdf).pvalue > LEAST
    cauchy = generator.standard_cauchy(1000) * 3 + 10
    heavy = fitted(Reals, [Column(name="a", kind="real")], [cauchy])
    assert heavy.heavy.item() == 1
    shift, spread = heavy.shift.item(), heavy.unit.item()
    loc, scale = shift + 0.2 * spread, np.exp(0.1) * spread
    johnson = stats.johnsonsu(-loc / scale, 1 / scale, heavy.centre.item(), heavy.width.item())
    assert stats.kstest(drawn_by(heavy, [0.2, 0.1]), johnson.cdf).pvalue > LEAST


def test_a_positive_column_is_log_normal_and_never_below_zero() -> None:
    generator = np.random.default_rng(0)
    values = np.exp(generator.normal(3, 1, 1000))
    module = fitted(Positives, [Column(name="a", kind="positive")], [values])
    spread = module.unit.item()
    expected = stats.lognorm(np.exp(-0.2) * spread, 0, np.exp(module.shift.item() + 0.4 * spread))
    assert stats.kstest(drawn_by(module, [0.4, -0.2]), expected.cdf).pvalue > LEAST
    zeros = np.concatenate([np.zeros(500), values])
    module = fitted(Positives, [Column(name="a", kind="positive")], [zeros])
    drawn = drawn_by(module, [-2.0, 1.0])
    assert (drawn >= 0).all()
    share = stats.norm(-2, np.exp(1.0)).cdf(
        (np.log(module.offset.item()) - module.shift.item()) / module.unit.item()
    )
    assert stats.binomtest(int((drawn == 0).sum()), ROWS, share).pvalue > LEAST


SIZES = (np.exp(-5), 0.3, 1.0, 3.9, 4.1, 30.0, np.exp(7))
MEANS = (0.01, 2.0, 60.0, 900.0, 1e5)


@pytest.mark.parametrize("mean", MEANS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size:.3g}")
def test_a_count_has_the_distribution_function_of_scipy(size: float, mean: float) -> None:
    """At even places of the noise: the largest distance is that of the approximation itself."""
    m, r = (torch.full((ROWS,), value, dtype=torch.float64) for value in (mean, size))
    x = draw_count(m, r, ladder()).x.numpy()
    assert (np.diff(x) >= 0).all()
    np.testing.assert_array_equal(x, np.rint(x))
    exact = stats.nbinom(size, size / (size + mean))
    values = np.unique(x)
    below = np.searchsorted(x, values, "right") / ROWS
    limit = 2e-3 if mean > 30 else 3e-4
    assert np.abs(below - exact.cdf(values)).max() < limit + 1 / ROWS


@pytest.mark.parametrize("mean", MEANS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size:.3g}")
def test_a_count_in_float32_is_as_good(size: float, mean: float) -> None:
    m, r = (torch.full((ROWS,), value) for value in (mean, size))
    x = draw_count(m, r, ladder().float()).x.double().numpy()
    exact = stats.nbinom(size, size / (size + mean))
    values = np.unique(x)
    below = np.searchsorted(x, values, "right") / ROWS
    assert np.abs(below - exact.cdf(values)).max() < 3e-3


def test_a_count_column_draws_its_negative_binomial() -> None:
    module = Counts([Column(name="a", kind="count")]).double()
    x = drawn_by(module, [np.log(4.0), np.log(1.5)])
    exact = stats.nbinom(1.5, 1.5 / 5.5)
    shares = exact.pmf(np.arange(20))
    assert_codes(np.minimum(x, 20), np.append(shares, 1 - shares.sum()))


@pytest.mark.parametrize("other", [False, True], ids=["as trained", "with other words"])
def test_words_are_drawn_of_those_that_can_be_written(other: bool) -> None:
    columns = [
        Column(name="a", kind="category", type="text", words=("x", "y", "z")),
        Column(name="b", kind="binary", type="bool", words=("false", "true")),
    ]
    seen = [np.array([0.0, 1, 2, *([3] if other else [])]), np.array([0.0, 1])]
    module = fitted(Words, columns, seen)
    logits = torch.tensor([0.3, -1.0, 1.2, 0.8, 0.1, -0.4, 2.0], dtype=torch.float64)
    drawn = module.draw(logits.expand(ROWS, -1), noise(2)).x.numpy()
    shares = logits[:4].exp().numpy()
    shares[3] *= other
    assert_codes(drawn[:, 0], shares / shares.sum())
    shares = logits[4:6].exp().numpy()
    assert_codes(drawn[:, 1], np.append(shares / shares.sum(), 0))


@pytest.mark.parametrize("size", [-100.0, 100.0], ids=str)
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_far_noise_gives_finite_values(name: str, size: float) -> None:
    made = LIKELIHOODS[name](3, ModelConfig(likelihood=name, num_categories=5))  # type: ignore[arg-type]
    params = torch.linspace(-60, 60, made.params_width).expand(2, -1)
    assert torch.isfinite(made.draw(params, torch.full((2, 3), size)).x).all()


@pytest.mark.parametrize("size", [-100.0, 100.0], ids=str)
def test_far_noise_and_parameters_give_finite_counts(size: float) -> None:
    module = Counts([Column(name="a", kind="count")])
    grid = torch.cartesian_prod(torch.linspace(-20, 20, 9), torch.linspace(-9, 9, 9))
    x = module.draw(grid, torch.full((len(grid), 1), size)).x
    assert torch.isfinite(x).all()
    assert (x >= 0).all()
    assert (x <= 2**24).all()
