"""Which version a server should serve: the one that an alias names, or that the ledger names.

Anybody who can write to the store can move an alias. The ledger's last move is followed only if its
audit record bears it out: the record is a run of the experiment `NAME-promotions`, it says that
this version was promoted by this move, with this bundle, and the alias and the version's tag agree.
What is read here is as trustworthy as the store's access control: who may write runs and versions
under any name can forge all of it together. Signatures of bundles do not depend on the store.

In: a registered model. Out: a `Named` version, or a `Refusal` that says what to do about it.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from serving.errors import UsageRefused, VerificationFailed
from serving.ledger import (
    CHAMPION,
    Move,
    audit_experiment,
    champion_moves,
    iso_time,
    list_moves,
)
from serving.mlflow_store import alias_version, find_in_store, registered_version, store_errors
from serving.source import Registered, Source, open_version

if TYPE_CHECKING:
    from serving.mlflow_store import MlflowClient

Follow = Literal["ledger", "alias"]
SETTLE_S = 5.0
"""A promotion that is being carried out has this time, before its version counts as refused."""
_LOOK_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """The version to serve."""

    version: str
    digest: str | None = None
    """Digest of the bundle that was promoted; None: whatever the version's tag says."""
    decision: Mapping[str, str] | None = None
    """Why it is served: `action`, `time`, `operator`, `reasons` and `run_id` of its record."""
    move: tuple[int, int] = (0, 0)
    """Number of its move in the ledger, and its time in milliseconds."""
    warning: str | None = None
    """What could not be checked of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A version that should not be served, and why."""

    version: str
    reason: str
    unfinished: bool = False
    """Whether the ledger has a move to this version that was not carried out yet."""


def choose_follow(registered: Registered | None, asked: Follow | None) -> Follow:
    """Return what to follow: by default the ledger for the champion, else the alias.

    Raises:
        UsageRefused: the ledger was asked for, but it is not about this reference.
    """
    has_ledger = registered is not None and registered.alias == CHAMPION
    if asked == "ledger" and not has_ledger:
        raise UsageRefused(
            f"--follow ledger needs --model models:/NAME@{CHAMPION}: the ledger holds the moves of "
            "that alias alone"
        )
    return asked or ("ledger" if has_ledger else "alias")


def named_version(
    client: "MlflowClient", registered: Registered, follow: Follow
) -> Named | Refusal | None:
    """Return the version that a reference names; None if there is no such alias.

    A promotion sets the alias a moment before the ledger says that it is done. So the store is
    asked again before a version is refused.
    """
    name, alias = registered.name, str(registered.alias)
    if follow == "alias":
        with store_errors():
            version = alias_version(client, name, alias)
        return None if version is None else Named(version=version)
    until = time.monotonic() + SETTLE_S
    found = named_by_ledger(client, name)
    while isinstance(found, Refusal):
        again = named_by_ledger(client, name)
        if again == found and not (found.unfinished and time.monotonic() < until):
            break
        found = again
        time.sleep(_LOOK_AGAIN_S)
    return found


def open_named(
    client: "MlflowClient", name: str, named: Named, verify_key: Path | None = None
) -> Source:
    """Open a version; refuse it if its tag was changed since it was compared with its record."""
    source = open_version(client, name, named.version, verify_key)
    digest = source.bundle.manifest.digest
    if named.digest not in (None, digest):
        raise VerificationFailed(
            f"version {named.version} of {name} became bundle {digest[:12]} while it was fetched"
        )
    return source


def named_by_ledger(client: "MlflowClient", name: str) -> Named | Refusal | None:
    """Return the champion by the ledger, if its record bears it out; None without the alias."""
    with store_errors():
        moves = list_moves(client, name)
    version = alias_version(client, name, CHAMPION)
    if version is None:
        return None
    made = champion_moves(moves)
    if not made:
        return _set_by_hand(name, version, None, moves)
    move = made[-1]
    record = read_record(client, name, move.run_id)
    if fault := _promotion_fault(move, record):
        return Refusal(
            version=move.version,
            reason=f"the ledger names version {move.version}, but its record, run {move.run_id}, "
            f"{fault}: {advise_promote(name, 'VERSION')}, for the version that should be served",
        )
    if move.version != version:
        return _set_by_hand(name, version, move.version, moves)
    return _compare_bundle(client, name, move, record)


