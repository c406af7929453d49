"""The figures of the benchmark of tables, against scikit-learn, scipy and closed forms."""

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as reference

from tests.benchmarks.tables.catalog import TABLES, Minority, Table
from tests.benchmarks.tables.gaps import (
    HIDDEN_SHARE,
    fill_iteratively,
    fill_simple,
    find_errors,
    hide_cells,
)
from tests.benchmarks.tables.likeness import (
    bin_column,
    compare_columns,
    compare_pairs,
    find_distance,
    find_usefulness,
    tell_apart,
)
from tests.benchmarks.tables.metrics import (
    count_named,
    draw_false_discoveries,
    find_auroc,
    find_average_precision,
    find_ks,
    flag_at,
    flag_top,
    rank_methods,
)

RNG = np.random.default_rng


@pytest.mark.parametrize("digits", [1, 9], ids=["with ties", "without ties"])
def test_areas_agree_with_scikit_learn(digits: int) -> None:
    rng = RNG(0)
    unusual = rng.random(300) < 0.2
    scores = (rng.normal(size=300) + unusual).round(digits)
    assert find_auroc(scores, unusual) == pytest.approx(reference.roc_auc_score(unusual, scores))
    expected = reference.average_precision_score(unusual, scores)
    assert find_average_precision(scores, unusual) == pytest.approx(expected)


@pytest.mark.parametrize("fdr", [0.05, 0.2])
def test_flags_agree_with_scipy(fdr: float) -> None:
    p_values = RNG(1).random(200) ** 3
    flagged = flag_at(p_values, fdr)
    assert (flagged == (stats.false_discovery_control(p_values) <= fdr)).all()
    assert 0 < flagged.sum() < 200
    assert not flag_at(np.ones(5), fdr).any()
    assert flag_at(np.array([0.8, 1.0]) * fdr, fdr).all()  # the second passes, and takes the first


def test_false_discoveries_keep_to_their_rate() -> None:
    unusual = np.arange(4000) >= 3000
    p_values = np.where(unusual, 0.0, RNG(2).random(4000))
    false, power = draw_false_discoveries(p_values, unusual, 0.1, RNG(3))
    assert power == 1
    assert false == pytest.approx(0.9 * 0.1, abs=0.01)  # the rate times the share of clean rows
    assert draw_false_discoveries(1 - p_values, unusual, 0.1, RNG(3))[1] == 0


def test_the_distance_of_clean_and_held_out_rows_is_that_of_their_scores() -> None:
    clean, held_out = RNG(4).normal(size=50), RNG(5).normal(size=30)

    def p_values(scores: NDArray[np.float64]) -> NDArray[np.float64]:
        return (1 + (held_out[None] <= scores[:, None]).sum(1)) / 31

    expected = stats.ks_2samp(clean, held_out)
    found = find_ks(p_values(clean), 30)
    assert found == pytest.approx((expected.statistic, expected.pvalue))
    assert find_ks(p_values(clean - 2), 30)[1] < 1e-3


def test_the_top_scores_are_flagged() -> None:
    assert np.flatnonzero(flag_top(np.arange(40.0))).tolist() == [38, 39]
    assert flag_top(np.array([1.0, 3.0, 2.0])).tolist() == [False, True, False]


def test_the_first_column_of_flagged_changed_rows_is_counted() -> None:
    columns = np.array([[1.0, 2, 0], [5, 1, 1], [0, 0, 9], [7, 7, 1], [7, 7, 1]])
    changed = ("b", "c", "", "a", "a")
    everyone = np.ones(5, bool)
    # Rows 3 and 4 name a and b alike: half a point each.
    assert count_named(columns, everyone, changed, ("a", "b", "c")) == (4, 2)
    assert count_named(columns, np.arange(5) == 0, changed, ("a", "b", "c")) == (1, 1)
    assert count_named(columns, np.arange(5) == 2, changed, ("a", "b", "c")) == (0, 0)


def test_ranks_share_ties() -> None:
    values = {"x": 0.9, "y": 0.9, "z": 0.5}
    assert rank_methods(values) == {"x": 1.5, "y": 1.5, "z": 3}
    assert rank_methods(values, higher=False) == {"x": 2.5, "y": 2.5, "z": 1}


