"""Move the champion, so that the aliases follow the ledger even if a process dies on the way.

In: a registered model and a move. Out: aliases, audit record and tags that agree with the ledger.
Every step can be repeated, even by another process. So before a process decides anything itself, it
finishes a move that was left undone.
"""

from typing import TYPE_CHECKING

from pipeline.errors import Stale
from pipeline.registry.audit_log import DecisionStatus, close_record
from pipeline.registry.ledger import claim_move, mark_done
from pipeline.registry.versions import PREVIOUS
from serving.champion import read_record, record_fault
from serving.ledger import CHAMPION, Move, iso_time, list_moves
from serving.mlflow_store import GONE, MISSING, alias_version, ignoring, store_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient


def finish_last_move(client: "MlflowClient", name: str) -> tuple[int, Move | None]:
    """Finish the last move if its process died.

    Return its number, or 0 if there is no move, and the move itself if this call carried it out.
    An entry without the record of a decision is not carried out: nobody has decided it.
    """
    with store_errors():
        moves = list_moves(client, name)
        if not moves:
            return 0, None
        last = moves[-1]
        if last.done:
            return last.number, None
        record = read_record(client, name, last.run_id)
        if record_fault(last, record, ("accepted", "promoted", "deleted")) is not None:
            mark_done(client, name, last, moved=False)
            return last.number, None
        return last.number, last if _finish(client, name, last) else None


def make_move(client: "MlflowClient", name: str, move: Move) -> None:
    """Enter a move into the ledger and carry it out.

    The alias may name the version to promote already, if a person has set it.

    Raises:
        Stale: the champion is no longer the one that the decision was made against.
    """
    with store_errors():
        allowed = (move.base, move.version) if move.action == "promote" else (move.base,)
        if alias_version(client, name, CHAMPION) not in allowed:
            raise Stale("the champion was moved meanwhile: run the gate again")
        if not _finish(client, name, claim_move(client, name, move)):
            raise Stale("the champion was moved by hand at the same time: run the gate again")


def tag_version(client: "MlflowClient", name: str, version: str, status: DecisionStatus) -> None:
    """Tag a version with the gate's latest decision on it."""
    with ignoring(*GONE):
        client.set_model_version_tag(name, version, "gate.status", status)


def _finish(client: "MlflowClient", name: str, move: Move) -> bool:
    """Carry out a move that counts; return False if that is no longer possible.

    If a person has deleted the version or the record meanwhile, the other steps are still done.
    """
    run_id, moved = move.run_id, True
    if move.action == "delete":
        with ignoring(*GONE):
            client.delete_model_version(name, move.version)
        with ignoring(*GONE):
            close_record(client, run_id, "deleted")
    elif moved := _set_aliases(client, name, move):
        with ignoring(*GONE):
            close_record(client, run_id, "promoted", moved_ms=move.time_ms)
        with ignoring(*GONE):
            tag_version(client, name, move.version, "promoted")
            client.set_model_version_tag(name, move.version, "promoted.at", iso_time(move.time_ms))
    else:
        with ignoring(*GONE):
            close_record(client, run_id, "stale", reasons=("the champion was moved by hand",))
    mark_done(client, name, move, moved)
    return moved


def _set_aliases(client: "MlflowClient", name: str, move: Move) -> bool:
    """Set the aliases for a move; return False if a person moved them or deleted the version.

    A process that slept may find newer moves, or may just have overwritten their aliases. So the
    aliases are set again until they are those of the newest move.
    """
    champion = alias_version(client, name, CHAMPION)
    if _last_alias_move(client, name).number != move.number:
        return True  # the process that made the next move has finished this one first
    if champion not in (move.base, move.version):
        return False
    with ignoring(MISSING):
        while True:
            if move.action == "promote" and move.base is not None:
                client.set_registered_model_alias(name, PREVIOUS, move.base)
            client.set_registered_model_alias(name, CHAMPION, move.version)
            last = _last_alias_move(client, name)
            if last.number == move.number:
                return True
            move = last
    return False


def _last_alias_move(client: "MlflowClient", name: str) -> Move:
    return [move for move in list_moves(client, name) if move.action != "delete"][-1]
