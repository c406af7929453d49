"""Measure what must hold of large data: `python -m tests.benchmarks scale [NAME ...]`.

Each line says what was measured and what it should be; nothing here is a test.
"""

import sys
from collections.abc import Callable, Iterator

from serving.cpu import limit_spinning

limit_spinning()

from tests.benchmarks.scale import answers, memory, parity, processes, resume, throughput  # noqa: E402  after the spin limit

MEASUREMENTS: dict[str, Callable[[], Iterator[object]]] = {
    "memory": memory.measure,
    "throughput": throughput.measure,
    "answers": answers.measure,
    "resume": resume.measure,
    "processes": processes.measure,
    "parity": parity.measure,
}


def main(names: list[str]) -> None:
    """Run the named measurements, or all."""
    if unknown := [name for name in names if name not in MEASUREMENTS]:
        print(
            f"scale measures {', '.join(MEASUREMENTS)}, got {', '.join(unknown)}", file=sys.stderr
        )
        sys.exit(2)
    for name in names or MEASUREMENTS:
        for line in MEASUREMENTS[name]():
            print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
