"""The three parts of the benchmark: from a table, a seed and a method to records."""

from collections.abc import Mapping, Sequence
from time import perf_counter

import numpy as np
import pandas as pd

from tests.benchmarks.tables.anomalies import (
    KINDS,
    TEST_ROWS,
    TRAIN_ROWS,
    Kind,
    Split,
    divide,
    split_table,
)
from tests.benchmarks.tables.catalog import TABLES
from tests.benchmarks.tables.gaps import find_errors, hide_cells
from tests.benchmarks.tables.likeness import find_likeness
from tests.benchmarks.tables.load import load_table
from tests.benchmarks.tables.metrics import (
    FDR,
    count_named,
    draw_false_discoveries,
    find_auroc,
    find_average_precision,
    find_ks,
    flag_top,
)
from tests.benchmarks.tables.plugs import Imputer, Sampler, Scorer, Scores
from tests.benchmarks.tables.records import Record


def kinds_of(name: str) -> tuple[Kind, ...]:
    """Return the kinds of unusual rows that a table can have."""
    return KINDS if TABLES[name].minority else KINDS[1:]


def measure_unusual(score: Scorer, name: str, seed: int, method: str) -> Sequence[Record]:
    """Train once on all rows and, where there is a rare class, once without it; score."""
    records = []
    groups: tuple[tuple[Kind, ...], ...] = (KINDS[1:], kinds_of(name)[:-2])
    for kinds in filter(None, groups):
        splits = [split_table(name, kind, seed) for kind in kinds]
        started = perf_counter()
        answers = score(splits[0].train, [split.test for split in splits], seed)
        seconds = (perf_counter() - started) / len(kinds)
        for kind, split, scores in zip(kinds, splits, answers, strict=True):
            figures = {**judge(split, scores, kind, seed), "seconds": seconds}
            records.append(Record("unusual", name, kind, seed, method, figures))
    return records


def judge(split: Split, scores: Scores, kind: Kind, seed: int) -> Mapping[str, float]:
    """Return all figures that the scores allow."""
    figures: dict[str, float] = {
        "auroc": find_auroc(scores.rows, split.unusual),
        "ap": find_average_precision(scores.rows, split.unusual),
        "share": float(split.unusual.mean()),
    }
    figures |= {f"by {by}": find_auroc(rows, split.unusual) for by, rows in scores.others.items()}
    names = list(split.test.columns)
    if kind == "changed" and scores.columns is not None:
        flags = {"top": flag_top(scores.rows)}
        if scores.flagged is not None:
            flags["fdr"] = scores.flagged
        for way, flagged in flags.items():
            found, named = count_named(scores.columns, flagged, split.changed, names)
            figures |= {f"{way}_changed": found, f"{way}_named": named}
        figures["chance"] = 1 / len(names)
    if scores.flagged is not None:
        figures["flagged"] = float(scores.flagged.mean())
    if scores.p_values is not None:
        figures["ks"], figures["ks_p"] = find_ks(scores.p_values[~split.unusual], scores.held_out)
        figures["held_out"] = scores.held_out
        for fdr in FDR:
            rng = np.random.default_rng(seed)
            false, power = draw_false_discoveries(scores.p_values, split.unusual, fdr, rng)
            figures |= {f"fdp_{fdr}": false, f"power_{fdr}": power}
    return figures


def measure_gaps(fill: Imputer, name: str, seed: int, method: str) -> Sequence[Record]:
    """Hide cells of the test rows, have them filled, and measure the errors."""
    train, test, rng = divide_clean(name, seed)
    gappy, hidden = hide_cells(test, rng)
    started = perf_counter()
    filled = fill(train, gappy, seed)
    seconds = perf_counter() - started
    columns = find_errors(filled, test, hidden, train)
    figures = {"error": float(np.mean(list(columns.values()))), "seconds": seconds}
    figures |= {f"column {column}": error for column, error in columns.items()}
    return [Record("gaps", name, "", seed, method, figures)]


def measure_synthetic(sample: Sampler, name: str, seed: int, method: str) -> Sequence[Record]:
    """Draw as many rows as there are to train on, and compare them with the test rows."""
    train, test, _ = divide_clean(name, seed)
    started = perf_counter()
    drawn = sample(train, len(train), seed)
    seconds = perf_counter() - started
    figures = find_likeness(drawn[list(train)], test, TABLES[name], seed)
    return [Record("synthetic", name, "", seed, method, {**figures, "seconds": seconds})]


def divide_clean(name: str, seed: int) -> tuple[pd.DataFrame, pd.DataFrame, np.random.Generator]:
    """Return the same rows as for `swapped` and `changed`, all clean, and the generator."""
    rng = np.random.default_rng(seed)
    return *divide(load_table(name), rng, TRAIN_ROWS, TEST_ROWS), rng
