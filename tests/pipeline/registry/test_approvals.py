"""The gate asks for an approval of this very bundle, by another user than the one who promotes."""

import re
from dataclasses import replace
from typing import Any

import pytest

from pipeline.registry import audit_log
from pipeline.registry.approvals import approve, approvers
from pipeline.registry.audit_log import Decision, list_decisions
from pipeline.registry.listing import list_versions, render_table
from serving.bundle import Bundle
from serving.errors import UsageRefused, VerificationFailed
from serving.mlflow_store import DIGEST_TAG, connect
from tests.pipeline.registry.versions import GATE, champion, promote_with, register
from tests.trained_models import Trained

pytestmark = pytest.mark.usefixtures("store")

ASKED = replace(GATE, require=("approval",))


def act_as(user: str, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(audit_log, "operator_name", lambda: user)


def lacks(decision: Decision) -> str:
    assert decision.decision == "refused"
    (reason,) = decision.reasons
    assert reason.startswith("version 1 lacks an approval, ")
    return reason


def test_another_user_than_the_promoter_must_approve(
    sealed: Bundle, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(sealed)
    act_as("ada", monkeypatch)
    reason = lacks(promote_with(trained, "1", ASKED))
    advice = "another user than ada must run vae approve 1 --name vae --reason TEXT"
    assert f"nobody has approved: {advice}" in reason
    approve("vae", "1", "I like it")
    assert "only ada, who promotes it, has approved of it" in lacks(
        promote_with(trained, "1", ASKED)
    )
    lacks(promote_with(trained, "1", ASKED, force="it is urgent"))
    assert champion() is None
    act_as("grace", monkeypatch)
    given = approve("vae", "1", "reviewed with the risk team")
    act_as("ada", monkeypatch)
    assert promote_with(trained, "1", ASKED).decision == "promoted"
    rows = [row for row in list_decisions("vae") if row["action"] == "approve"]
    assert [row["operator"] for row in rows] == ["grace", "ada"]
    assert rows[0] | {"run_id": ""} == {
        "time": given.time,
        "action": "approve",
        "version": "1",
        "digest": sealed.manifest.digest,
        "previous": None,
        "decision": "approved",
        "moved_at": None,
        "operator": "grace",
        "reasons": "reviewed with the risk team",
        "run_id": "",
    }
    (row,) = list_versions("vae")
    assert row["approved_by"] == ["ada", "grace"]
    assert "ada, grace" in render_table([row])


def test_without_the_requirement_no_approval_is_needed(sealed: Bundle, trained: Trained) -> None:
    assert promote_with(trained, register(sealed), GATE).decision == "promoted"
    assert "approved" not in render_table(list_versions("vae")).splitlines()[0].split()


def test_an_approval_of_another_bundle_does_not_count(
    sealed: Bundle, worse: Bundle, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(sealed)
    register(worse)
    act_as("grace", monkeypatch)
    approve("vae", "2", "this one")
    client = connect()
    client.set_model_version_tag("vae", "2", DIGEST_TAG, "0" * 64)
    approve("vae", "2", "and what it is now")
    act_as("ada", monkeypatch)
    assert approvers(client, "vae") == {
        worse.manifest.digest: ("grace",),
        "0" * 64: ("grace",),
    }
    lacks(promote_with(trained, "1", ASKED))
    with pytest.raises(VerificationFailed, match="but 000000000000 was registered"):
        promote_with(trained, "2", ASKED)


def forget(tag: str) -> Any:
    def change(run_id: str) -> None:
        connect().delete_tag(run_id, tag)

    return change


def rewrite(tag: str, value: str) -> Any:
    def change(run_id: str) -> None:
        connect().set_tag(run_id, tag, value)

    return change


def drop(run_id: str) -> None:
    connect().delete_run(run_id)


SPOILT = {
    "deleted": drop,
    "without a digest": forget("digest"),
    "without a user": forget("operator"),
    "of no user": rewrite("operator", ""),
    "unfinished": rewrite("decision", "unfinished"),
    "no approval": rewrite("action", "delete"),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
def test_a_record_that_is_not_whole_does_not_count(
    sealed: Bundle, trained: Trained, monkeypatch: pytest.MonkeyPatch, spoil: Any
) -> None:
    register(sealed)
    with monkeypatch.context() as patch:
        act_as("grace", patch)
        approve("vae", "1", "fine")
    spoil(list_decisions("vae")[0]["run_id"])
    lacks(promote_with(trained, "1", ASKED))


def test_a_tag_of_the_model_asks_for_what_the_option_does_not(
    sealed: Bundle, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(sealed)
    client = connect()
    client.set_registered_model_tag("vae", "gate.require", "approval, cpu")
    decision = promote_with(trained, "1", GATE)
    lacks(decision)
    assert decision.gate is not None
    assert decision.gate.require == ("approval", "cpu")
    lacks(promote_with(trained, "1", GATE, dry_run=True))
    with monkeypatch.context() as patch:
        act_as("grace", patch)
        approve("vae", "1", "fine")
    assert promote_with(trained, "1", GATE).decision == "promoted"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Approval", "the tag gate.require of vae has 'Approval': correct it to cpu, cuda, the "),
        ("approval,", "the tag gate.require of vae has '': correct it"),
        (" ", "the tag gate.require of vae has '': correct it"),
        ("aproval", "parity was not checked on aproval: .* or correct the word to cpu, cuda or ap"),
    ],
)
def test_a_tag_that_cannot_be_read_refuses(
    sealed: Bundle, trained: Trained, text: str, reason: str
) -> None:
    register(sealed)
    connect().set_registered_model_tag("vae", "gate.require", text)
    for force in (None, "whatever it says"):
        decision = promote_with(trained, "1", GATE, force=force)
        assert decision.decision == "refused"
        assert any(re.match(reason, said) for said in decision.reasons)


def test_what_cannot_be_approved(sealed: Bundle) -> None:
    register(sealed)
    client = connect()
    with pytest.raises(UsageRefused, match="vae has no version 7 in"):
        approve("vae", "7", "it")
    client.delete_model_version_tag("vae", "1", DIGEST_TAG)
    with pytest.raises(VerificationFailed, match="no digest in its tag"):
        approve("vae", "1", "it")
    assert list_decisions("vae") == []
