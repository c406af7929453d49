"""The audit: every decision on a registered model as a run in the experiment `NAME-promotions`.

In: a `Decision`. Out: a run whose tags say what was decided, when and why, with the whole decision
as `decision.json`; and `history` and `champion_at`, which read the runs. A record is opened before
anything moves. One that stays `unfinished` is of a process that died before it moved anything.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pipeline.config import PromoteConfig
from pipeline.registry.gate import Judgement
from pipeline.registry.ledger import Action
from pipeline.registry.versions import CHAMPION
from pipeline.tracking import open_experiment
from serving.errors import UsageRefused
from serving.mlflow_store import alias_version, connect, store_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

Outcome = Literal["promoted", "refused", "stale", "accepted", "deleted"]

_SHOWN = ("time", "action", "version", "previous", "decision", "moved_at", "operator", "reasons")
_NOBODY = "none"
"""In a tag: there was no champion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What was decided, about which versions, and why."""

    name: str
    action: Action
    version: str
    previous: str | None
    """The champion when the decision was made."""
    decision: Outcome
    """`accepted`: the gate is passed, and nothing moved yet."""
    reasons: tuple[str, ...]
    judgement: Judgement | None = None
    gate: PromoteConfig | None = None
    force: str | None = None
    """Why the gate's judgement was to be overridden."""
    test_sha256: str | None = None
    """Digest of the rows that both versions were scored on."""
    time: str = ""
    operator: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenure:
    """Which version was champion at a time, as far as the audit knows."""

    version: str | None
    since: str
    """When it was moved there or, if that was by hand, first seen there."""
    certain: bool
    """Whether the next record, or the alias now, agrees that nobody moved it by hand since."""


@dataclass(frozen=True, slots=True)
class _Sighting:
    """The champion at a time; `moved` where it became champion just then."""

    time: datetime
    version: str | None
    moved: bool = False


def open_record(client: "MlflowClient", decision: Decision) -> str:
    """Open the record of a decision that is not made yet; return the run's id."""
    experiment = open_experiment(client, audit_experiment(decision.name))
    tags = {
        "action": decision.action,
        "version": decision.version,
        "previous": decision.previous or _NOBODY,
        "time": decision.time,
        "operator": decision.operator,
        "decision": "unfinished",
        "reasons": "the process ended early",
    }
    label = f"{decision.action} {decision.version}"
    return str(client.create_run(experiment, tags=tags, run_name=label).info.run_id)


def write_report(client: "MlflowClient", run_id: str, decision: Decision) -> None:
    """Put what the gate found into the record, before anything moves."""
    client.log_dict(run_id, _plain(asdict(decision)), "decision.json")
    client.set_tag(run_id, "reasons", "; ".join(decision.reasons))


def close_record(
    client: "MlflowClient",
    run_id: str,
    outcome: Outcome,
    *,
    reasons: tuple[str, ...] | None = None,
    moved_ms: int | None = None,
) -> None:
    """Say what came of a decision; closing a record again does no harm."""
    from mlflow.entities import RunTag

    tags: dict[str, str] = {"decision": outcome}
    if reasons is not None:
        tags["reasons"] = "; ".join(reasons)
    if moved_ms is not None:
        tags["moved_at"] = iso_time(moved_ms)
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    client.set_terminated(run_id)


def drop_record(client: "MlflowClient", run_id: str) -> None:
    """Take the record of what came to no decision out of the history."""
    client.delete_run(run_id)


def history(name: str) -> list[dict[str, Any]]:
    """Every decision on `name`, the newest first."""
    client = connect()
    with store_errors():
        experiment = client.get_experiment_by_name(audit_experiment(name))
        runs = (
            client.search_runs([experiment.experiment_id], max_results=50_000) if experiment else []
        )
    rows = [{key: run.data.tags.get(key) for key in _SHOWN} for run in runs]
    return [
        row
        | {"run_id": run.info.run_id}
        | {"previous": None if row["previous"] == _NOBODY else row["previous"]}
        for row, run in zip(rows, runs, strict=True)
    ]


def champion_at(name: str, when: datetime) -> Tenure:
    """Which version was champion of `name` at a time with a zone.

    Each record says who was champion when its decision began, and whether it moved the alias. What
    is moved by hand shows only in the record after it, or in the alias now: then the answer is the
    last that was known, and not certain.

    Raises:
        UsageRefused: the time is yet to come, or before the first record.
    """
    now = datetime.now(UTC)
    if when > now:
        raise UsageRefused(f"--at must be a time in the past, got {when.isoformat()}")
    client = connect()
    with store_errors():
        champion = alias_version(client, name, CHAMPION)
    known = [*_sightings(history(name)), _Sighting(now, champion)]
    before = [sighting for sighting in known if sighting.time <= when]
    after = known[len(before)]
    if not before:
        raise UsageRefused(f"nothing is recorded of {name} before {after.time.isoformat()}")
    version = before[-1].version
    since = before[-1].time
    for sighting in reversed(before):
        if sighting.version != version:
            break
        since = sighting.time
    certain = after.moved or after.version == version
    return Tenure(version=version, since=since.isoformat(), certain=certain)


def audit_experiment(name: str) -> str:
    """Where the decisions on a registered model are recorded."""
    return f"{name}-promotions"


def iso_time(milliseconds: float) -> str:
    """A time stamp of the store in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")


def _sightings(rows: list[dict[str, Any]]) -> list[_Sighting]:
    found = []
    for row in rows:
        found.append(_Sighting(datetime.fromisoformat(row["time"]), row["previous"]))
        if row["moved_at"] is not None:
            moved_at = datetime.fromisoformat(row["moved_at"])
            found.append(_Sighting(moved_at, row["version"], moved=True))
    return sorted(found, key=lambda sighting: sighting.time)


def _plain(value: Any) -> Any:
    """In JSON's own types: it has no number for nan and the infinities."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
