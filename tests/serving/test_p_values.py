"""Conformal p-values and the rows that they flag; what needs scipy is in tests/pipeline."""

from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from serving.bundle import HELD_OUT, open_bundle
from serving.drift import SCORE_SAMPLES
from serving.errors import UsageRefused, VerificationFailed
from serving.operations import By
from serving.p_values import (
    FlagCounter,
    HeldOutScores,
    PValues,
    check_by,
    choose_score,
    default_samples,
    read_held_out_scores,
)
from tests.serving.batch.reports import hold
from tests.serving.conftest import SCHEMA_1, SEALED

Array = np.ndarray[Any, Any]


def flag_directly(p: Array, fdr: str) -> Array:
    """Return which rows the procedure of Benjamini and Hochberg flags, in exact numbers."""
    exact = [Fraction(float(value)).limit_denominator(10**6) for value in p]
    order = sorted(exact)
    level = Fraction(fdr)
    passed = [value for i, value in enumerate(order, 1) if value <= level * i / len(order)]
    return np.array([bool(passed) and value <= passed[-1] for value in exact])


def test_a_p_value_is_the_share_of_held_out_rows_up_to_the_score_counting_its_own() -> None:
    generator = np.random.default_rng(0)
    held = generator.integers(0, 20, 57).astype(np.float32)  # with ties
    scores = generator.integers(-3, 23, 400).astype(np.float32)
    direct = [(1 + sum(h <= s for h in held)) / 58 for s in scores]
    assert PValues(held)(scores).tolist() == direct
    assert PValues(held)(np.array([-np.inf, np.inf])).tolist() == [1 / 58, 1.0]


@pytest.mark.parametrize("fdr", [0.01, 0.05, 0.1, 0.3, 0.9])
@pytest.mark.parametrize("rows", [1, 7, 300])
@pytest.mark.parametrize("unusual", [0, 0.1, 1])
def test_counts_flag_what_the_procedure_flags_row_by_row(
    fdr: float, rows: int, unusual: float
) -> None:
    generator = np.random.default_rng(rows)
    held = generator.standard_normal(99)
    scores = generator.standard_normal(rows) - 4 * (generator.random(rows) < unusual)
    p = PValues(held)(scores)
    counter = FlagCounter(99)
    for part in np.array_split(p, 3):
        counter.add(part)
    flags = counter.flag(fdr)
    expected = flag_directly(p, str(fdr))
    assert flags.flagged == expected.sum()
    assert np.array_equal(p <= (flags.threshold or 0), expected)


def test_a_p_value_at_the_very_border_is_flagged() -> None:
    """0.3 of 3 rows in 10: in floating point, 0.3 * 1 / 3 is less than 0.1."""
    assert 0.3 * 1 / 3 < 0.1
    counter = FlagCounter(9)
    counter.add(np.array([0.1, 0.9, 1.0]))
    assert counter.flag(0.3).flagged == 1


def test_too_few_held_out_rows_are_told_with_the_numbers() -> None:
    counter = FlagCounter(9)
    counter.add(np.linspace(0.1, 1, 10).repeat(100))
    assert counter.flag(0.05).describe(9, 0.05) == (
        "no row can be flagged: the smallest p-value against 9 held-out rows is 0.1, above --fdr "
        "0.05; hold out more rows, or take a larger --fdr"
    )


def test_no_row_that_is_flagged_is_told_with_the_numbers() -> None:
    counter = FlagCounter(99)
    counter.add(np.linspace(0.01, 1, 100).repeat(10))
    flags = counter.flag(0.1)
    assert (flags.flagged, flags.threshold) == (0, None)
    assert flags.describe(99, 0.1) == (
        "no row is flagged: among 1,000 rows, --fdr 0.1 needs 100 with the p-value 0.01, the "
        "smallest against 99 held-out rows, and 10 have it"
    )
    counter.add(np.full(120, 0.01))
    assert counter.flag(0.1).flagged == 130
    assert counter.flag(0.1).describe(99, 0.1) is None


def test_the_default_score_is_that_which_finds_most() -> None:
    assert check_by("", mixed=False) == "elbo"
    assert check_by("", mixed=True) == "consistency"
    assert check_by("", mixed=True, combined=True) == "combined"
    assert [check_by(name, mixed=True) for name in get_args(By)] == list(get_args(By))
    with pytest.raises(
        UsageRefused, match="one of elbo, log_likelihood, iw_elbo, latent for this model, got 'col"
    ):
        check_by("column_max", mixed=False)


def test_a_score_is_low_for_unusual_rows() -> None:
    outputs = {"kl": np.array([1.0, 5.0]), "column_lift": np.array([[0.5, -2.0], [1.0, 0.0]])}
    assert choose_score("latent", outputs).tolist() == [-1, -5]
    assert choose_score("column_max", outputs).tolist() == [-2, 0]
    assert choose_score("column_max", {"column_max": np.array([7.0])}).tolist() == [7]


def test_held_out_scores_are_those_that_were_written(tmp_path: Path) -> None:
    scores = {"elbo": np.arange(5, dtype=np.float32), "kl": np.ones(5, np.float32)}
    bundle = hold(SEALED, tmp_path / "bundle", HeldOutScores(16, 3, scores))
    found = read_held_out_scores(bundle)
    assert found is not None
    assert (found.num_samples, found.seed) == (16, 3)
    assert {name: values.tolist() for name, values in found.scores.items()} == {
        "elbo": [0, 1, 2, 3, 4],
        "kl": [1] * 5,
    }
    assert default_samples(bundle, "score") == 16
    assert default_samples(bundle, "encode") == 1


def test_an_early_bundle_has_none() -> None:
    bundle = open_bundle(SCHEMA_1)
    assert read_held_out_scores(bundle) is None
    assert default_samples(bundle, "score") == SCORE_SAMPLES


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"no archive"], ids=["empty", "cut", "text"]
)
def test_a_file_that_is_no_archive_of_scores_is_refused(tmp_path: Path, content: bytes) -> None:
    bundle = hold(SEALED, tmp_path / "bundle", HeldOutScores(1, 0, {}))
    (bundle.path / HELD_OUT).write_bytes(content)
    with pytest.raises(VerificationFailed, match=r"cannot read .*held_out\.npz"):
        read_held_out_scores(bundle)