def _compare_bundle(
    client: "MlflowClient", name: str, move: Move, record: Mapping[str, str]
) -> Named | Refusal:
    """Compare what was promoted with the version as it is now."""
    version = move.version
    try:
        digest, _ = registered_version(client, name, version)
    except (UsageRefused, VerificationFailed) as err:
        return Refusal(version=version, reason=str(err))
    if move.digest not in (None, digest):
        return Refusal(
            version=version,
            reason=f"version {version} names bundle {digest[:12]} now, but {move.digest[:12]} was "
            "promoted: set its tag and files back, or register the new bundle as a version of its "
            "own",
        )
    warning = None
    if move.digest is None:
        warning = (
            f"the record of version {version} is from before digests were recorded, so its bundle "
            f"cannot be compared with what was promoted: {advise_promote(name, version)}"
        )
    decision = {tag: record.get(tag, "") for tag in ("action", "operator", "reasons")}
    decision |= {"time": record["moved_at"], "run_id": move.run_id}
    return Named(
        version=version,
        digest=digest,
        decision=decision,
        move=(move.number, move.time_ms),
        warning=warning,
    )


def proven_moves(client: "MlflowClient", name: str) -> Iterator[Move]:
    """Yield the moves that made a version champion and that a record bears out, newest first."""
    with store_errors():
        moves = list_moves(client, name)
    for move in reversed(champion_moves(moves)):
        if _promotion_fault(move, read_record(client, name, move.run_id)) is None:
            yield move


def read_record(client: "MlflowClient", name: str, run_id: str) -> Mapping[str, str]:
    """Return the tags of a record; none if there is no such run among the decisions on `name`."""
    run = find_in_store(client.get_run, run_id)
    experiment = find_in_store(client.get_experiment_by_name, audit_experiment(name))
    if run is None or experiment is None or run.info.lifecycle_stage != "active":
        return {}
    belongs = str(run.info.experiment_id) == str(experiment.experiment_id)
    return dict(run.data.tags) if belongs else {}


def record_fault(move: Move, record: Mapping[str, str], statuses: tuple[str, ...]) -> str | None:
    """Return why a record is not that of a move, or None; `statuses` are the decisions allowed."""
    if not record:
        return "is not among the decisions, or was deleted"
    if (action := record.get("action")) != move.action or record.get("version") != move.version:
        return f"is of a {action} of version {record.get('version')}"
    if (decision := record.get("decision")) not in statuses:
        return f"says {decision}"
    if (digest := record.get("digest")) != move.digest:
        return f"is of bundle {(digest or 'none')[:12]}, the move of {(move.digest or 'none')[:12]}"
    return None


def _promotion_fault(move: Move, record: Mapping[str, str]) -> str | None:
    fault = record_fault(move, record, ("promoted",))
    if fault is None and record.get("moved_at") != iso_time(move.time_ms):
        return "is of another move"
    return fault


def _set_by_hand(name: str, version: str, champion: str | None, moves: list[Move]) -> Refusal:
    """Refuse the version that the alias names; `champion` is what the ledger names, if it does."""
    back = f", or set the alias back to {champion}, the champion by the ledger" if champion else ""
    last = moves[-1] if moves else None
    return Refusal(
        version=version,
        reason=f"version {version} is {name}@{CHAMPION} by its alias alone, without vae promote: "
        f"{advise_promote(name, version)}{back}; vae serve --follow alias serves whatever the "
        "alias names",
        unfinished=last is not None and not last.done and last.version == version,
    )


def advise_promote(name: str, version: str) -> str:
    """Return the words for a person who should put a version through the gate."""
    return f"run vae promote {version}" + ("" if name == "vae" else f" --name {name}")
