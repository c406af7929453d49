"""Raw results: one record for each method on one table with one seed, kept as JSON.

Parts of a benchmark can run apart, on several machines or days: what is in the file already is not
measured again, and files can be merged.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

Part = Literal["unusual", "gaps", "synthetic"]

PARTS: tuple[Part, ...] = ("unusual", "gaps", "synthetic")


@dataclass(frozen=True, slots=True)
class Record:
    """Figures by name; `kind` is that of the unusual rows, or empty. A failure has its message."""

    part: Part
    table: str
    kind: str
    seed: int
    method: str
    figures: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """Return what tells a measurement from others."""
        return (self.part, self.table, self.kind, str(self.seed), self.method)


@dataclass(frozen=True, slots=True)
class Results:
    """Records, and the versions of the packages that made them."""

    records: Mapping[tuple[str, ...], Record]
    versions: Mapping[str, str]

    def has(self, record_key: tuple[str, ...]) -> bool:
        """Return whether a measurement is there and did not fail."""
        return record_key in self.records and not self.records[record_key].failure


def read_results(paths: Iterable[Path]) -> Results:
    """Return the records of all files that exist; a later file counts where two have one.

    A failure never replaces a measurement.
    """
    results = Results({}, {})
    for path in paths:
        if path.exists():
            content = json.loads(path.read_text())
            results = Results(results.records, {**results.versions, **content["versions"]})
            results = add_records(results, [_read(values) for values in content["records"]])
    return results


def write_results(path: Path, results: Results) -> None:
    """Write all records, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [asdict(record) for record in results.records.values()]
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"versions": dict(results.versions), "records": records}, indent=1))
    part.replace(path)


def add_records(results: Results, records: Sequence[Record]) -> Results:
    """Return results with more records; a failure never replaces a measurement."""
    new = {record.key: record for record in records if not record.failure}
    failed = {record.key: record for record in records if record.failure}
    return Results({**failed, **results.records, **new}, results.versions)


def _read(values: Mapping[str, object]) -> Record:
    return Record(**values)  # type: ignore[arg-type]  # written by write_results
