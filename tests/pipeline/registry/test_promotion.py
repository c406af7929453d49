import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import PromoteConfig
from pipeline.registry import promotion
from pipeline.registry.audit_log import list_decisions
from pipeline.registry.promotion import delete, rollback
from pipeline.registry.scoring import score_version
from serving.bundle import Bundle
from serving.errors import UsageRefused, VerificationFailed
from serving.mlflow_store import alias_version, connect
from serving.source import open_source
from tests.pipeline.registry.versions import (
    GATE,
    alias,
    champion,
    flip_byte,
    promote_with,
    register,
    stored_files,
)
from tests.trained_models import Trained

pytestmark = pytest.mark.usefixtures("store")


def report(run_id: str) -> dict[str, Any]:
    """The decision as the audit stores it."""
    path = connect().download_artifacts(run_id, "decision.json")
    content: dict[str, Any] = json.loads(Path(path).read_text())
    return content


def dump(store: Path) -> Iterator[str]:
    """Every row of an sqlite store."""
    with contextlib.closing(sqlite3.connect(store)) as database:
        yield from database.iterdump()


def test_first_promotion_says_that_there_is_no_baseline(sealed: Bundle, trained: Trained) -> None:
    decision = promote_with(trained, register(sealed))
    assert decision.decision == "promoted"
    assert decision.previous is None
    assert "without a champion to compare with" in decision.reasons[0]
    assert champion() == "1"
    assert alias_version(connect(), "vae", "previous") is None
    assert open_source("models:/vae@champion").version == "1"


def test_a_worse_candidate_is_refused_and_recorded(
    sealed: Bundle, worse: Bundle, trained: Trained
) -> None:
    promote_with(trained, register(sealed))
    decision = promote_with(trained, register(worse))
    assert decision.decision == "refused"
    assert decision.reasons[0].startswith("not shown to be as good: ELBO ")
    assert decision.judgement is not None
    assert decision.judgement.difference is not None
    assert decision.judgement.difference < 0
    assert champion() == "1"
    rows = list_decisions("vae")
    assert [(row["version"], row["decision"]) for row in rows] == [
        ("2", "refused"),
        ("1", "promoted"),
    ]
    assert rows[0]["reasons"] == decision.reasons[0]
    assert connect().get_model_version("vae", "2").tags["gate.status"] == "refused"
    record = report(rows[0]["run_id"])
    assert record["judgement"]["elbo"] == decision.judgement.elbo
    assert record["judgement"]["rows"] == 100
    assert record["previous"] == "1"
    assert record["gate"]["margin"] == 0
    assert record["test_sha256"] == trained[1].test.sha256


def test_a_dry_run_decides_and_writes_nothing(
    sealed: Bundle, worse: Bundle, trained: Trained, store: Path
) -> None:
    register(worse)
    register(sealed)
    promote_with(trained, "1")
    before = [*dump(store)]
    accepted = promote_with(trained, "2", dry_run=True)
    assert accepted.decision == "accepted"
    assert accepted.judgement is not None
    assert promote_with(trained, "2", PromoteConfig(min_elbo=0), dry_run=True).decision == "refused"
    assert promote_with(trained, "1", dry_run=True).reasons == (
        "version 1 is the champion already",
    )
    assert [*dump(store)] == before


def test_force_overrides_the_judgement_and_is_recorded(
    sealed: Bundle, worse: Bundle, trained: Trained
) -> None:
    promote_with(trained, register(sealed))
    decision = promote_with(
        trained, register(worse), replace(GATE, min_elbo=0), force="the old one is cursed"
    )
    assert decision.decision == "promoted"
    assert decision.reasons[0] == "forced: the old one is cursed"
    assert decision.reasons[1].endswith("is below --min-elbo 0")
    assert decision.reasons[2].startswith("not shown to be as good: ")
    assert champion() == "2"
    row = list_decisions("vae")[0]
    assert row["reasons"] == "; ".join(decision.reasons)
    assert report(row["run_id"])["force"] == "the old one is cursed"


def test_force_that_was_not_needed_overrides_nothing(sealed: Bundle, trained: Trained) -> None:
    decision = promote_with(trained, register(sealed), force="to be sure")
    assert decision.decision == "promoted"
    assert "without a champion to compare with" in decision.reasons[0]
    assert len(decision.reasons) == 1


def test_a_damaged_champion_stops_promotion_until_it_is_forced(
    sealed: Bundle, worse: Bundle, trained: Trained
) -> None:
    promote_with(trained, register(worse))
    flip_byte(stored_files("1") / "decoder.onnx")
    version = register(sealed)
    with pytest.raises(VerificationFailed, match=r"champion 1 cannot .* vae rollback, or vae prom"):
        promote_with(trained, version)
    assert champion() == "1"
    decision = promote_with(trained, version, force="it is damaged")
    assert decision.decision == "promoted"
    assert "champion 1 cannot be compared with: " in decision.reasons[1]
    assert champion() == "2"


