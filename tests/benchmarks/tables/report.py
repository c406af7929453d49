"""Tables of text from raw results: figures of a table are means over its seeds."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tests.benchmarks.tables.anomalies import KINDS, TEST_ROWS, TRAIN_ROWS, UNUSUAL_SHARE
from tests.benchmarks.tables.metrics import FDR, TOP_SHARE, rank_methods
from tests.benchmarks.tables.records import Part, Record, Results

Cells = Mapping[str, Mapping[str, float]]
"""A figure by table and method."""
OURS = "ours"
REAL = "real rows"
"""The method whose synthetic rows are the training rows: what sampling alone leaves."""
BY = "by "
"""What figures of other scores of a method begin with."""
SIGNIFICANT = 0.05
"""The level at which a KS test counts as rejected."""
FEW = 10
"""Flagged rows that a table must have to count as the worst one."""


def report(results: Results) -> Iterator[str]:
    """Yield the lines of all parts that there are results of."""
    yield from wrap([f"{name} {number}" for name, number in results.versions.items()])
    yield (
        f"at most {TRAIN_ROWS:,} rows to train on and {TEST_ROWS:,} to test, of which a share of "
        f"{UNUSUAL_SHARE} is unusual; means over seeds"
    )
    records = [record for record in results.records.values() if not record.failure]
    for kind in KINDS:
        for figure, title in (("auroc", "AUROC"), ("ap", "average precision")):
            cells = collect(records, "unusual", figure, kind)
            yield from show_cells(f"{title}, rows unusual by {kind!r}", cells)
    yield from show_choices(records)
    yield from show_naming(records)
    yield from show_calibration(records)
    title = "error of filled cells, 20 % hidden"
    yield from show_cells(title, collect(records, "gaps", "error"), higher=False)
    for figure, title, higher in (
        ("one_way", "distance of columns, synthetic to real", False),
        ("two_way", "distance of pairs of columns, synthetic to real", False),
        ("told_apart", "AUROC that tells synthetic from real rows", False),
        ("useful", "AUROC on real rows of trees fitted on synthetic ones", True),
    ):
        yield from show_cells(title, collect(records, "synthetic", figure), higher)
    yield from show_seconds(records)
    failures = [record for record in results.records.values() if record.failure]
    for record in failures:
        yield f"failed: {' '.join(filter(None, record.key))}: {record.failure}"


def collect(records: Sequence[Record], part: Part, figure: str, kind: str = "") -> Cells:
    """Return a figure's mean over seeds, by table and method."""
    values: dict[str, dict[str, list[float]]] = {}
    for record in records:
        if (record.part, record.kind) == (part, kind) and figure in record.figures:
            row = values.setdefault(record.table, {})
            row.setdefault(record.method, []).append(record.figures[figure])
    return {
        table: {method: float(np.mean(numbers)) for method, numbers in row.items()}
        for table, row in values.items()
    }


def show_cells(title: str, cells: Cells, higher: bool = True) -> Iterator[str]:
    """Yield a row for each table, the mean, the mean rank, and the first method's wins.

    The last three are over the tables that every method has. Ours is the first, where it was
    measured; a win is a table on which it is better than the method of the column.
    """
    if not cells:
        return
    known = dict.fromkeys(method for row in cells.values() for method in row)
    methods = sorted(known, key=lambda name: (name == REAL, name != OURS))
    yield ""
    yield f"{title} ({'higher' if higher else 'lower'} is better)"
    yield head("table", methods)
    for table, row in cells.items():
        yield line(table, [row.get(method) for method in methods])
    whole = {table: row for table, row in cells.items() if set(row) == set(methods)}
    if not whole:
        return
    yield line("mean", [float(np.mean([row[name] for row in whole.values()])) for name in methods])
    ranked = [name for name in methods if name != REAL]
    ranks = [
        rank_methods({name: row[name] for name in ranked}, higher=higher) for row in whole.values()
    ]
    means = {name: float(np.mean([row[name] for row in ranks])) for name in ranked}
    yield line("mean rank", [means.get(name) for name in methods], digits=2)
    if len(ranked) > 1:
        sign, first = 1 if higher else -1, ranked[0]
        wins: list[float | None] = [None]
        for other in ranked[1:]:
            wins.append(sum(sign * (row[first] - row[other]) > 0 for row in whole.values()))
        yield line(f"{first} wins", wins, digits=0, unit=f"/{len(whole)}")


def show_choices(records: Sequence[Record]) -> Iterator[str]:
    """Yield the mean AUROC of all scores that one method could rank rows by."""
    rows = [record for record in records if any(name.startswith(BY) for name in record.figures)]
    for method in dict.fromkeys(record.method for record in rows):
        mine = [record for record in rows if record.method == method]
        figures = [name for name in mine[0].figures if name.startswith(BY)]
        yield ""
        yield f"AUROC of {method} by other scores, means over tables"
        yield head("rows unusual by", [name.removeprefix(BY) for name in figures])
        for kind in KINDS:
            parts = [collect(mine, "unusual", figure, kind) for figure in figures]
            if parts[0]:
                means = [float(np.mean([row[method] for row in part.values()])) for part in parts]
                yield line(kind, means)