def make_related(count: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Return rows in which every column follows from the first, and one has gaps."""
    number = RNG(seed).normal(size=count)
    days = pd.to_timedelta((number * 86400 * 30).round().astype("int64"), unit="s")
    return pd.DataFrame(
        {
            "number": number,
            "twice": 2 * number + 5,
            "word": np.where(number > 0, "up", "down"),
            "flag": number > 0,
            "date": pd.Series(pd.Timestamp("2024-01-01") + days).dt.as_unit("us"),
            "gappy": np.where(RNG(seed + 1).random(count) < 0.5, np.nan, number),
        }
    )


def test_a_fifth_of_the_seen_cells_is_hidden_and_no_other_is_touched() -> None:
    rows = make_related(5000)
    gappy, hidden = hide_cells(rows, RNG(0))
    seen = rows.notna().to_numpy()
    assert not (hidden & ~seen).any()
    assert hidden[seen].mean() == pytest.approx(HIDDEN_SHARE, abs=0.01)
    assert (gappy.isna().to_numpy() == (hidden | ~seen)).all()
    kept = gappy.notna()
    assert (gappy[kept].astype(object).fillna(0) == rows[kept].astype(object).fillna(0)).all().all()


def test_the_error_of_a_filling_is_that_of_its_cells() -> None:
    train = pd.DataFrame({"a": [0.0, 4.0], "b": ["x", "y"], "same": [1.0, 1.0]})
    rows = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": ["x", "y", "y"], "same": [1.0, 1.0, 1.0]})
    filled = pd.DataFrame({"a": [4.0, 9.0, 7.0], "b": ["x", "x", "x"], "same": [9.0, 9.0, 9.0]})
    hidden = np.array([[True, True, True], [False, True, False], [True, False, False]])
    errors = find_errors(filled, rows, hidden, train)
    assert errors == pytest.approx({"a": np.sqrt((9 + 16) / 2) / 2, "b": 0.5})
    assert find_errors(rows, rows, hidden, train) == {"a": 0, "b": 0}


def test_simple_filling_is_by_mean_and_most_frequent_word() -> None:
    train = pd.DataFrame({"a": [1.0, 2.0, 6.0], "b": ["x", "x", "y"], "c": [True, True, False]})
    train["d"] = pd.to_datetime(["2024-01-01", "2024-01-02", "2024-01-06"]).as_unit("us")
    test = pd.DataFrame({"a": [np.nan, 5.0], "b": [None, "y"], "c": [None, False]})
    test["d"] = pd.Series([None, train["d"][0]], dtype=train["d"].dtype)
    filled = fill_simple(train, test, 0)
    assert filled.iloc[0].tolist() == [3.0, "x", True, pd.Timestamp("2024-01-03")]
    assert filled.iloc[1].tolist() == [5.0, "y", False, pd.Timestamp("2024-01-01")]


def test_iterative_filling_finds_what_follows_from_other_columns() -> None:
    train, test = make_related(800), make_related(400, seed=5)
    gappy, hidden = hide_cells(test, RNG(0))
    errors = {
        fill.__name__: find_errors(fill(train, gappy, 0), test, hidden, train)
        for fill in (fill_simple, fill_iteratively)
    }
    for name in ("number", "twice", "date"):
        assert errors["fill_iteratively"][name] < 0.3 < errors["fill_simple"][name]
    assert errors["fill_iteratively"]["word"] < 0.1 < errors["fill_simple"]["word"]


def test_distances_are_total_variation() -> None:
    first, second = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 3])
    assert find_distance(first, second) == 0.5
    assert find_distance(first, first) == 0
    assert find_distance(first, first + 3) == 1


def test_bins_are_quantiles_words_and_gaps() -> None:
    real = pd.Series(np.arange(100.0))
    drawn = pd.Series([-9.0, 50.5, 999.0, np.nan])
    codes, real_codes = bin_column(drawn, real, 4)
    assert codes.tolist() == [0, 2, 3, 5]
    assert np.bincount(real_codes).tolist() == [25, 25, 25, 25]
    words = pd.Series(["a", "a", "a", "b", "b", "c"], dtype="str")
    found, _ = bin_column(pd.Series(["a", "b", "c", "new", None], dtype="str"), words, 2)
    assert found.tolist() == [0, 1, 2, 2, 3]


@pytest.mark.slow(1)  # scikit-learn's trees start lscpu, to count cores
def test_rows_of_one_source_cannot_be_told_apart_and_others_can() -> None:
    one, two = make_related(400), make_related(400, seed=9)
    shuffled = two.assign(twice=two["twice"].sample(frac=1, random_state=0).to_numpy())
    assert compare_columns(one, one) == compare_pairs(one, one, RNG(0)) == 0
    assert compare_columns(shuffled, two) == 0
    assert compare_pairs(shuffled, two, RNG(0)) > 0.1
    assert tell_apart(one, two, 0) == pytest.approx(0.5, abs=0.1)
    assert tell_apart(shuffled, two, 0) > 0.9


@pytest.mark.slow(1)  # scikit-learn's trees start lscpu, to count cores
def test_drawn_rows_are_as_useful_as_what_they_teach() -> None:
    table = make_table(Minority("word", "up", hides=("flag",)))
    real, drawn = make_related(400), make_related(400, seed=9)
    assert find_usefulness(drawn, real, table, 0) > 0.99
    turned = drawn.assign(word=drawn["word"].map({"up": "down", "down": "up"}))
    assert find_usefulness(turned, real, table, 0) < 0.01
    assert find_usefulness(drawn.assign(word="up"), real, table, 0) == 0.5
    empty = drawn.assign(number=np.nan, twice=np.nan)
    assert find_usefulness(empty, real, table, 0) > 0.99  # the date says it, too


def make_table(minority: Minority) -> Table:
    """Return an entry of the catalogue with a rare class."""
    iris = TABLES["iris"]
    return Table(iris.package, iris.item, "", "", 400, 6, 0.1, minority)
