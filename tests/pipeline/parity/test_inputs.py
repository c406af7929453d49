from typing import Any

import numpy as np
import pytest
import torch

from pipeline.model.operations import Tolerance
from pipeline.model.roundings import round_to_tf32
from pipeline.parity.inputs import (
    FAR,
    LARGE,
    draw_cases,
    repeat_rows,
)
from pipeline.parity.row_counts import FULL
from pipeline.parity.tolerances import difference, errors_of
from serving.operations import operation_table
from tests.trained_models import draw_images, draw_table

TINY = np.finfo(np.float32).tiny


def cases(name: str, x: Any, likelihood: str) -> dict[str, dict[str, Any]]:
    operation = operation_table(x.shape[1:], str(x.dtype), 3)[name]
    return dict(draw_cases(operation, repeat_rows(x), likelihood))


def test_held_out_rows_are_repeated_to_a_thousand() -> None:
    x = draw_images(400)
    rows = cases("encode", x, "bernoulli")["held-out"]["x"]
    assert len(rows) == FULL.different == 1000
    np.testing.assert_array_equal(rows[400:800], x)


def test_bytes_are_zero_maximal_and_random() -> None:
    drawn = cases("encode", draw_images(400), "bernoulli")
    assert drawn.keys() == {"held-out", "zeros", "maxima", "noise"}
    assert (drawn["zeros"]["x"][0] == 0).all()
    assert (drawn["maxima"]["x"][0] == 255).all()
    counts = np.bincount(drawn["noise"]["x"].ravel(), minlength=256)
    assert (counts > 0).all()
    assert {values["x"].dtype for values in drawn.values()} == {np.dtype(np.uint8)}


def test_rows_of_one_value_differ_in_one_feature() -> None:
    """Equal rows make equal roundings, and one sample is no measure of noise."""
    rows = cases("encode", draw_table(400), "gaussian")["zeros"]["x"]
    np.testing.assert_array_equal((rows != 0).sum(1), [0] + [1] * (max(FULL.adversarial) - 1))


def test_a_table_gets_large_finite_features_and_denormals() -> None:
    x = draw_table(400)
    x[:, 3] = 5  # a constant column
    drawn = cases("encode", x, "gaussian")
    spread = repeat_rows(x)[:256].std(0, dtype=np.float64)
    expected = LARGE * np.minimum(1, [*spread[:3], spread[:3].min()])
    far = np.abs(drawn["far"]["x"])
    np.testing.assert_allclose(far, np.broadcast_to(expected, far.shape), rtol=1e-6)
    assert np.isfinite(np.square(drawn["far"]["x"]).sum(1)).all()
    small = np.abs(drawn["denormals"]["x"])
    denormal = (small > 0) & (small < TINY)
    assert 0.3 < denormal.mean() < 0.7
    np.testing.assert_array_equal(drawn["maxima"]["x"][0], repeat_rows(x)[:256].max(0))


@pytest.mark.parametrize("unit", [1e-9, 1e-3, 1, 1e6])
def test_far_rows_of_a_table_can_be_squared_in_its_own_units(unit: float) -> None:
    x = draw_table(400) * np.float32(unit)
    far = cases("encode", x, "gaussian")["far"]["x"]
    standardized = ((far - x.mean(0)) / x.std(0)).astype(np.float32)
    assert np.isfinite(np.square(standardized).sum(1)).all()
    assert np.abs(standardized).min() > 1e7


def test_values_of_a_bernoulli_stay_from_zero_to_one() -> None:
    x = np.random.default_rng(0).random((400, 4), np.float32)
    for kind, values in cases("score", x, "bernoulli").items():
        assert values["x"].min() >= 0, kind
        assert values["x"].max() <= 1, kind


def test_latents_go_to_six_sigma_and_far_out() -> None:
    x = draw_images(400)
    z = {kind: values["z"] for kind, values in cases("decode", x, "bernoulli").items()}
    assert set(np.unique(np.abs(z["six sigma"]))) == {6.0}
    assert set(np.unique(np.abs(z["far"]))) == {FAR}
    assert np.abs(z["noise"]).max() <= 6
    eps = cases("score", x, "bernoulli")["six sigma"]
    assert eps["eps"].shape == (256, FULL.num_samples, 3)
    np.testing.assert_array_equal(eps["x"], x[:256])


def test_cases_are_the_same_each_time() -> None:
    first, again = (cases("score", draw_table(400), "gaussian") for _ in range(2))
    for kind, values in first.items():
        for name, array in values.items():
            np.testing.assert_array_equal(array, again[kind][name])


def test_tf32_keeps_ten_bits_of_the_mantissa() -> None:
    generator = np.random.default_rng(0)
    x = (generator.standard_normal(10_000) * 10.0 ** generator.integers(-9, 9, 10_000)).astype("f4")
    mantissa, exponent = np.frexp(x.astype(np.float64))
    expected = np.ldexp(np.rint(mantissa * 2**11) / 2**11, exponent)
    np.testing.assert_array_equal(round_to_tf32(torch.from_numpy(x)).numpy(), expected)


VALUE = np.array([1.0, 2.0, 3.0], np.float32)
BEYOND = np.array([1.0, 1e39, 3.0])
"""What float32 cannot hold."""


def replaced(number: float) -> Any:
    return np.array([1.0, number, 3.0], np.float32)


@pytest.mark.parametrize(
    ("value", "exact", "rounded", "reason"),
    [
        pytest.param(None, VALUE, VALUE, "there is no such output", id="missing"),
        pytest.param(VALUE.astype("f8"), VALUE, VALUE, "got float64", id="dtype"),
        pytest.param(VALUE[:2], VALUE, VALUE, r"got float32 (2,), allowed", id="shape"),
        pytest.param(VALUE[:, None], VALUE, VALUE, "got float32 (3, 1)", id="rank"),
        pytest.param(replaced(np.nan), VALUE, VALUE, "1 values are NaN or infinite", id="NaN"),
        pytest.param(VALUE, BEYOND, replaced(np.inf), "0 values are", id="no overflow"),
        pytest.param(replaced(-np.inf), BEYOND, replaced(np.inf), "are not those of", id="sign"),
        pytest.param(VALUE, replaced(np.nan), VALUE, "torch's own output is NaN", id="model"),
        pytest.param(
            VALUE * np.inf, VALUE, VALUE * np.inf, "no finite value in float32", id="overflow"
        ),
    ],
)
def test_pattern_comes_before_numbers(value: Any, exact: Any, rounded: Any, reason: str) -> None:
    error, said = errors_of(value, exact.astype(np.float64), rounded)
    assert reason in said
    assert np.isnan(error).all()


def test_values_where_float32_overflows_are_left_out() -> None:
    rounded = replaced(np.inf)
    exact = BEYOND + [0.5, 0, 0]
    error, said = errors_of(replaced(np.inf), exact, rounded)
    assert said == ""
    np.testing.assert_array_equal(error, [0.5, 0.0])
    assert Tolerance.from_noise(exact, rounded).max == 2.0


def test_difference_of_two_runs_is_zero_only_for_equal_values() -> None:
    assert difference(replaced(np.inf), replaced(np.inf))[0].max() == 0
    assert difference(VALUE, replaced(2.5))[0].max() == 0.5
    assert np.isnan(difference(replaced(np.nan), replaced(np.nan))[0]).any()
    assert difference(VALUE, None)[1] == "there is no such output"
    assert difference(VALUE, VALUE[:2])[1].startswith("got float32")
