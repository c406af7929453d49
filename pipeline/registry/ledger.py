"""The ledger: which move of the champion came first, said by the store once and for all.

A move is a version of the registered model `NAME--promotions`; its source is the audit record. The
store hands out version numbers once each and in order. A move says which move it follows; of those
that follow the same one, the one with the lowest number counts, the others came too late. So two
promotions that were decided against the same champion cannot both win, whatever dies, sleeps or is
retried in between: there is no lease that could expire, and no clock.

MLflow cannot move an alias on a condition. Therefore the alias follows the ledger (`champion`),
and a move is marked as done when it has.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import Stale
from serving.mlflow_store import create_model

if TYPE_CHECKING:
    from mlflow import MlflowClient

Action = Literal["promote", "rollback", "delete"]

_ALL = 200_000
"""As many as the store gives at once."""
_ABOUT = (
    "What moved the champion, in order: written by vae promote, rollback and delete, which need it "
    "to keep two of them apart."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One entry; `number` and `time_ms` are the store's."""

    action: Action
    version: str
    """The champion from now on; of a deletion the version to delete."""
    base: str | None
    """The champion that it was decided against."""
    run_id: str
    """The audit record."""
    after: int
    """Number of the move that it follows; 0 for the first."""
    number: int = 0
    time_ms: int = 0
    done: bool = False


def ledger_name(name: str) -> str:
    """The registered model that holds the moves of `name`."""
    return f"{name}--promotions"


def list_moves(client: "MlflowClient", name: str) -> list[Move]:
    """The moves that count, the oldest first."""
    query = f"name='{ledger_name(name)}'"
    entries = [_read(version) for version in client.search_model_versions(query, max_results=_ALL)]
    first: dict[int, Move] = {}
    for move in sorted(entries, key=lambda move: move.number):
        first.setdefault(move.after, move)
    chain: list[Move] = []
    while (following := first.get(chain[-1].number if chain else 0)) is not None:
        chain.append(following)
    return chain


def claim_move(client: "MlflowClient", name: str, move: Move) -> Move:
    """Enter a move; return it with its number.

    Raises:
        Stale: another move follows the same one already.
    """
    from mlflow.exceptions import MlflowException

    failure: MlflowException | None = None
    try:
        _enter(client, name, move)
    except MlflowException as err:  # which the store may have carried out all the same
        failure = err
    winner = next((row for row in list_moves(client, name) if row.after == move.after), None)
    if winner is None:
        raise failure or Stale(f"{ledger_name(name)} was changed meanwhile: try again")
    if winner.run_id != move.run_id:
        raise Stale(f"a {winner.action} of version {winner.version} came first: run the gate again")
    return winner


def mark_done(client: "MlflowClient", name: str, move: Move) -> None:
    """Note that the aliases have followed a move."""
    client.set_model_version_tag(ledger_name(name), str(move.number), "done", "true")


def _enter(client: "MlflowClient", name: str, move: Move) -> None:
    create_model(client, ledger_name(name), _ABOUT)
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


def _read(entry: Any) -> Move:
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
    )
