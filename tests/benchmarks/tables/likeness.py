"""How like real rows the rows are that a model draws, judged by rows that it never saw.

`one_way` and `two_way` are total variation distances, from 0 for equal to 1 for disjoint, averaged
over columns and over pairs of columns (at most `PAIRS` of them, drawn by the seed). Numbers and
dates are binned at quantiles of the real rows, text keeps its most frequent words, and a gap is a
bin of its own. `told_apart` is the AUROC of a classifier that tells drawn rows from real ones, on
rows that it was not fitted on: 0.5 is best (Lopez-Paz and Oquab 2017). `useful` is the AUROC of a
classifier of one column that learned from drawn rows, on real ones.

The same figures of real training rows stand beside them: they are what is left to sampling.
"""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tests.benchmarks.tables.anomalies import is_measured
from tests.benchmarks.tables.catalog import Table
from tests.benchmarks.tables.encoding import measure
from tests.benchmarks.tables.metrics import find_auroc

BINS_ONE_WAY, BINS_TWO_WAY = 20, 6
PAIRS = 200
FOLDS = 3
WORDS = 200
"""Words that a classifier tells apart; the rest share a code."""


def find_likeness(
    drawn: pd.DataFrame, real: pd.DataFrame, table: Table, seed: int
) -> Mapping[str, float]:
    """Return all figures of drawn rows beside as many or fewer real ones."""
    return {
        "one_way": compare_columns(drawn, real),
        "two_way": compare_pairs(drawn, real, np.random.default_rng(seed)),
        "told_apart": tell_apart(drawn, real, seed),
        "useful": find_usefulness(drawn, real, table, seed),
    }


def compare_columns(drawn: pd.DataFrame, real: pd.DataFrame) -> float:
    """Return the mean distance of columns."""
    distances = []
    for name in real:
        first, second = bin_column(drawn[name], real[name], BINS_ONE_WAY)
        distances.append(find_distance(first, second))
    return float(np.mean(distances))


def compare_pairs(drawn: pd.DataFrame, real: pd.DataFrame, rng: np.random.Generator) -> float:
    """Return the mean distance of pairs of columns."""
    codes = [bin_column(drawn[name], real[name], BINS_TWO_WAY) for name in real]
    pairs = list(combinations(range(len(codes)), 2))
    distances = []
    for index in rng.permutation(len(pairs))[:PAIRS]:
        (first, other), (second, another) = (codes[place] for place in pairs[index])
        width = BINS_TWO_WAY + 2
        distances.append(find_distance(first * width + second, other * width + another))
    return float(np.mean(distances))


def bin_column(
    drawn: pd.Series, real: pd.Series, bins: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return codes below `bins` + 2 for both columns: bins or words, other words, a gap."""
    if is_measured(real):
        values = measure(real)
        edges = np.unique(np.nanquantile(values, np.linspace(0, 1, bins + 1)[1:-1]))
        parts = [
            (np.searchsorted(edges, part), np.isnan(part)) for part in (measure(drawn), values)
        ]
    else:
        words = real.value_counts().index[:bins]
        parts = [
            (code_words(column, words), column.isna().to_numpy(bool)) for column in (drawn, real)
        ]
    first, second = (np.where(gaps, bins + 1, codes).astype(np.intp) for codes, gaps in parts)
    return first, second


def code_words(column: pd.Series, words: pd.Index) -> NDArray[np.intp]:
    """Return the place of each value among words, and their number for other values."""
    places = {word: place for place, word in enumerate(words)}
    return np.array([places.get(value, len(places)) for value in column], np.intp)


def find_distance(first: NDArray[np.intp], second: NDArray[np.intp]) -> float:
    """Return the total variation distance of two samples of codes."""
    size = max(first.max(), second.max()) + 1
    shares = [np.bincount(codes, minlength=size) / len(codes) for codes in (first, second)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def tell_apart(drawn: pd.DataFrame, real: pd.DataFrame, seed: int) -> float:
    """Return how well boosted trees tell drawn rows from real ones, on rows left out."""
    from sklearn.model_selection import StratifiedKFold

    count = min(len(drawn), len(real))
    both = pd.concat([code_rows(drawn[:count], real), code_rows(real[:count], real)])
    is_drawn = np.arange(len(both)) < count
    scores = np.zeros(len(both))
    for fit, test in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(both, is_drawn):
        scores[test] = fit_trees(both.iloc[fit], is_drawn[fit], both.iloc[test], seed)
    return find_auroc(scores, is_drawn)


def find_usefulness(drawn: pd.DataFrame, real: pd.DataFrame, table: Table, seed: int) -> float:
    """Return the AUROC on real rows of trees that learned a class from drawn ones."""
    if table.minority:
        column, value = table.minority.column, table.minority.value
        hidden = [column, *table.minority.hides]
    else:
        assert table.target is not None, "a table needs a rare class or a target"
        column, value = table.target
        hidden = [column]
    is_class = [(rows[column] == value).fillna(False).to_numpy(bool) for rows in (drawn, real)]
    if is_class[0].all() or not is_class[0].any():
        return 0.5
    x, real_x = (code_rows(rows.drop(columns=hidden), real) for rows in (drawn, real))
    return find_auroc(fit_trees(x, is_class[0], real_x, seed), is_class[1])


def code_rows(rows: pd.DataFrame, real: pd.DataFrame) -> pd.DataFrame:
    """Return numbers for trees: dates in days, the places of words, NaN for gaps."""
    columns = {}
    for name in rows:
        if is_measured(real[name]):
            columns[name] = measure(rows[name])
        else:
            words = real[name].value_counts().index[:WORDS]
            codes = code_words(rows[name], words).astype(np.float64)
            columns[name] = np.where(rows[name].isna(), np.nan, codes)
    return pd.DataFrame(columns)


def fit_trees(
    x: pd.DataFrame, y: NDArray[np.bool_], test: pd.DataFrame, seed: int
) -> NDArray[np.float64]:
    """Return the chance of the class for test rows, by boosted trees at their usual settings.

    A column without any value to fit on is left out; the trees cannot bin it.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    known = x.columns[x.notna().any()]
    if not len(known):
        return np.full(len(test), float(y.mean()))
    model = HistGradientBoostingClassifier(random_state=seed, early_stopping=False)
    chances: NDArray[np.float64] = model.fit(x[known], y).predict_proba(test[known])[:, 1]
    return chances
