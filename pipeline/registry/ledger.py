"""The ledger: a list of the champion's moves, in an order that the store fixes.

A move is a version of the registered model `NAME--promotions`; its source is the audit record. The
store gives out each version number once, in rising order. A move names the move that it follows. If
several follow the same one, the one with the lowest number counts and the others came too late. So
two promotions that were decided against the same champion cannot both win, whichever process dies,
sleeps or retries in between: there is no lease that could expire, and no clock.

MLflow cannot move an alias on a condition. Therefore `aliases` moves the aliases after the ledger,
and then marks the move as done.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import Stale
from serving.mlflow_store import EXISTS, ignoring

if TYPE_CHECKING:
    from mlflow import MlflowClient

Action = Literal["promote", "rollback", "delete"]

_MAX_RESULTS = 200_000
"""The most entries that the store returns at once."""
_STALE = "stale"
_DESCRIPTION = (
    "The moves of the champion in their order. vae promote, rollback and delete write them, so "
    "only one of two simultaneous moves takes effect."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One entry; the store sets `number` and `time_ms`."""

    action: Action
    version: str
    """The new champion or, for a deletion, the version to delete."""
    base: str | None
    """The champion at the time of the decision."""
    run_id: str
    """Id of the audit record."""
    after: int
    """Number of the move before it; 0 for the first move."""
    number: int = 0
    time_ms: int = 0
    done: bool = False
    moved: bool = True
    """False: a person had moved the alias meanwhile, so that this move had no effect."""


def ledger_name(name: str) -> str:
    """Return the name of the registered model that holds the moves of `name`."""
    return f"{name}--promotions"


def list_moves(client: "MlflowClient", name: str) -> list[Move]:
    """Return the moves that count, the oldest first."""
    query = f"name='{ledger_name(name)}'"
    entries = client.search_model_versions(query, max_results=_MAX_RESULTS)
    winners: dict[int, Move] = {}
    for move in sorted(map(_parse_move, entries), key=lambda move: move.number):
        winners.setdefault(move.after, move)
    chain: list[Move] = []
    while (following := winners.get(chain[-1].number if chain else 0)) is not None:
        chain.append(following)
    return chain


def claim_move(client: "MlflowClient", name: str, move: Move) -> Move:
    """Enter a move into the ledger and return it with its number.

    Raises:
        Stale: another move has already followed the same one.
    """
    from mlflow.exceptions import MlflowException

    failure: MlflowException | None = None
    try:
        _create_entry(client, name, move)
    except MlflowException as err:  # the entry may have been made nevertheless
        failure = err
    winner = next((row for row in list_moves(client, name) if row.after == move.after), None)
    if winner is None:
        raise failure or Stale(f"{ledger_name(name)} was changed meanwhile: try again")
    if winner.run_id != move.run_id:
        raise Stale(f"a {winner.action} of version {winner.version} came first: run the gate again")
    return winner


def mark_done(client: "MlflowClient", name: str, move: Move, moved: bool = True) -> None:
    """Mark a move as carried out, or as one that could not be."""
    done = "true" if moved else _STALE
    client.set_model_version_tag(ledger_name(name), str(move.number), "done", done)


def _create_entry(client: "MlflowClient", name: str, move: Move) -> None:
    with ignoring(EXISTS):
        client.create_registered_model(ledger_name(name), description=_DESCRIPTION)
    client.create_model_version(
        ledger_name(name),
        f"runs:/{move.run_id}/decision.json",
        run_id=move.run_id,
        tags={
            "action": move.action,
            "version": move.version,
            "base": move.base or "none",
            "after": move.after,
        },
        await_creation_for=0,
    )


def _parse_move(entry: Any) -> Move:
    base = entry.tags["base"]
    return Move(
        action=entry.tags["action"],
        version=entry.tags["version"],
        base=None if base == "none" else base,
        run_id=entry.run_id,
        after=int(entry.tags["after"]),
        number=int(entry.version),
        time_ms=entry.creation_timestamp,
        done="done" in entry.tags,
        moved=entry.tags.get("done") != _STALE,
    )
