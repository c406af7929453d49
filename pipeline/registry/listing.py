"""List the versions of a registered model, with what their tags say of them.

In: the name of a model. Out: a row for each version, the newest first, and a table for a person.
The number of requests does not depend on the number of versions.
"""

import contextlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.registry.audit_log import iso_time
from pipeline.registry.references import find_model
from serving.live_sums import read_sums
from serving.mlflow_store import connect, store_errors

_MAX_RESULTS = 200_000
"""The most versions that the store returns at once."""
_COLUMNS = {
    "version": "version",
    "aliases": "aliases",
    "elbo": "ELBO",
    "nll": "NLL",
    "active_units": "active",
    "parity": "parity",
    "gate": "gate",
    "live_rows": "live",
    "precision": "precision",
    "time": "registered",
    "run_id": "run",
}
_LEFT_OUT = ("run_id", "precision", "time", "live_rows", "nll")
"""Columns that a screen without room does not show, the first one first."""
_NUMBERS = ("version", "elbo", "nll", "active_units", "live_rows")


def list_versions(name: str) -> list[dict[str, Any]]:
    """Return a row for each version; figures that a version was registered without are None.

    Raises:
        UsageRefused: there is no such model.
    """
    client = connect()
    model = find_model(client, name)
    aliases: dict[str, list[str]] = defaultdict(list)
    for alias, version in sorted(model.aliases.items()):
        aliases[str(version)].append(alias)
    with store_errors():
        found = client.search_model_versions(f"name='{name}'", max_results=_MAX_RESULTS)
    rows = [_row(version, aliases[str(version.version)]) for version in found]
    return sorted(rows, key=lambda row: int(row["version"]), reverse=True)


def render_table(rows: Sequence[Mapping[str, Any]], width: int | None = None) -> str:
    """Return the rows as lines of text with aligned columns, as many as fit into `width`."""
    lines = [dict(_COLUMNS), *({key: _cell(key, row) for key in _COLUMNS} for row in rows)]
    widths = {key: max(len(line[key]) for line in lines) for key in _COLUMNS}
    for key in _LEFT_OUT:
        if width is not None and sum(widths.values()) + 2 * (len(widths) - 1) > width:
            del widths[key]
    return "\n".join(
        "  ".join(
            line[key].rjust(width) if key in _NUMBERS else line[key].ljust(width)
            for key, width in widths.items()
        ).rstrip()
        for line in lines
    )


def _row(version: Any, aliases: list[str]) -> dict[str, Any]:
    tags = version.tags
    units, latents = _number(tags.get("active_units")), _number(tags.get("latents"))
    return {
        "version": str(version.version),
        "aliases": aliases,
        "elbo": _number(tags.get("elbo")),
        "nll": _number(tags.get("nll")),
        "active_units": None if units is None else int(units),
        "latent_dim": None if latents is None else int(latents),
        "parity": ", ".join(_verdicts(tags)) or None,
        "gate": tags.get("gate.status"),
        "live_rows": sum(sums.rows for sums in read_sums(tags)) or None,
        "precision": tags.get("precision"),
        "time": iso_time(version.creation_timestamp),
        "run_id": tags.get("run.id") or version.run_id,
        "data": tags.get("data.source"),
    }


def _verdicts(tags: Mapping[str, str]) -> Iterator[str]:
    """Yield the verdict sealed into the version, and those that `vae check` has added since."""
    if status := tags.get("parity.status"):
        yield status
    for tag, text in sorted(tags.items()):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            if tag.startswith("parity.") and tag != "parity.status":
                yield f"{tag.removeprefix('parity.')} {json.loads(text)['verdict']}"


def _number(text: str | None) -> float | None:
    """Read a tag, which anybody may have written."""
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _cell(key: str, row: Mapping[str, Any]) -> str:
    value = row[key]
    if value is None or value == []:
        return "-"
    if key == "aliases":
        return ", ".join(value)
    if key == "live_rows":
        return f"{value:,}"
    if key in ("elbo", "nll"):
        return f"{value:.2f}"
    if key == "active_units":
        return f"{value} of {row['latent_dim'] or '?'}"
    return str(value)[:19].replace("T", " ") if key == "time" else str(value)
