"""Measure models of tables beside their peers: `python -m tests.benchmarks tables --help`."""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path

from tests.benchmarks.cache import CACHE
from tests.benchmarks.tables.catalog import TABLES, describe
from tests.benchmarks.tables.gaps import fill_iteratively, fill_simple
from tests.benchmarks.tables.ours import Ours
from tests.benchmarks.tables.parts import (
    kinds_of,
    measure_gaps,
    measure_synthetic,
    measure_unusual,
)
from tests.benchmarks.tables.records import (
    PARTS,
    Part,
    Record,
    Results,
    add_records,
    read_results,
    write_results,
)
from tests.benchmarks.tables.report import REAL, report
from tests.benchmarks.tables.workers import (
    DETECTORS,
    SYNTHESIZERS,
    PeerFailed,
    Worker,
    detect_with,
    sample_with,
    start_worker,
)

Measure = Callable[[str, int], Sequence[Record]]
OURS = "ours"
METHODS: dict[Part, tuple[str, ...]] = {
    "unusual": (OURS, *DETECTORS),
    "gaps": (OURS, "mean or mode", "IterativeImputer"),
    "synthetic": (OURS, *SYNTHESIZERS, REAL),
}


def main(words: Sequence[str]) -> None:
    """Measure what the options ask for and the file does not have, then print all of the file."""
    options = read_options(words)
    if options.list:
        print(describe())
        return
    results = read_results([*options.merge, options.out])
    if not options.show:
        with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
            worker = stack.enter_context(start_worker(options.out.with_suffix(".log")))
            own = {"our scikit-learn": version("scikit-learn"), "our pandas": version("pandas")}
            versions = {**results.versions, **own, **worker.ask("versions")}
            results = Results(results.records, versions)
            ours = Ours(Path(temporary), tuple(options.settings.split()))
            for part, table, seed, method in plan(options):
                wanted = expect(part, table, seed, method)
                if all(results.has(record.key) for record in wanted):
                    continue
                measure = bind(part, method, worker, ours)
                records = attempt(measure, wanted, table, seed)
                results = add_records(results, records)
                write_results(options.out, results)
                for record in records:
                    print(progress(record), file=sys.stderr, flush=True)
    write_results(options.out, results)
    for text in report(results):
        print(text)


def read_options(words: Sequence[str]) -> argparse.Namespace:
    """Return the options; a table, part or method that is not known is refused."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks tables", description=__doc__)
    methods = tuple(dict.fromkeys(name for names in METHODS.values() for name in names))
    for name, choices in (("tables", TABLES), ("parts", PARTS), ("methods", methods)):
        parser.add_argument(
            f"--{name}",
            type=partial(choose, tuple(choices)),
            default=tuple(choices),
            help=f"names with commas, of: {', '.join(choices)}",
        )
    parser.add_argument("--seeds", default=(0, 1, 2), help="numbers with commas", type=numbers)
    parser.add_argument(
        "--out", type=Path, default=CACHE / "tables.json", help="JSON of raw results, kept"
    )
    parser.add_argument(
        "--merge", type=Path, nargs="+", default=(), help="more files of raw results to add to it"
    )
    parser.add_argument("--show", action="store_true", help="print the results, measure nothing")
    parser.add_argument("--list", action="store_true", help="print the tables and their licences")
    parser.add_argument("--settings", default="", help="options of `vae run`, in one word")
    return parser.parse_args(words)


def choose(allowed: Sequence[str], text: str) -> tuple[str, ...]:
    """Return names that are separated by commas."""
    names = tuple(name.strip() for name in text.split(","))
    if unknown := [name for name in names if name not in allowed]:
        raise argparse.ArgumentTypeError(
            f"must be of {', '.join(allowed)}; got {', '.join(map(repr, unknown))}"
        )
    return names


def numbers(text: str) -> tuple[int, ...]:
    """Return numbers that are separated by commas."""
    return tuple(int(number) for number in text.split(","))


def plan(options: argparse.Namespace) -> Iterator[tuple[Part, str, int, str]]:
    """Yield all measurements: every table with one seed before the next seed."""
    for part in options.parts:
        for seed in options.seeds:
            for table in options.tables:
                for method in METHODS[part]:
                    if method in options.methods:
                        yield part, table, seed, method


def expect(part: Part, table: str, seed: int, method: str) -> Sequence[Record]:
    """Return the records that a measurement makes, without figures."""
    kinds = kinds_of(table) if part == "unusual" else ("",)
    return [Record(part, table, kind, seed, method) for kind in kinds]


def bind(part: Part, method: str, worker: Worker, ours: Ours) -> Measure:
    """Return the measurement of a method, as a function of a table and a seed."""
    if part == "unusual":
        scorer = ours.score if method == OURS else detect_with(worker, method)
        return lambda table, seed: measure_unusual(table, seed, method, scorer)
    if part == "gaps":
        fills = {"mean or mode": fill_simple, "IterativeImputer": fill_iteratively}
        imputer = ours.fill if method == OURS else fills[method]
        return lambda table, seed: measure_gaps(table, seed, method, imputer)
    if method == REAL:
        return lambda table, seed: measure_synthetic(
            table, seed, method, lambda train, count, seed: train
        )
    sampler = ours.sample if method == OURS else sample_with(worker, method)
    return lambda table, seed: measure_synthetic(table, seed, method, sampler)


def attempt(measure: Measure, wanted: Sequence[Record], table: str, seed: int) -> Sequence[Record]:
    """Return the records, or their failure in their place."""
    try:
        return measure(table, seed)
    except PeerFailed as err:
        return [
            Record(record.part, table, record.kind, seed, record.method, failure=str(err))
            for record in wanted
        ]


def progress(record: Record) -> str:
    """Return one line on a record."""
    named = [f"{name} {value:.3f}" for name, value in record.figures.items() if " " not in name]
    return " ".join(filter(None, [*record.key, *named, record.failure]))


if __name__ == "__main__":
    main(sys.argv[1:])