def show_naming(records: Sequence[Record]) -> Iterator[str]:
    """Yield how often the changed column of flagged rows comes first, over all tables and seeds."""
    rows = [record for record in records if "chance" in record.figures]
    for way, title in (
        ("top", f"rows with the top {TOP_SHARE:.0%} of scores"),
        ("fdr", f"rows flagged at a false discovery rate of {FDR[0]}"),
    ):
        some = [record for record in rows if f"{way}_changed" in record.figures]
        if not some:
            continue
        yield ""
        yield f"the changed column comes first, {title} (by chance: 1 / columns)"
        yield f"{'method':<20}{'changed':>9}{'named':>9}{'share':>9}{'chance':>9}{'worst':>22}"
        for method in dict.fromkeys(record.method for record in some):
            yield name_line(method, [record for record in some if record.method == method], way)


def name_line(method: str, records: Sequence[Record], way: str) -> str:
    """Return the line of one method."""
    counts: dict[str, list[float]] = {}
    chance = 0.0
    for record in records:
        changed, named = (record.figures[f"{way}_{name}"] for name in ("changed", "named"))
        total = counts.setdefault(record.table, [0.0, 0.0])
        total[0], total[1] = total[0] + changed, total[1] + named
        chance += changed * record.figures["chance"]
    changed, named = np.sum(list(counts.values()), axis=0)
    if not changed:
        return f"{method:<20}{0:>9}"
    shares = {table: right / count for table, (count, right) in counts.items() if count >= FEW}
    worst = min(shares, key=lambda table: shares[table], default="")
    shown = f"{worst} {shares[worst]:.1%}" if worst else "-"
    return (
        f"{method:<20}{changed:>9.0f}{named:>9.0f}{named / changed:>9.1%}{chance / changed:>9.1%}"
        f"{shown:>22}"
    )


def show_calibration(records: Sequence[Record]) -> Iterator[str]:
    """Yield how uniform p-values are, and false discoveries, of methods that give p-values."""
    rows = [record for record in records if "ks" in record.figures]
    for method in dict.fromkeys(record.method for record in rows):
        mine = [record for record in rows if record.method == method]
        yield ""
        # rows of the kind "changed" have the same clean rows as those of the kind "swapped"
        tests = [record.figures["ks_p"] for record in mine if record.kind != "changed"]
        rejected = np.mean([p_value < SIGNIFICANT for p_value in tests])
        yield f"p-values of {method}, means over seeds: KS of clean and held-out rows, FDP, power"
        yield (
            f"{rejected:.1%} of {len(tests)} KS tests reject at {SIGNIFICANT}; by chance alone "
            f"{SIGNIFICANT:.1%} do"
        )
        figures = ["ks", "ks_p", *(f"{name}_{fdr}" for fdr in FDR for name in ("fdp", "power"))]
        yield head("table", figures)
        for kind in KINDS:
            tables = dict.fromkeys(record.table for record in mine if record.kind == kind)
            parts = [collect(mine, "unusual", figure, kind) for figure in figures]
            for table in tables:
                yield line(f"{table} {kind}", [part[table][method] for part in parts])
        means = [float(np.mean([record.figures[name] for record in mine])) for name in figures]
        yield line("mean", means)


def show_seconds(records: Sequence[Record]) -> Iterator[str]:
    """Yield the time that each method took, in all."""
    yield ""
    yield "seconds in all"
    for part in dict.fromkeys(record.part for record in records):
        totals: dict[str, float] = {}
        for record in records:
            if record.part == part:
                seconds = record.figures.get("seconds", 0.0)
                totals[record.method] = totals.get(record.method, 0.0) + seconds
        yield f"{part}: " + ", ".join(f"{name} {total:.0f}" for name, total in totals.items())


def head(first: str, names: Sequence[str]) -> str:
    """Return a line of names."""
    return f"{first:<20}" + "".join(f"{name:>17}" for name in names)


def line(first: str, numbers: Sequence[float | None], digits: int = 3, unit: str = "") -> str:
    """Return a line of numbers; what is missing is a dash."""
    shown = ["-" if number is None else f"{number:.{digits}f}{unit}" for number in numbers]
    return f"{first:<20}" + "".join(f"{text:>17}" for text in shown)


def wrap(words: Sequence[str], width: int = 100) -> Iterator[str]:
    """Yield lines of words with commas."""
    text = ""
    for word in words:
        if text and len(text) + len(word) + 2 > width:
            yield f"{text},"
            text = word
        else:
            text = f"{text}, {word}" if text else word
    if text:
        yield text
