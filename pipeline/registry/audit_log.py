"""The audit log: every decision on a registered model is a run in the experiment `NAME-promotions`.

In: a `Decision`. Out: a run whose tags say what was decided, when and why, with the whole decision
as `decision.json`; `list_decisions` and `champion_at` read these runs. A record is opened before
anything moves. If it stays `unfinished`, its process died before it had decided; if it stays
`accepted`, before it moved anything.
"""

import math
import os
import pwd
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pipeline.config import PromoteConfig
from pipeline.experiments import check_experiment, open_experiment
from pipeline.registry.gate import Judgement
from pipeline.registry.references import find_model
from serving.errors import UsageRefused, VerificationFailed
from serving.ledger import (
    CHAMPION,
    NO_VERSION,
    Action,
    Move,
    audit_experiment,
    iso_time,
    list_moves,
)
from serving.mlflow_store import alias_version, connect, registered_version, store_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

DecisionStatus = Literal["promoted", "refused", "stale", "accepted", "deleted", "approved"]

_TAGS = (
    *("time", "action", "version", "digest", "previous", "decision"),
    *("moved_at", "operator", "reasons"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What was decided on which version, and why."""

    name: str
    action: Action | Literal["approve"]
    version: str
    digest: str | None = None
    """Digest of the version's bundle; None if it was not registered by `vae register`."""
    previous: str | None
    """The champion when the decision was made."""
    decision: DecisionStatus
    """`accepted`: the version passed the gate, and nothing has moved yet."""
    reasons: tuple[str, ...]
    judgement: Judgement | None = None
    gate: PromoteConfig | None = None
    force: str | None = None
    """The reason given for overriding the gate's judgement."""
    test_sha256: str | None = None
    """Digest of the rows that both versions were scored on."""
    time: str = ""
    operator: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenure:
    """The version that was champion at some time, as far as the audit knows."""

    version: str | None
    since: str
    """When it became champion or, if a person moved the alias, when that was first seen."""
    certain: bool
    """Whether the next record, or the alias now, shows that no person moved it since."""


@dataclass(frozen=True, slots=True)
class _Sighting:
    """The champion at some time; `moved` says that it became champion just then."""

    time: datetime
    version: str | None
    moved: bool = False


def check_audit(name: str) -> None:
    """Refuse at once, before a model is trained for a decision that could not be recorded."""
    check_experiment(connect(create=True), audit_experiment(name))


def begin_decision(
    client: "MlflowClient", action: Action | Literal["approve"], name: str, version: str
) -> Decision:
    """Begin a decision against the present champion; its status is `refused` until it is made."""
    digest = None
    with suppress(VerificationFailed, UsageRefused):
        digest, _ = registered_version(client, name, version)
    return Decision(
        name=name,
        action=action,
        version=version,
        digest=digest,
        previous=alias_version(client, name, CHAMPION),
        decision="refused",
        reasons=(),
        time=iso_time(time.time() * 1000),
        operator=operator_name(),
    )


def open_record(client: "MlflowClient", decision: Decision) -> str:
    """Open the record of a decision that is about to be made; return the run's id."""
    experiment = open_experiment(client, audit_experiment(decision.name))
    tags = {
        "action": decision.action,
        "version": decision.version,
        "previous": decision.previous or NO_VERSION,
        "time": decision.time,
        "operator": decision.operator,
        "decision": "unfinished",
        "reasons": "the process ended early",
        **({"digest": decision.digest} if decision.digest else {}),
    }
    label = f"{decision.action} {decision.version}"
    return str(client.create_run(experiment, tags=tags, run_name=label).info.run_id)


def write_report(client: "MlflowClient", run_id: str, decision: Decision) -> None:
    """Write the whole decision into its record, before anything moves.

    Only a record that says `accepted` can be the record of a move.
    """
    client.log_dict(run_id, _json_value(asdict(decision)), "decision.json")
    tags = {"reasons": "; ".join(decision.reasons)}
    if decision.digest:
        tags["digest"] = decision.digest
    if decision.decision == "accepted":
        tags["decision"] = "accepted"
    _tag_record(client, run_id, tags)


def close_record(
    client: "MlflowClient",
    run_id: str,
    status: DecisionStatus,
    *,
    reasons: tuple[str, ...] | None = None,
    moved_ms: int | None = None,
) -> None:
    """Write the result of a decision into its record; a record may be closed twice."""
    tags: dict[str, str] = {"decision": status}
    if reasons is not None:
        tags["reasons"] = "; ".join(reasons)
    if moved_ms is not None:
        tags["moved_at"] = iso_time(moved_ms)
    _tag_record(client, run_id, tags)
    client.set_terminated(run_id)


def drop_record(client: "MlflowClient", run_id: str) -> None:
    """Delete the record of an attempt that ended without a decision."""
    client.delete_run(run_id)


def list_decisions(name: str) -> list[dict[str, Any]]:
    """Return every decision on `name`, the newest first.

    Of a decision whose record was deleted, the ledger still holds the move of the champion.

    Raises:
        UsageRefused: there is no such model, and nothing was ever decided on it.
    """
    client = connect()
    with store_errors():
        experiment = client.get_experiment_by_name(audit_experiment(name))
        runs = (
            client.search_runs([experiment.experiment_id], max_results=50_000)
            if experiment is not None
            else []
        )
        moves = list_moves(client, name)
    if not runs and not moves:
        find_model(client, name)
    rows = [
        {**{tag: run.data.tags.get(tag) for tag in _TAGS}, "run_id": run.info.run_id}
        for run in runs
    ]
    for row in rows:
        if row["previous"] == NO_VERSION:
            row["previous"] = None
    recorded = {row["run_id"] for row in rows}
    rows += [_row_of(move) for move in moves if move.moved and move.run_id not in recorded]
    return sorted(rows, key=lambda row: str(row["time"]), reverse=True)


def missing_records(name: str) -> str | None:
    """Return why records of decisions on `name` cannot be read, or None."""
    try:
        check_audit(name)
    except VerificationFailed:  # the records are in the database, which is here
        return None
    except UsageRefused as err:
        return str(err)
    return None


def _row_of(move: Move) -> dict[str, Any]:
    """Describe a move whose record was deleted, by what the ledger holds of it."""
    moved_at = iso_time(move.time_ms)
    deletion = move.action == "delete"
    return {
        "time": moved_at,
        "action": move.action,
        "version": move.version,
        "digest": move.digest,
        "previous": move.base,
        "decision": "deleted" if deletion else "promoted",
        "moved_at": None if deletion else moved_at,
        "operator": None,
        "reasons": f"known from the ledger alone: its record, run {move.run_id}, was deleted",
        "run_id": move.run_id,
    }


def champion_at(name: str, when: datetime) -> Tenure:
    """Return the version that was champion of `name` at `when`, a time with a zone.

    Each record says which version was champion when its decision began, and whether the decision
    moved the alias. If a person moved the alias, only the next record, or the alias now, shows it:
    then the answer is the last version that was known, and `certain` is False.

    Raises:
        UsageRefused: the time is in the future, or before the first record.
    """
    now = datetime.now(UTC)
    if when > now:
        raise UsageRefused(f"--at must be a time in the past, got {when.isoformat()}")
    client = connect()
    with store_errors():
        champion = alias_version(client, name, CHAMPION)
    known = [*_sightings(list_decisions(name)), _Sighting(now, champion)]
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


def operator_name() -> str:
    """Return the name of this process's user, or its number if it has no name, as in containers.

    Variables such as USER do not count, since anybody can set them.
    """
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _tag_record(client: "MlflowClient", run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags in one step."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def _sightings(rows: list[dict[str, Any]]) -> list[_Sighting]:
    found = []
    for row in rows:
        found.append(_Sighting(datetime.fromisoformat(row["time"]), row["previous"]))
        if row["moved_at"] is not None:
            moved_at = datetime.fromisoformat(row["moved_at"])
            found.append(_Sighting(moved_at, row["version"], moved=True))
    return sorted(found, key=lambda sighting: sighting.time)


def _json_value(value: Any) -> Any:
    """Convert a value to JSON's types, which have no number for NaN and the infinities."""
    if isinstance(value, Mapping):
        return {key: _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
