"""Measure models of tables beside their peers: `python -m tests.benchmarks tables --help`."""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.metadata import version
from itertools import product
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
from tests.benchmarks.tables.plugs import Imputer, Sampler, Scorer
from tests.benchmarks.tables.records import (
    PARTS,
    Part,
    Record,
    Results,
    add_records,
    read_results,
    write_results,
)
from tests.benchmarks.tables.report import OURS, REAL, report
from tests.benchmarks.tables.workers import (
    DETECTORS,
    SYNTHESIZERS,
    PeerFailed,
    Worker,
    detect_with,
    sample_with,
    start_worker,
)

Measure = Callable[[str, int, str], Sequence[Record]]
"""(table, seed, method) -> records."""
IMPUTERS: Mapping[str, Imputer] = {
    "mean or mode": fill_simple,
    "IterativeImputer": fill_iteratively,
}
METHODS: Mapping[Part, tuple[str, ...]] = {
    "unusual": (OURS, *DETECTORS),
    "gaps": (OURS, *IMPUTERS),
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
            stack.enter_context(limit_threads())
            worker = None
            if not set(options.methods).isdisjoint((*DETECTORS, *SYNTHESIZERS)):
                worker = stack.enter_context(start_worker(options.out.with_suffix(".log")))
            versions = {**results.versions, **read_versions(worker)}
            results = Results(results.records, versions)
            ours = Ours(Path(temporary), tuple(options.settings.split()))
            for measure, wanted in plan(options, find_measures(worker, ours)):
                if all(results.has(record.key) for record in wanted):
                    continue
                records = attempt(measure, wanted)
                results = add_records(results, records)
                write_results(options.out, results)
                for record in records:
                    print(progress(record), file=sys.stderr, flush=True)
    write_results(options.out, results)
    for text in report(results):
        print(text)


def limit_threads() -> AbstractContextManager[object]:
    """Return a context in which scikit-learn and numpy compute with one thread."""
    import_module("sklearn.ensemble")  # loads the libraries that are limited
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[object] = threadpool_limits(1)
    return limits


def read_versions(worker: Worker | None) -> Mapping[str, str]:
    """Return the versions of what measures here, and of the peers."""
    ours = {f"our {name}": version(name) for name in ("vae-pipeline", "scikit-learn", "pandas")}
    return {**ours, **(worker.ask("versions") if worker else {})}


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
    parser.add_argument("--settings", default="", help="options of `vae train`, in one word")
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


def plan(
    options: argparse.Namespace, measures: Mapping[tuple[Part, str], Measure]
) -> Iterator[tuple[Callable[[], Sequence[Record]], Sequence[Record]]]:
    """Yield all measurements and the keys of what they measure, one seed after the other."""
    for part, seed, table in product(options.parts, options.seeds, options.tables):
        kinds = kinds_of(table) if part == "unusual" else ("",)
        for method in METHODS[part]:
            if method in options.methods:
                wanted = [Record(part, table, kind, seed, method) for kind in kinds]
                yield partial(measures[part, method], table, seed, method), wanted


def find_measures(worker: Worker | None, ours: Ours) -> Mapping[tuple[Part, str], Measure]:
    """Return the measurements of all methods; those of peers only if their process runs."""
    scorers: dict[str, Scorer] = {OURS: ours.score}
    imputers: dict[str, Imputer] = {OURS: ours.fill, **IMPUTERS}
    samplers: dict[str, Sampler] = {OURS: ours.sample, REAL: lambda train, count, seed: train}
    if worker:
        scorers |= {name: detect_with(worker, name) for name in DETECTORS}
        samplers |= {name: sample_with(worker, name) for name in SYNTHESIZERS}
    measures: dict[tuple[Part, str], Measure] = {}
    for name, score in scorers.items():
        measures["unusual", name] = partial(measure_unusual, score)
    for name, fill in imputers.items():
        measures["gaps", name] = partial(measure_gaps, fill)
    for name, sample in samplers.items():
        measures["synthetic", name] = partial(measure_synthetic, sample)
    return measures


def attempt(measure: Callable[[], Sequence[Record]], wanted: Sequence[Record]) -> Sequence[Record]:
    """Return the records, or their failure in their place."""
    try:
        return measure()
    except PeerFailed as err:
        return [replace(record, failure=str(err)) for record in wanted]


def progress(record: Record) -> str:
    """Return one line on a record."""
    named = [f"{name} {value:.3f}" for name, value in record.figures.items() if " " not in name]
    return " ".join(filter(None, [*record.key, *named, record.failure]))


if __name__ == "__main__":
    main(sys.argv[1:])
