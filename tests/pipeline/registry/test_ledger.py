import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Stale
from pipeline.registry import aliases as moving
from pipeline.registry.audit_log import (
    begin_decision,
    list_decisions,
    open_record,
    write_report,
)
from pipeline.registry.ledger import claim_move, mark_done
from pipeline.registry.promotion import promote
from serving.bundle import Bundle
from serving.ledger import Move, list_moves
from serving.mlflow_store import connect
from tests.pipeline.registry.processes import register_racers, run_rounds
from tests.pipeline.registry.versions import GATE, alias, champion, promote_with, register
from tests.trained_models import Trained

pytestmark = pytest.mark.usefixtures("store")

RACERS, ROUNDS = 8, 2


def new_move(run_id: str, after: int, version: str = "1") -> Move:
    return Move(action="promote", version=version, base=None, run_id=run_id, after=after)


def test_of_two_moves_that_follow_the_same_one_the_first_wins() -> None:
    client = connect()
    first = claim_move(client, "vae", new_move("a", 0))
    assert (first.number, first.run_id, first.done) == (1, "a", False)
    with pytest.raises(Stale, match="a promote of version 1 came first: run the gate again"):
        claim_move(client, "vae", new_move("b", 0, "2"))
    second = claim_move(client, "vae", new_move("c", 1))
    assert (second.number, second.after) == (3, 1)  # entry 2 came too late and does not count
    mark_done(client, "vae", second)
    assert list_moves(client, "vae") == [first, replace(second, done=True)]
    assert list_moves(client, "other") == []


def test_a_move_whose_answer_was_lost_is_recognized_by_its_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client without an answer does not know whether it won, and may create an entry twice."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    real = MlflowClient.create_model_version

    def lose_answer(*arguments: Any, **named: Any) -> None:
        real(*arguments, **named)
        real(*arguments, **named)
        raise MlflowException("timed out")

    monkeypatch.setattr(MlflowClient, "create_model_version", lose_answer)
    client = connect()
    assert claim_move(client, "vae", new_move("a", 0)).number == 1
    with pytest.raises(Stale):
        claim_move(client, "vae", new_move("b", 0))

    def refuse(*arguments: Any, **named: Any) -> None:
        raise MlflowException("no")

    monkeypatch.setattr(MlflowClient, "create_model_version", refuse)
    with pytest.raises(MlflowException, match="no"):
        claim_move(client, "vae", new_move("c", 1))


def test_a_process_that_slept_does_not_undo_what_came_after(
    sealed: Bundle, worse: Bundle, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It won, slept before it set the aliases, and wakes when its move and another are done."""
    first, second = register(worse), register(sealed)
    asked: list[int] = []

    def look_with(function: Any) -> None:
        monkeypatch.setattr(moving, "list_moves", function)

    def sleep_before_the_aliases(client: Any, name: str) -> list[Move]:
        moves = list_moves(client, name)
        asked.append(len(asked))
        if len(asked) == 1:  # it sleeps after seeing that its move is the last
            look_with(list_moves)
            assert promote_with(trained, second, GATE).decision == "promoted"
            assert (champion(), alias("previous")) == (second, first)
            look_with(sleep_before_the_aliases)
        return moves

    def load_test(manifest: Any) -> Any:
        look_with(sleep_before_the_aliases)
        return trained[1].test

    assert promote("vae", first, load_test, GATE, threads=1).decision == "promoted"
    assert len(asked) > 1
    assert (champion(), alias("previous")) == (second, first)
    moved = [(row["version"], row["previous"]) for row in list_decisions("vae") if row["moved_at"]]
    assert sorted(moved) == [(first, None), (second, first)]


def test_a_process_that_slept_finds_its_move_finished(
    sealed: Bundle, worse: Bundle, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It won, slept, and wakes when another process has carried out its move and made a new one."""
    first, second = register(worse), register(sealed)

    def sleep_after_the_claim(client: Any, name: str, move: Move) -> Move:
        claimed = claim_move(client, name, move)
        monkeypatch.setattr(moving, "claim_move", claim_move)
        assert promote_with(trained, second, GATE).decision == "promoted"
        return claimed

    monkeypatch.setattr(moving, "claim_move", sleep_after_the_claim)
    assert promote_with(trained, first, GATE).decision == "promoted"
    assert (champion(), alias("previous")) == (second, first)
    assert {row["decision"] for row in list_decisions("vae")} == {"promoted"}


@pytest.fixture
def two_versions(store: Path, sealed: Bundle, worse: Bundle, trained: Trained) -> None:
    """Versions 1 and 2 of `vae`; 1 is champion."""
    for bundle in (worse, sealed):
        register(bundle)
    promote_with(trained, "1")


def accepted_move(client: Any) -> Move:
    """Return a move of version 2 that was decided, and not entered into the ledger."""
    decision = begin_decision(client, "promote", "vae", "2")
    decision = replace(decision, decision="accepted", reasons=("it is good",))
    record = open_record(client, decision)
    write_report(client, record, decision)
    digest = decision.digest
    return Move(action="promote", version="2", base="1", run_id=record, after=1, digest=digest)


@pytest.mark.usefixtures("two_versions")
def test_a_champion_that_a_person_moved_is_left_where_it_is() -> None:
    """A move that was never carried out does not overwrite the person's later change."""
    client = connect()
    claim_move(client, "vae", accepted_move(client))
    client.delete_registered_model_alias("vae", "champion")
    assert moving.finish_last_move(client, "vae") == (2, None)
    assert champion() is None
    last = list_moves(client, "vae")[-1]
    assert (last.done, last.moved) == (True, False)
    assert list_decisions("vae")[0]["decision"] == "stale"
    client.delete_run(last.run_id)
    assert [row["version"] for row in list_decisions("vae")] == ["1"]  # of the first move
    assert moving.finish_last_move(client, "vae") == (2, None)


@pytest.mark.usefixtures("two_versions")
def test_a_move_whose_version_or_record_is_gone_does_not_stop_the_next(trained: Trained) -> None:
    client = connect()
    client.delete_run(list_decisions("vae")[0]["run_id"])
    gone = Move(action="promote", version="9", base="1", run_id="0" * 32, after=1)
    claim_move(client, "vae", gone)
    assert promote_with(trained, "2").decision == "promoted"
    assert (champion(), alias("previous")) == ("2", "1")


def test_of_eight_promotions_at_once_one_wins(
    sealed: Bundle, trained: Trained, tmp_path: Path
) -> None:
    versions = register_racers(sealed.path, tmp_path, RACERS)
    uri = os.environ["MLFLOW_TRACKING_URI"]
    run_rounds(ROUNDS, uri, tmp_path, trained[1].test, versions)
    moves = list_moves(connect(), "vae")
    assert len(moves) == ROUNDS
    assert len(list_decisions("vae")) == ROUNDS * RACERS
