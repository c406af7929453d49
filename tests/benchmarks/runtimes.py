"""Parity of all operations by runtime: the largest error of golden rows, as a share of its budget.

The default model is trained on MNIST for an epoch. A runtime without float64 has no figure for the
exact form of `score`, which needs it. The table is Markdown, for docs/noise.md.
"""

from collections.abc import Iterator, Mapping

from serving.bundle import open_bundle
from tests.benchmarks.serve.inputs import prepare_inputs
from tests.clients.runtimes import RUNTIMES


def measure() -> Iterator[str]:
    """One line for each operation, in each of its forms."""
    bundle = open_bundle(prepare_inputs("default").bundle)
    found = {name: run(bundle) for name, run in RUNTIMES.items()}
    yield _line("operation", *(f"{name} {result.version}" for name, result in found.items()))
    yield _line("---", *("--:" for _ in found))
    for label, form in bundle.all_forms.items():
        names = [f"{label}.{tensor.name}" for tensor in form.outputs]
        yield _line(label, *(_largest(result.shares, names) for result in found.values()))


def _largest(shares: Mapping[str, float], names: list[str]) -> str:
    if not shares.keys() >= {*names}:
        return "no float64"
    return f"{max(shares[name] for name in names):.0%}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