def test_a_better_candidate_replaces_the_champion_and_rollback_returns_it(
    sealed: Bundle, worse: Bundle, trained: Trained
) -> None:
    promote_with(trained, register(worse))
    decision = promote_with(trained, register(sealed))
    assert decision.decision == "promoted"
    assert (champion(), alias_version(connect(), "vae", "previous")) == ("2", "1")
    back = rollback("vae", threads=1)
    assert (back.decision, back.version, back.previous) == ("promoted", "1", "2")
    assert champion() == "1"
    assert [row["action"] for row in list_decisions("vae")] == ["rollback", "promote", "promote"]
    with pytest.raises(UsageRefused, match=r"^vae has no version before 1, its champion, to go"):
        rollback("vae", threads=1)


def test_a_rollback_without_a_previous_version_says_why(sealed: Bundle, trained: Trained) -> None:
    with pytest.raises(UsageRefused, match=r"^there is no model 'vae' in sqlite:.*: run vae run"):
        rollback("vae", threads=1)
    version = register(sealed)
    with pytest.raises(UsageRefused, match=r"^vae has no champion to go back from: run vae pro"):
        rollback("vae", threads=1)
    promote_with(trained, version)
    with pytest.raises(UsageRefused, match=r"^vae has no version before 1, its champion, to go"):
        rollback("vae", threads=1)


def test_promoting_the_champion_again_changes_nothing(sealed: Bundle, trained: Trained) -> None:
    promote_with(trained, register(sealed))
    decision = promote_with(trained, "1")
    assert decision.decision == "promoted"
    assert decision.reasons == ("version 1 is the champion already",)
    assert len(list_decisions("vae")) == 1
    assert connect().get_model_version("vae", "1").tags["gate.status"] == "promoted"
    assert alias_version(connect(), "vae", "previous") is None


def test_a_champion_that_moved_meanwhile_makes_the_decision_stale(
    sealed: Bundle, worse: Bundle, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(worse)
    version = register(sealed)

    def move_then_score(*arguments: Any) -> Any:
        connect().set_registered_model_alias("vae", "champion", "1")
        return score_version(*arguments)

    monkeypatch.setattr(promotion, "score_version", move_then_score)
    decision = promote_with(trained, version)
    assert decision.decision == "stale"
    assert champion() == "1"
    assert list_decisions("vae")[0]["decision"] == "stale"


def test_nothing_moves_without_a_record(
    sealed: Bundle, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the audit cannot be written, the champion stays."""
    version = register(sealed)
    client = connect()
    client.delete_experiment(client.create_experiment("vae-promotions"))
    with pytest.raises(UsageRefused, match="experiment 'vae-promotions' was deleted"):
        promote_with(trained, version)
    assert champion() is None


def test_a_refused_rollback_is_recorded(sealed: Bundle, worse: Bundle, trained: Trained) -> None:
    promote_with(trained, register(worse))
    promote_with(trained, register(sealed))
    (stored_files("1") / "decoder.onnx").write_bytes(b"rot")
    with pytest.raises(VerificationFailed, match=r"decoder.onnx"):
        rollback("vae", threads=1)
    assert champion() == "2"
    assert (list_decisions("vae")[0]["action"], list_decisions("vae")[0]["decision"]) == (
        "rollback",
        "refused",
    )


def test_an_interrupt_leaves_the_champion_that_the_ledger_names(
    sealed: Bundle, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the ledger entry nothing has moved; after it the move counts and is finished."""
    version = register(sealed)
    for step, status in (("score_version", "refused"), ("make_move", "promoted")):
        real = getattr(promotion, step)

        def interrupted(*arguments: Any, real: Any = real) -> None:
            real(*arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(promotion, step, interrupted)
            with pytest.raises(KeyboardInterrupt):
                promote_with(trained, version)
        row = list_decisions("vae")[0]
        assert row["decision"] == status
        assert champion() == (version if status == "promoted" else None)
    assert list_decisions("vae")[1]["reasons"] == "interrupted"


def test_a_version_with_an_alias_is_not_deleted(
    sealed: Bundle, worse: Bundle, trained: Trained
) -> None:
    promote_with(trained, register(worse))
    promote_with(trained, register(sealed))
    for version, names in (("1", "previous"), ("2", "candidate, champion")):
        with pytest.raises(UsageRefused, match=rf"version {version} of vae is {names}: promote"):
            delete("vae", version)
    connect().set_registered_model_alias("vae", "previous", "2")
    assert delete("vae", "1").decision == "deleted"
    with pytest.raises(UsageRefused, match="vae has no version 1 in"):
        delete("vae", "1")
    assert (champion(), alias("previous")) == ("2", "2")
    rows = [(row["action"], row["version"], row["decision"]) for row in list_decisions("vae")]
    assert rows == [
        ("delete", "1", "deleted"),
        ("promote", "2", "promoted"),
        ("promote", "1", "promoted"),
    ]


def test_a_version_that_is_deleted_meanwhile_is_not_promoted(
    sealed: Bundle, worse: Bundle, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger keeps a deletion and a promotion apart: the one that was decided first wins."""
    promote_with(trained, register(worse))
    version = register(sealed)
    connect().delete_registered_model_alias("vae", "candidate")

    def delete_then_score(*arguments: Any) -> Any:
        monkeypatch.setattr(promotion, "score_version", score_version)
        assert delete("vae", version).decision == "deleted"
        return score_version(*arguments)

    monkeypatch.setattr(promotion, "score_version", delete_then_score)
    decision = promote_with(trained, version)
    assert decision.decision == "stale"
    assert decision.reasons == ("a delete of version 2 came first: run the gate again",)
    assert champion() == "1"
