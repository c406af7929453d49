import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline import promotion
from pipeline.audit import history
from pipeline.promotion import rollback
from serving.bundle import Bundle
from serving.errors import UsageRefused, VaeError, VerificationFailed
from serving.source import alias_version, connect, open_source
from tests.pipeline.conftest import Trained, make_bundle
from tests.pipeline.versions import champion, put, register, stored_files

pytestmark = pytest.mark.usefixtures("store")


def test_first_promotion_says_that_there_is_no_baseline(sealed: Bundle, trained: Trained) -> None:
    decision = put(trained, register(sealed))
    assert decision.decision == "promoted"
    assert decision.previous is None
    assert "no champion to compare with" in decision.reasons[0]
    assert champion() == "1"
    assert alias_version(connect(), "vae", "previous") is None
    assert open_source("models:/vae@champion").version == "1"


def test_a_worse_candidate_is_refused_and_recorded(
    sealed: Bundle, worse: Bundle, trained: Trained
) -> None:
    put(trained, register(sealed))
    decision = put(trained, register(worse))
    assert decision.decision == "refused"
    assert "is too low" in decision.reasons[0]
    assert decision.judgement is not None
    assert decision.judgement.difference is not None
    assert decision.judgement.difference < 0
    assert champion() == "1"
    rows = history("vae")
    assert [(row["version"], row["decision"]) for row in rows] == [
        ("2", "refused"),
        ("1", "promoted"),
    ]
    assert rows[0]["reasons"] == decision.reasons[0]
    client = connect()
    assert client.get_model_version("vae", "2").tags["gate.status"] == "refused"
    artifact = client.download_artifacts(rows[0]["run_id"], "decision.json")
    record = json.loads(Path(artifact).read_text())
    assert record["judgement"]["elbo"] == decision.judgement.elbo
    assert record["previous"] == "1"


def test_a_better_candidate_replaces_the_champion_and_rollback_returns_it(
    sealed: Bundle, worse: Bundle, trained: Trained
) -> None:
    put(trained, register(worse))
    decision = put(trained, register(sealed))
    assert decision.decision == "promoted"
    assert (champion(), alias_version(connect(), "vae", "previous")) == ("2", "1")
    back = rollback("vae", threads=1)
    assert (back.decision, back.version, back.previous) == ("promoted", "1", "2")
    assert champion() == "1"
    assert [row["action"] for row in history("vae")] == ["rollback", "promote", "promote"]
    with pytest.raises(UsageRefused, match="no previous champion to go back to"):
        rollback("vae", threads=1)


def test_promoting_the_champion_again_changes_nothing(sealed: Bundle, trained: Trained) -> None:
    put(trained, register(sealed))
    decision = put(trained, "1")
    assert decision.decision == "promoted"
    assert decision.reasons == ("version 1 is the champion already",)
    assert connect().get_model_version("vae", "1").tags["gate.status"] == "promoted"
    assert alias_version(connect(), "vae", "previous") is None


def test_other_held_out_rows_are_refused(sealed: Bundle, trained: Trained) -> None:
    decision = put(trained, register(sealed), sha256="0")
    assert decision.decision == "refused"
    assert "not those that the version was evaluated on" in decision.reasons[0]
    assert champion() is None


def test_models_of_other_data_are_not_compared(
    sealed: Bundle, trained: Trained, trained_table: Trained, tmp_path: Path
) -> None:
    put(trained, register(sealed))
    decision = put(trained_table, register(make_bundle(tmp_path / "table", trained_table)))
    assert decision.decision == "refused"
    assert [reason.split(" is ")[0] for reason in decision.reasons] == [
        "x_shape",
        "x_dtype",
        "likelihood",
    ]


def test_a_champion_that_moved_meanwhile_makes_the_decision_stale(
    sealed: Bundle, worse: Bundle, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(worse)
    version = register(sealed)
    real = promotion._score

    def move_then_score(*arguments: Any) -> Any:
        connect().set_registered_model_alias("vae", "champion", "1")
        return real(*arguments)

    monkeypatch.setattr(promotion, "_score", move_then_score)
    decision = put(trained, version)
    assert decision.decision == "stale"
    assert champion() == "1"
    assert history("vae")[0]["decision"] == "stale"


def test_nothing_moves_without_a_record(
    sealed: Bundle, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the audit cannot be written, the champion stays."""
    version = register(sealed)
    client = connect()
    client.delete_experiment(client.create_experiment("vae-promotions"))
    with pytest.raises(VaeError, match="the MLflow store"):
        put(trained, version)
    assert champion() is None


def test_a_refused_rollback_is_recorded(sealed: Bundle, worse: Bundle, trained: Trained) -> None:
    put(trained, register(worse))
    put(trained, register(sealed))
    (stored_files("1") / "decoder.onnx").write_bytes(b"rot")
    with pytest.raises(VerificationFailed, match=r"decoder.onnx"):
        rollback("vae", threads=1)
    assert champion() == "2"
    assert (history("vae")[0]["action"], history("vae")[0]["decision"]) == ("rollback", "refused")


def test_an_operator_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr("getpass.getuser", fail)
    assert promotion._operator() == str(os.getuid())
