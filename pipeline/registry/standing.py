"""The champion by the ledger, where the alias that anybody can move says something else.

In: a decision that has begun, or a verified version. Out: what the decision is made against. A
version is compared with the champion that the alias names. If a person has set the alias to the
candidate itself, that would compare it with itself, and so the ledger's champion takes its place.
Raises `VerificationFailed` if a version has another bundle than when it was promoted.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.registry.audit_log import Decision
from serving.champion import Named, advise_promote, named_by_ledger, proven_moves
from serving.errors import VerificationFailed
from serving.mlflow_store import find_in_store
from serving.source import Source

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from serving.ledger import Move


def is_champion(client: "MlflowClient", decision: Decision) -> bool:
    """Whether alias and ledger agree that this version is champion, with the bundle it has now."""
    if decision.version != decision.previous:
        return False
    found = named_by_ledger(client, decision.name)
    return isinstance(found, Named) and found.warning is None


def rival_of(client: "MlflowClient", decision: Decision) -> str | None:
    """Return the version to compare with: the champion, or the one before if it is the candidate's.

    None if there is no other version that was ever promoted and still exists.
    """
    if decision.version != decision.previous:
        return decision.previous
    for move in proven_moves(client, decision.name):
        exists = find_in_store(client.get_model_version, decision.name, move.version)
        if move.version != decision.version and exists is not None:
            return move.version
    return None


def set_by_hand(client: "MlflowClient", decision: Decision) -> Iterator[str]:
    """Object to a comparison with a champion that passed no gate, unless no version ever did."""
    move = next(proven_moves(client, decision.name), None)
    if move is None or move.version in (decision.version, decision.previous):
        return
    champion = f"version {decision.previous}" if decision.previous else "no version"
    yield (
        f"a person has set the alias: {champion} is champion by it, and {move.version} by the "
        "ledger: set it back, or "
        f"{advise_promote(decision.name, decision.previous or move.version)} first"
    )


def check_was_promoted(client: "MlflowClient", source: Source) -> None:
    """Raise `VerificationFailed` if a version never passed the gate with this bundle."""
    if _check(client, source) is None:
        raise VerificationFailed(
            f"version {source.version} of {source.name} is previous by its alias alone: no record "
            f"says that it was promoted; {advise_promote(str(source.name), str(source.version))}"
        )


def check_bundle(client: "MlflowClient", source: Source) -> None:
    """Raise `VerificationFailed` if a version was promoted earlier, but with another bundle."""
    _check(client, source)


def _check(client: "MlflowClient", source: Source) -> "Move | None":
    moves = proven_moves(client, str(source.name))
    move = next((move for move in moves if move.version == source.version), None)
    digest = source.bundle.manifest.digest
    if move is not None and move.digest not in (None, digest):
        raise VerificationFailed(
            f"version {source.version} of {source.name} holds bundle {digest[:12]} now, but "
            f"{str(move.digest)[:12]} was promoted: set its tag and files back, or register the "
            "new bundle as a version of its own"
        )
    return move
