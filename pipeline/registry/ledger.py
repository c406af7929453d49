"""Write the ledger: enter a move of the champion, and mark it as carried out.

Two promotions that were decided against the same champion cannot both win, whichever process dies,
sleeps or retries in between: there is no lease that could expire, and no clock. `serving.ledger`
has the rule and reads the moves.

MLflow cannot move an alias on a condition. Therefore `aliases` moves the aliases after the ledger,
and then marks the move as done.
"""

from typing import TYPE_CHECKING

from pipeline.errors import Stale
from serving.ledger import NO_VERSION, STALE, Move, ledger_name, list_moves
from serving.mlflow_store import EXISTS, ignoring

if TYPE_CHECKING:
    from mlflow import MlflowClient

_DESCRIPTION = (
    "The moves of the champion in their order. vae promote, rollback and delete write them, so "
    "only one of two simultaneous moves takes effect."
)


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
    done = "true" if moved else STALE
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
            "base": move.base or NO_VERSION,
            "after": move.after,
            **({"digest": move.digest} if move.digest else {}),
        },
        await_creation_for=0,
    )
