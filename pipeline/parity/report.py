"""The report of a parity check: every comparison, the verdict, a table for a person, and JSON.

A report that compared nothing has failed.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import numpy as np

from pipeline.parity.comparison_result import (
    HISTOGRAM_EDGES,
    Comparison,
    ElboParity,
    Fault,
    short_provider,
)
from pipeline.parity.quantization_loss import QuantizationLoss
from serving.errors import VerificationFailed

_Row = TypeVar("_Row", Comparison, ElboParity)

_KEYS = {"tolerance": "budget", "environment": "machine", "quantization_loss": "reduction"}
"""Words in the names of fields, and their replacements in the keys of `parity.json`, schema 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Where a graph first differs from the model: the output, and the node in execution order."""

    graph: str
    output: str
    """The first output that differs, as operation.output; empty if it is within the noise."""
    node: str
    op_type: str
    value: str
    """Name of the node's output."""
    detail: str

    def line(self) -> str:
        """Describe the place for a person."""
        output = f"first output that differs: {self.output}; " if self.output else ""
        node = f"{self.node} ({self.op_type})" if self.op_type else self.node
        return f"{output}first node: {node} of {self.graph}: {self.detail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """Every comparison that was made, of which files and in which environment."""

    precision: str
    """Precision of the bundle. If it is reduced, torch ran with the reduced weights."""
    devices: tuple[str, ...]
    """The devices that the verdict is about."""
    threads: int
    comparisons: tuple[Comparison, ...]
    elbo: tuple[ElboParity, ...]
    graph_faults: tuple[Fault, ...]
    """What is wrong with the graphs and their weights, found without running them."""
    placement: Mapping[str, Mapping[str, int]]
    """For each device, the number of nodes that each provider was given."""
    files: Mapping[str, str]
    """SHA-256 of the graphs and weights that were compared."""
    environment: Mapping[str, str]
    """What results can depend on."""
    versions: Mapping[str, str]
    """Versions of the libraries that prepare and judge the numbers."""
    quantization_loss: QuantizationLoss | None = None
    """A bundle of reduced precision, compared with the weights as they were trained."""
    first_difference: Difference | None = None

    @property
    def passed(self) -> bool:
        """Whether something was compared on every device, and nothing failed."""
        judged = self.precision == "float32" or self.quantization_loss is not None
        compared = bool(self.devices and self.comparisons and self.elbo)
        return compared and judged and not self.faults()

    @property
    def processor(self) -> str:
        """The processor of the environment."""
        return self.environment.get("processor") or "an unknown processor"

    def faults(self) -> list[Fault]:
        """List what failed: graphs first, then comparisons in their order, then the bounds."""
        loss = self.quantization_loss
        return [
            *self.graph_faults,
            *(row.fault() for row in self.comparisons if not row.passed),
            *(Fault("elbo", row.line()) for row in self.elbo if not row.passed),
            *([Fault("reduction", loss.line())] if loss and not loss.passed else ()),
        ]

    def worst(self) -> list[Comparison]:
        """Of each provider, output and rule, the comparison that used most of its tolerance.

        Runs with TF32 are listed separately: their wide tolerance would hide how close float32
        comes on the same device.
        """
        worst: dict[tuple[str, bool, str, str, str], Comparison] = {}
        for row in self.comparisons:
            key = (row.provider, row.tf32, row.operation, row.output, row.rule)
            if key not in worst or row.share > worst[key].share:
                worst[key] = row
        return list(worst.values())

    def table(self) -> str:
        """Render the worst comparison of each output, what failed, and the verdict."""
        shown = [row for row in self.worst() if row.rule == "values" or not row.passed]
        width = max((len(row.name) for row in shown), default=0)
        head = f"{'output':<{width}} {'on':<9} {'rows':<9} {'batch':>5} {'level':<8} {'error':>8} "
        lines = [f"  {head}{'allowed':>8} {'used':>4}"]
        lines += [_table_row(row, width) for row in shown]
        lines += [f"  {row.line()}" for row in self.elbo]
        if self.quantization_loss:
            lines += [f"  {line}" for line in self.quantization_loss.lines()]
        faults = self.faults()
        lines += [f"  {fault}" for fault in faults[:10]]
        if len(faults) > 10:
            lines.append(f"  and {len(faults) - 10} more: see parity.json")
        if self.first_difference:
            lines.append(f"  {self.first_difference.line()}")
        return "\n".join([*lines, f"  {self.verdict()}"])

    def verdict(self) -> str:
        """Say whether it passed, and how much was compared."""
        verdict = "passed" if self.passed else "FAILED"
        count = f"{len(self.comparisons)} comparisons on {' and '.join(self.devices)}"
        return f"parity {verdict}: {count}"

    def to_json(self) -> dict[str, Any]:
        """Return the report as `parity.json` keeps it; a number that is not finite is null."""
        content: dict[str, Any] = {
            "verdict": "passed" if self.passed else "failed",
            **asdict(self),
            "comparisons": [{**asdict(row), "passed": row.passed} for row in self.comparisons],
            "elbo": [{**asdict(row), "passed": row.passed} for row in self.elbo],
            "faults": [asdict(fault) for fault in self.faults()],
            "histogram_edges": HISTOGRAM_EDGES,
        }
        if self.quantization_loss:
            content["quantization_loss"]["passed"] = self.quantization_loss.passed
        return dict(_rename(content, _KEYS))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "ParityReport":
        """Read what `to_json` wrote; null becomes NaN, and the verdict is judged again.

        Raises:
            VerificationFailed: a key is missing, or a value is of another kind.
        """
        try:
            known = _rename(content, {key: name for name, key in _KEYS.items()})
            loss, first = known["quantization_loss"], known["first_difference"]
            return cls(
                precision=known["precision"],
                devices=tuple(known["devices"]),
                threads=known["threads"],
                comparisons=tuple(_read(Comparison, row) for row in known["comparisons"]),
                elbo=tuple(_read(ElboParity, row) for row in known["elbo"]),
                graph_faults=tuple(Fault(**fault) for fault in known["graph_faults"]),
                placement=known["placement"],
                files=known["files"],
                environment=known["environment"],
                versions=known["versions"],
                quantization_loss=QuantizationLoss.from_json(loss) if loss else None,
                first_difference=Difference(**first) if first else None,
            )
        except (KeyError, TypeError, AttributeError) as err:
            raise VerificationFailed(f"the parity report cannot be read: {err!r}") from err


def _rename(value: Any, words: Mapping[str, str]) -> Any:
    """Replace words in the keys of nested JSON, and numbers that are not finite by null."""
    if isinstance(value, Mapping):
        renamed = {}
        for key, item in value.items():
            for word, other in words.items():
                key = key.replace(word, other)
            renamed[key] = _rename(item, words)
        return renamed
    if isinstance(value, list | tuple):
        return [_rename(item, words) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _read(kind: type[_Row], content: Mapping[str, Any]) -> _Row:
    """Build a row; a number that is null was not finite.

    Raises:
        TypeError: an error or a tolerance is not a number, or is negative.
    """
    values = {name: value for name, value in content.items() if name != "passed"}
    for name in (item.name for item in fields(kind) if item.type is float):
        value = np.nan if values[name] is None else values[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise TypeError(f"{name} must be a number of at least 0, got {value!r}")
        values[name] = float(value)
    if "histogram" in values:
        values["histogram"] = tuple(values["histogram"])
    return kind(**values)


def _table_row(row: Comparison, width: int) -> str:
    run = short_provider(row).replace(" with", "")
    failed = "" if row.passed else f"FAILED {row.rule}"
    return (
        f"  {row.name:<{width}} {run:<9} {row.rows:<9} {row.batch:>5} {row.level:<8} "
        f"{row.max_error:>8.2e} {row.max_tolerance:>8.2e} {row.share:>4.0%}  {failed}".rstrip()
    )
