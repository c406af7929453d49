"""Kill a promotion or a rollback at every step: the champion stays whole, and a second run heals.

A step is a change to the store. A process leaves the same store wherever it is killed between two
steps.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.registry.audit_log import list_decisions
from pipeline.registry.promotion import rollback
from serving.bundle import Bundle
from serving.errors import UsageRefused
from serving.ledger import Move, list_moves
from serving.mlflow_store import connect
from serving.source import fetch_version
from tests.forks import forks
from tests.pipeline.registry.processes import promote_and_die, roll_back_and_die
from tests.pipeline.registry.versions import GATE, alias, champion, promote_with, register
from tests.trained_models import Trained


def dies(target: Callable[..., None], folder: Path, *arguments: object) -> bool:
    """Run a process to its end; return whether it was killed."""
    uri = os.environ["MLFLOW_TRACKING_URI"]
    process = forks().Process(target=target, args=(uri, folder, *arguments))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def check_whole(folder: Path) -> str:
    """Assert that the champion is one of the two versions, with whole files; return its number."""
    version = champion()
    assert version in ("1", "2")
    fetch_version(connect(), "vae", version, folder)
    return version


def check_agreement(version: str, action: str, number: int) -> None:
    """Assert that alias, ledger and audit agree: the move was made, and made once."""
    assert champion() == version
    client = connect()
    moves = list_moves(client, "vae")
    assert len(moves) == number
    assert (moves[-1].version, moves[-1].action, moves[-1].done) == (version, action, True)
    moved = [row for row in list_decisions("vae") if row["moved_at"] is not None]
    assert [row["run_id"] for row in moved] == [move.run_id for move in reversed(moves)]
    assert {row["decision"] for row in moved} == {"promoted"}
    tags = client.get_model_version("vae", version).tags
    assert (tags["gate.status"], tags["promoted.at"]) == ("promoted", moved[0]["moved_at"])


def roll_back_again() -> None:
    """Repeat a rollback that was killed; after its last step there is nothing left to do."""
    last: Move = list_moves(connect(), "vae")[-1]
    if (last.action, last.done) == ("rollback", True):
        with pytest.raises(UsageRefused, match="no version before 1, its champion, to go back to"):
            rollback("vae", threads=1)
    else:
        assert rollback("vae", threads=1).decision == "promoted"


@pytest.mark.usefixtures("store")
def test_a_death_at_any_step_leaves_a_champion_and_is_healed(
    sealed: Bundle, worse: Bundle, trained: Trained, tmp_path: Path
) -> None:
    promote_with(trained, register(worse))
    register(sealed)
    deaths = {"promote": 0, "rollback": 0}
    left: dict[str, set[str]] = {"promote": set(), "rollback": set()}
    alive, moves = True, 1
    while alive:
        step = deaths["promote"] + 1
        alive = False
        for action, target, arguments in (
            ("promote", promote_and_die, ("2", trained[1].test)),
            ("rollback", roll_back_and_die, ()),
        ):
            if dies(target, tmp_path, *arguments, step):
                deaths[action] += 1
                alive = True
            folder = tmp_path / f"{action}-{step}"
            folder.mkdir()
            left[action].add(check_whole(folder))
            if action == "promote":
                assert promote_with(trained, "2", GATE).decision == "promoted"
                assert alias("previous") == "1"
            else:
                roll_back_again()
            moves += 1
            check_agreement("2" if action == "promote" else "1", action, moves)
    assert deaths["promote"] >= 11
    assert deaths["rollback"] >= 10
    assert left == {"promote": {"1", "2"}, "rollback": {"1", "2"}}
