"""The benchmark of tables: how rows become unusual, how tables become numbers, what is printed."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.benchmarks.tables import anomalies
from tests.benchmarks.tables.__main__ import METHODS, choose
from tests.benchmarks.tables.anomalies import (
    RANK_APART,
    UNUSUAL_SHARE,
    NoSplit,
    change_cells,
    split_rows,
    split_table,
    stay,
    swap_cells,
)
from tests.benchmarks.tables.catalog import TABLES
from tests.benchmarks.tables.encoding import fit_encoder
from tests.benchmarks.tables.records import Record, Results, add_records, read_results
from tests.benchmarks.tables.records import write_results as write
from tests.benchmarks.tables.report import report

CHOSEN = np.array([3, 50, 199])


def make_rows(count: int = 200, seed: int = 0) -> pd.DataFrame:
    """Return rows of every kind of column, with gaps in three of them."""
    rng = np.random.default_rng(seed)
    dates = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 500, count), unit="D")
    frame = pd.DataFrame(
        {
            "number": rng.normal(size=count),
            "count": rng.poisson(0.3, count),
            "word": rng.choice(["a", "b", "c"], count, p=[0.7, 0.29, 0.01]),
            "flag": rng.random(count) < 0.5,
            "date": pd.Series(dates).dt.as_unit("us"),
        }
    )
    for column in ("number", "word", "date"):
        frame[column] = frame[column].mask(pd.Series(rng.random(count) < 0.2))
    return frame


def is_same(mine: Any, other: Any) -> bool:
    """Return whether two cells are equal, gaps included."""
    gaps = (pd.isna(mine), pd.isna(other))
    return all(gaps) if any(gaps) else bool(mine == other)


def test_swapped_rows_have_cells_of_one_other_row_of_which_two_differ() -> None:
    rows = make_rows()
    values: Any = rows.to_numpy(object)
    source = swap_cells(rows, CHOSEN, np.random.default_rng(1))
    assert set(np.flatnonzero((source != stay(rows)).any(axis=1))) == set(CHOSEN)
    for row in CHOSEN:
        cells = np.flatnonzero(source[row] != row)
        (donor,) = set(source[row, cells])
        assert len(cells) == 2  # a third of five columns
        assert not any(is_same(values[row, cell], values[donor, cell]) for cell in cells)


def test_a_third_of_the_cells_is_swapped() -> None:
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(30, 12)))
    source = swap_cells(rows, np.array([4]), np.random.default_rng(1))
    assert (source[4] != 4).sum() == 4


def test_a_changed_cell_is_no_gap_and_differs_by_rank() -> None:
    rows = make_rows()
    values: Any = rows.to_numpy(object)
    source = change_cells(rows, np.arange(len(rows)), np.random.default_rng(1))
    assert ((source != stay(rows)).sum(axis=1) == 1).all()
    seen = set()
    for row in range(len(rows)):
        (cell,) = np.flatnonzero(source[row] != row)
        mine, other = values[row, cell], values[source[row, cell], cell]
        assert pd.notna(mine)
        assert pd.notna(other)
        assert mine != other
        name = rows.columns[int(cell)]
        if name in ("number", "count", "date"):
            known = rows[name].dropna()
            first, second = ((known < x).mean() + (known <= x).mean() for x in (mine, other))
            assert abs(first - second) / 2 > RANK_APART
        seen.add(name)
    assert seen == set(rows.columns)


@pytest.mark.parametrize("make", [swap_cells, change_cells])
def test_rows_that_are_all_alike_are_refused(make: anomalies.Make) -> None:
    rows = pd.DataFrame({"a": [1.0] * 9, "b": ["x"] * 9, "c": [None] * 9})
    with pytest.raises(NoSplit, match="too alike"):
        make(rows, np.array([0]), np.random.default_rng(0))


def test_a_split_names_the_column_that_was_changed() -> None:
    table = make_rows(1000).assign(place=np.arange(1000.0))
    split = split_rows(table, "changed", np.random.default_rng(3), 600, 200)
    clean = split_rows(table, "swapped", np.random.default_rng(3), 600, 200)
    assert split.train.equals(clean.train)
    assert len(split.train) == 600
    assert split.unusual.sum() == round(200 * UNUSUAL_SHARE)
    untouched = anomalies.divide(table, np.random.default_rng(3), 600, 200)[1]
    before: Any = untouched.to_numpy(object)
    after: Any = split.test.to_numpy(object)
    for row, name in enumerate(split.changed):
        pairs = zip(table, before[row], after[row], strict=True)
        assert [column for column, *pair in pairs if not is_same(*pair)] == ([name] if name else [])
        assert bool(name) == split.unusual[row]
    assert list(split.test.dtypes) == list(table.dtypes)


def test_the_same_seed_gives_the_same_split() -> None:
    first, again, other = (
        split_rows(make_rows(), "swapped", np.random.default_rng(seed), 100, 60)
        for seed in (1, 1, 2)
    )
    assert first.test.equals(again.test)
    assert not first.test.equals(other.test)


def test_training_sees_nothing_of_the_rare_class(monkeypatch: pytest.MonkeyPatch) -> None:
    weeks = [40.0] * 80 + [30.0] * 20
    table = pd.DataFrame({"premie": ["full term"] * 80 + ["premie"] * 20, "weeks": weeks})
    table["mass"] = [1.0] * 80 + [2.0] * 20
    monkeypatch.setattr(anomalies, "load_table", lambda name: table)
    split = split_table("births", "minority", 0)
    assert list(split.train) == list(split.test) == ["mass"]
    assert (split.train["mass"] == 1).all()
    assert (split.unusual == (split.test["mass"] == 2)).all()
    assert split.unusual.sum() == 8  # a quarter of 24 clean rows and these
    with pytest.raises(NoSplit, match="'iris' has no rare class"):
        split_table("iris", "minority", 0)


def test_every_table_has_a_class_to_find_or_to_tell() -> None:
    assert len(TABLES) >= 12
    assert all((table.minority is None) != (table.target is None) for table in TABLES.values())
    assert sum(table.gaps > 0 for table in TABLES.values()) >= 9


def test_encoding_agrees_with_scikit_learn() -> None:
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    rows = make_rows().dropna().reset_index(drop=True)
    encoder = fit_encoder(rows)
    x = encoder.encode(rows)
    numbers = rows[["number", "count"]]
    np.testing.assert_allclose(x[:, :2], StandardScaler().fit_transform(numbers))
    word = OneHotEncoder(min_frequency=2, sparse_output=False).fit_transform(rows[["word"]])
    found = x[:, encoder.owners == 2]
    assert sorted(map(tuple, found.T)) == sorted(map(tuple, word.T))


def test_what_is_encoded_is_decoded() -> None:
    rows = make_rows().dropna().reset_index(drop=True)
    rows["word"] = rows["word"].replace("c", "b")
    decoded = fit_encoder(rows).decode(fit_encoder(rows).encode(rows))
    for name in rows:
        if name == "number":
            np.testing.assert_allclose(decoded[name], rows[name])
        else:
            assert (decoded[name] == rows[name]).all()


def test_gaps_are_medians_and_words_or_stay_open() -> None:
    train = pd.DataFrame({"a": [1.0, 2.0, 9.0, np.nan], "b": ["x", "x", "y", "y"]})
    encoder = fit_encoder(train)
    test = pd.DataFrame({"a": [np.nan, 2.0], "b": ["x", None]})
    filled, gappy = encoder.encode(test), encoder.encode(test, fill=False)
    assert filled[0, 0] == filled[1, 0] == (2.0 - 4.0) / np.std([1.0, 2.0, 9.0])
    assert filled[:, 1].tolist() == [1.0, 0.0]
    assert filled[1, 2:].tolist() == [0.0, 0.0]  # training had no gap in b
    assert np.isnan(gappy).tolist() == [[True, False, False, False], [False, False, True, True]]
    assert gappy[:, 1].tolist() == [0.0, 0.0]


def test_words_that_are_rare_or_unseen_share_a_column() -> None:
    train = pd.DataFrame({"a": ["x"] * 150 + ["y"] * 149 + ["z"], "b": range(300)})
    encoder = fit_encoder(train)
    x = encoder.encode(pd.DataFrame({"a": ["x", "z", "new"], "b": [0, 0, 0]}))[:, :3]
    assert x.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 1]]
    assert encoder.decode(np.pad(x, ((0, 0), (0, 1))))["a"].tolist() == ["x", "z", "z"]


def test_whole_days_have_no_column_for_the_time_of_day() -> None:
    rows = make_rows()[["date"]].dropna()
    x = fit_encoder(rows).encode(rows)
    assert x.shape[1] == 5  # the day, and the phases of the year and the week
    assert x.std(axis=0).min() > 0.01


def make_record(method: str, auroc: float, table: str = "iris", failure: str = "") -> Record:
    figures = {} if failure else {"auroc": auroc}
    return Record("unusual", table, "swapped", 0, method, figures, failure)


def test_results_are_merged_and_a_failure_replaces_nothing(tmp_path: Path) -> None:
    good, bad = make_record("KNN", 0.7), make_record("KNN", 0, failure="no memory")
    write(tmp_path / "a.json", add_records(Results({}, {"pyod": "1"}), [good]))
    write(tmp_path / "b.json", add_records(Results({}, {}), [bad, make_record("ours", 0.8)]))
    for order in (["a.json", "b.json"], ["b.json", "a.json", "missing.json"]):
        results = read_results(tmp_path / name for name in order)
        assert results.records[good.key] == good
        assert results.has(good.key)
        assert len(results.records) == 2
        assert results.versions == {"pyod": "1"}
    assert not read_results([tmp_path / "b.json"]).has(good.key)


def test_the_report_ranks_methods_over_the_tables_that_all_have() -> None:
    records = [make_record("KNN", 0.6), make_record("ours", 0.8), make_record("ECOD", 0.8)]
    records += [make_record("KNN", 0.9, "cars"), make_record("ours", 0.95, "cars")]
    records += [make_record("ECOD", 0.5, "cars"), make_record("KNN", 0.5, "ames")]
    lines = [" ".join(line.split()) for line in report(add_records(Results({}, {}), records))]
    start = lines.index("AUROC, rows unusual by 'swapped' (higher is better)")
    assert lines[start + 1 : start + 8] == [
        "table ours KNN ECOD",
        "iris 0.800 0.600 0.800",
        "cars 0.950 0.900 0.500",
        "ames - 0.500 -",
        "mean 0.875 0.750 0.650",
        "mean rank 1.25 2.50 2.25",
        "ours wins - 2/2 1/2",
    ]


def test_unknown_names_are_refused() -> None:
    from argparse import ArgumentTypeError

    assert choose(METHODS["gaps"], "ours, mean or mode") == ("ours", "mean or mode")
    with pytest.raises(ArgumentTypeError, match="'knn'"):
        choose(METHODS["unusual"], "knn")
