"""Move the champion: the aliases follow the ledger, whoever dies on the way.

In: a registered model and a move. Out: aliases, audit record and tags that agree with the ledger.
Every step can be done again, by another process too: that is how a move that was left undone is
finished before the next one is decided.
"""

from typing import TYPE_CHECKING

from pipeline.errors import Stale
from pipeline.registry.audit_log import Outcome, close_record, iso_time
from pipeline.registry.ledger import Move, claim_move, list_moves, mark_done
from pipeline.registry.versions import CHAMPION, PREVIOUS
from serving.mlflow_store import alias_version, store_errors, unless_missing

if TYPE_CHECKING:
    from mlflow import MlflowClient


def settle(client: "MlflowClient", name: str) -> tuple[int, Move | None]:
    """Finish the last move, if its process died; return its number.

    And return the move itself, if it was finished just now.
    """
    with store_errors():
        moves = list_moves(client, name)
        if not moves:
            return 0, None
        last = moves[-1]
        if last.done:
            return last.number, None
        return last.number, last if _finish(client, name, last) else None


def make_move(client: "MlflowClient", name: str, move: Move) -> None:
    """Enter a move in the ledger and finish it.

    Raises:
        Stale: the champion is not the one that was decided against.
    """
    with store_errors():
        if alias_version(client, name, CHAMPION) != move.base:
            raise Stale("the champion was moved meanwhile: run the gate again")
        if not _finish(client, name, claim_move(client, name, move)):
            raise Stale("the champion was moved by hand at the same time: run the gate again")


def tag_version(client: "MlflowClient", name: str, version: str, outcome: Outcome) -> None:
    """Say on a version what the gate last said of it."""
    with unless_missing():
        client.set_model_version_tag(name, version, "gate.status", outcome)


def _finish(client: "MlflowClient", name: str, move: Move) -> bool:
    """Do all that follows from a move that counts; False where it cannot be carried out."""
    run_id, carried = move.run_id, True
    if move.action == "delete":
        with unless_missing():
            client.delete_model_version(name, move.version)
        with unless_missing():
            close_record(client, run_id, "deleted")
    elif carried := _lead_aliases(client, name, move):
        with unless_missing():
            close_record(client, run_id, "promoted", moved_ms=move.time_ms)
        with unless_missing():
            tag_version(client, name, move.version, "promoted")
            client.set_model_version_tag(name, move.version, "promoted.at", iso_time(move.time_ms))
    else:
        with unless_missing():
            close_record(client, run_id, "stale", reasons=("the champion was moved by hand",))
    mark_done(client, name, move)
    return carried


def _lead_aliases(client: "MlflowClient", name: str, move: Move) -> bool:
    """Move the aliases as a move says; False where a person moved them, or deleted the version.

    A process that slept meanwhile may find newer moves, or put its own over theirs: the newest has
    the last word.
    """
    champion = alias_version(client, name, CHAMPION)
    if _last_move(client, name).number != move.number:
        return True  # who came after has finished this one first
    if champion not in (move.base, move.version):
        return False
    with unless_missing():
        while True:
            if move.action == "promote" and move.base is not None:
                client.set_registered_model_alias(name, PREVIOUS, move.base)
            client.set_registered_model_alias(name, CHAMPION, move.version)
            last = _last_move(client, name)
            if last.number == move.number:
                return True
            move = last
    return False


def _last_move(client: "MlflowClient", name: str) -> Move:
    """The last move of the aliases."""
    return [move for move in list_moves(client, name) if move.action != "delete"][-1]
