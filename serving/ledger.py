"""The ledger of a registered model: the moves of its champion, in an order that the store fixes.

A move is a version of the registered model `NAME--promotions`; its source is the audit record. The
store gives out each version number once, in rising order. A move names the move that it follows. If
several follow the same one, the one with the lowest number counts and the others came too late.

This module reads the ledger; `pipeline.registry.ledger` writes it. Whoever can write to the store
can make entries that `vae` has not made: one that is malformed does not count, and whether a
version passed the gate is for its audit record to say, which `serving.champion` compares.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from serving.mlflow_store import MlflowClient

CHAMPION = "champion"
"""The alias that the ledger is about."""
Action = Literal["promote", "rollback", "delete"]
ACTIONS: tuple[Action, ...] = get_args(Action)
STALE = "stale"
"""Value of the tag `done` of a move that could not be carried out."""
NO_VERSION = "none"
"""Stands for the champion in a tag where there was none."""
_MAX_RESULTS = 200_000
"""The most entries that the store returns at once."""
_NUMBER = re.compile("[0-9]{1,18}")


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
    digest: str | None = None
    """Digest of the version's bundle; None in entries from before it was recorded."""
    number: int = 0
    time_ms: int = 0
    done: bool = False
    moved: bool = True
    """False: a person had moved the alias meanwhile, so that this move had no effect."""


def ledger_name(name: str) -> str:
    """Return the name of the registered model that holds the moves of `name`."""
    return f"{name}--promotions"


def audit_experiment(name: str) -> str:
    """Return the name of the experiment that records the decisions on a registered model."""
    return f"{name}-promotions"


def list_moves(client: "MlflowClient", name: str) -> list[Move]:
    """Return the moves that count, the oldest first."""
    query = f"name='{ledger_name(name)}'"
    entries = client.search_model_versions(query, max_results=_MAX_RESULTS)
    moves = [move for move in map(_parse_move, entries) if move is not None]
    winners: dict[int, Move] = {}
    for move in sorted(moves, key=lambda move: move.number):
        winners.setdefault(move.after, move)
    chain: list[Move] = []
    while (following := winners.get(chain[-1].number if chain else 0)) is not None:
        chain.append(following)
    return chain


def champion_moves(moves: Iterable[Move]) -> list[Move]:
    """Return the moves that were carried out and made a version champion, the oldest first."""
    return [move for move in moves if move.done and move.moved and move.action != "delete"]


def iso_time(milliseconds: float) -> str:
    """Return a time stamp of the store in ISO 8601 and UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")


def _parse_move(entry: Any) -> Move | None:
    """Read an entry; return None if `vae` cannot have written it."""
    tags = entry.tags
    texts = tags.get("version", ""), tags.get("after", ""), str(entry.version)
    if tags.get("action") not in ACTIONS or not entry.run_id or not tags.get("base"):
        return None
    if not all(_NUMBER.fullmatch(text) for text in texts):
        return None
    after, number = int(texts[1]), int(texts[2])
    if after >= number:
        return None
    return Move(
        action=tags["action"],
        version=texts[0],
        base=None if tags["base"] == NO_VERSION else tags["base"],
        run_id=entry.run_id,
        after=after,
        digest=tags.get("digest"),
        number=number,
        time_ms=entry.creation_timestamp,
        done="done" in tags,
        moved=tags.get("done") != STALE,
    )
