"""How well scores find unusual rows, name the changed column, and keep to what they promise."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.tables.plugs import Array

FDR = (0.05, 0.1)
FDR_DRAWS = 100
FDR_UNUSUAL_SHARE = 0.1
"""The share of unusual rows in each draw that a false discovery proportion is measured on."""
TOP_SHARE = 0.05
"""The rows that count as flagged where a method flags none itself: those with the top scores."""
Flags = NDArray[np.bool_]


def find_auroc(scores: Array, unusual: Flags) -> float:
    """Return the chance that an unusual row scores above a clean one; ties count half."""
    _, index, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[index]
    hits, others = int(unusual.sum()), int((~unusual).sum())
    return float((ranks[unusual].sum() - hits * (hits + 1) / 2) / (hits * others))


def find_average_precision(scores: Array, unusual: Flags) -> float:
    """Return the precision at each threshold weighted by the recall that it adds."""
    values, index = np.unique(-scores, return_inverse=True)
    found = np.cumsum(np.bincount(index, unusual, len(values)))
    taken = np.cumsum(np.bincount(index, minlength=len(values)))
    gained = np.diff(found, prepend=0.0)
    return float((found / taken * gained).sum() / unusual.sum())


def flag_top(scores: Array) -> Flags:
    """Return the rows of the top scores, `TOP_SHARE` of all and at least one."""
    count = max(1, round(TOP_SHARE * len(scores)))
    flagged = np.zeros(len(scores), bool)
    flagged[np.argsort(-scores, kind="stable")[:count]] = True
    return flagged


def count_named(
    columns: Array, flagged: Flags, changed: Sequence[str], names: Sequence[str]
) -> tuple[int, int]:
    """Return how many changed rows are flagged, and in how many of them that column comes first.

    `columns` is (rows, columns). Where several columns tie for the first place, each of them counts
    for its share, rounded over all rows.
    """
    first = columns == columns.max(axis=1, keepdims=True)
    rows = [row for row, name in enumerate(changed) if name and flagged[row]]
    index = {name: place for place, name in enumerate(names)}
    right = sum(first[row, index[changed[row]]] / first[row].sum() for row in rows)
    return len(rows), round(right)


def find_ks(p_values: Array, held_out: int) -> tuple[float, float]:
    """Return the Kolmogorov-Smirnov distance of clean rows from held-out ones, and its p-value.

    Conformal p-values are ranks: a row's is (1 + the number of held-out scores up to its own) /
    (held_out + 1). They are uniform over all draws of the held-out rows, but given those of one
    bundle they follow the ranks' own chance, which is large for few rows. So the two samples of
    scores are compared, which needs their ranks alone: held-out score j lies between the p-values
    j / (held_out + 1) and (j + 1) / (held_out + 1).
    """
    from scipy.stats import ks_2samp

    ranks = (np.arange(held_out) + 1.5) / (held_out + 1)
    result = ks_2samp(p_values, ranks)
    return float(result.statistic), float(result.pvalue)


def flag_at(p_values: Array, fdr: float) -> Flags:
    """Return the rows that Benjamini and Hochberg's (1995) procedure flags."""
    order = np.argsort(p_values, kind="stable")
    steps = np.arange(1, len(order) + 1) * fdr / len(order)
    passing = np.flatnonzero(p_values[order] <= steps)
    flagged = np.zeros(len(order), bool)
    if len(passing):
        flagged[order[: passing[-1] + 1]] = True
    return flagged


def draw_false_discoveries(
    p_values: Array, unusual: Flags, fdr: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Return the mean false discovery proportion and power over `FDR_DRAWS` draws of rows.

    Each draw has half of the clean rows, and as many unusual ones as make a tenth of it.
    """
    clean, others = np.flatnonzero(~unusual), np.flatnonzero(unusual)
    take = len(clean) // 2
    most = min(len(others), max(1, round(take * FDR_UNUSUAL_SHARE / (1 - FDR_UNUSUAL_SHARE))))
    false, power = [], []
    for _ in range(FDR_DRAWS):
        rows = np.concatenate([rng.permutation(clean)[:take], rng.permutation(others)[:most]])
        flagged = flag_at(p_values[rows], fdr)
        false.append((flagged & ~unusual[rows]).sum() / max(1, flagged.sum()))
        power.append((flagged & unusual[rows]).sum() / most)
    return float(np.mean(false)), float(np.mean(power))


def rank_methods(values: Mapping[str, float], higher: bool = True) -> Mapping[str, float]:
    """Return each method's rank, 1 for the best; those that tie share their mean rank."""
    from scipy.stats import rankdata

    signs = [-value if higher else value for value in values.values()]
    return dict(zip(values, map(float, rankdata(signs)), strict=True))
