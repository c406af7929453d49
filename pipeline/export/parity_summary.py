"""The worst comparisons of a parity report, and the share of the tolerance that each used."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

Row = Mapping[str, Any]


def used_share(row: Row) -> float:
    """The part of the budget that a comparison used, the larger of the two; infinite for NaN."""
    pairs = ((row["max_error"], row["max_budget"]), (row["rms_error"], row["rms_budget"]))
    return max(_share(error, budget) for error, budget in pairs)


def _share(error: float | None, budget: float | None) -> float:
    if error is None or budget is None:
        return math.inf
    if budget == 0:
        return 0.0 if error == 0 else math.inf
    return error / budget


def worst_comparisons(report: Mapping[str, Any]) -> Iterator[Row]:
    """Of each output and provider, the comparison with float64 that used most of its budget."""
    worst: dict[tuple[str, str], Row] = {}
    for row in report["comparisons"]:
        if row["rule"] != "values":
            continue
        key = (f"{row['operation']}.{row['output']}", f"{row['provider']} {row['tf32']}")
        if key not in worst or used_share(row) > used_share(worst[key]):
            worst[key] = row
    yield from worst.values()


def describe_share(row: Row) -> str:
    """The part of the budget that a comparison used, for a person."""
    share = used_share(row)
    return f"{share:.0%}" if share < 100 else "far more"
