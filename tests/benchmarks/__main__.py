"""Speed, each beside the thing to beat, in one run: `make bench`.

Machines are noisy: what is measured side by side takes turns, and the best of each is compared.
Every line is a ratio with what it should be, or a figure of a real use; nothing here is a test.
`parity` is a table: which rule catches which corruption, and whether clean models pass; `runtimes`
is one too: how near other runtimes come to torch, as shares of what is allowed.
`tables` is a benchmark of its own with options, beside peers in their own environment; it is not
part of the others, since it takes most of an hour. Nor are `live`, what must hold of live rows, and
`scale`, what must hold of data larger than memory.
"""

import sys
from collections.abc import Callable, Iterator

from serving.cpu import limit_spinning

limit_spinning()

from tests.benchmarks import (  # noqa: E402  after the spin limit
    anomaly,
    batch,
    batch_spark,
    engine,
    mixed,
    noise,
    parity,
    precision,
    runtimes,
    startup,
    tracking,
    training,
    wide,
)

BENCHMARKS: dict[str, Callable[[], Iterator[object]]] = {
    "startup": startup.measure,
    "training": training.measure,
    "tracking": tracking.measure,
    "engine": engine.measure,
    "noise": noise.measure,
    "precision": precision.measure,
    "parity": parity.measure,
    "runtimes": runtimes.measure,
    "batch": batch.measure,
    "batch_spark": batch_spark.measure,
    "mixed": mixed.measure,
    "anomaly": anomaly.measure,
    "wide": wide.measure,
}


def main(names: list[str]) -> None:
    """Run the named benchmarks, or all but `tables`, `live` and `scale`."""
    if names[:1] == ["tables"]:
        from tests.benchmarks.tables.__main__ import main as measure_tables

        measure_tables(names[1:])
        return
    if names[:1] == ["live"]:
        from tests.benchmarks.live.__main__ import main as measure_live

        measure_live(names[1:])
        return
    if names[:1] == ["scale"]:
        from tests.benchmarks.scale.__main__ import main as measure_scale

        measure_scale(names[1:])
        return
    print(f"{'what':<58} {'measured':>10}  {'beside':>10}  {'ratio':>7}  goal")
    for name in names or BENCHMARKS:
        for row in BENCHMARKS[name]():
            print(row, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
