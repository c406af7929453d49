"""What a person does to aliases, tags and the ledger does not change what the gate compares."""

import contextlib
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.registry import aliases as moving
from pipeline.registry.audit_log import list_decisions
from pipeline.registry.promotion import delete, rollback
from serving.bundle import Bundle
from serving.champion import Named, Refusal, named_by_ledger
from serving.errors import VerificationFailed
from serving.ledger import champion_moves, ledger_name, list_moves
from serving.mlflow_store import DIGEST_TAG, connect
from tests.e2e.versions import reseal
from tests.pipeline.registry.versions import GATE, alias, champion, promote_with, register
from tests.trained_models import Trained


def set_by_hand(version: str, name: str = "champion") -> None:
    connect().set_registered_model_alias("vae", name, version)


def exchange(store: Path, version: str, other: str) -> None:
    """Let a version name the files and the digest of another one."""
    client = connect()
    digest = client.get_model_version("vae", other).tags[DIGEST_TAG]
    client.set_model_version_tag("vae", version, DIGEST_TAG, digest)
    query = (
        "update model_versions set source = (select source from model_versions "
        f"where name = 'vae' and version = {other}) where name = 'vae' and version = {version}"
    )
    with contextlib.closing(sqlite3.connect(store)) as database, database:
        database.execute(query)


def forge(tags: Mapping[str, str], run_id: str = "0" * 32) -> None:
    client = connect()
    source = f"runs:/{run_id}/decision.json"
    client.create_model_version(
        ledger_name("vae"), source, run_id=run_id, tags=dict(tags), await_creation_for=0
    )


@pytest.fixture
def two_versions(store: Path, sealed: Bundle, worse: Bundle, trained: Trained) -> Path:
    """Versions 1, which is good and champion, and 2 of `vae`, which is worse."""
    for bundle in (sealed, worse):
        register(bundle)
    assert promote_with(trained, "1").decision == "promoted"
    return store


@pytest.mark.usefixtures("two_versions")
def test_a_candidate_that_a_person_made_champion_is_not_compared_with_itself(
    trained: Trained,
) -> None:
    set_by_hand("2")
    refused = promote_with(trained, "2")
    assert (refused.decision, refused.previous) == ("refused", "1")
    assert refused.reasons[0].startswith("not shown to be as good: ")
    found = named_by_ledger(connect(), "vae")
    assert isinstance(found, Refusal)
    assert "run vae promote 2, or set the alias back to 1, the champion by" in found.reason
    forced = promote_with(trained, "2", force="a person wants it")
    assert (forced.decision, champion(), alias("previous")) == ("promoted", "2", "1")
    assert isinstance(named_by_ledger(connect(), "vae"), Named)
    assert rollback("vae", threads=1).version == "1"


@pytest.mark.usefixtures("store")
def test_a_first_champion_that_a_person_made_goes_through_the_gate(
    sealed: Bundle, trained: Trained
) -> None:
    set_by_hand(register(sealed))
    found = named_by_ledger(connect(), "vae")
    assert isinstance(found, Refusal)
    assert found.reason == (
        "version 1 is vae@champion by its alias alone, without vae promote: run vae promote 1; "
        "vae serve --follow alias serves whatever the alias names"
    )
    decision = promote_with(trained, "1")
    assert (decision.decision, decision.previous) == ("promoted", None)
    found = named_by_ledger(connect(), "vae")
    assert isinstance(found, Named)
    assert (found.version, found.digest) == ("1", sealed.manifest.digest)
    assert promote_with(trained, "1").reasons == ("version 1 is the champion already",)


@pytest.mark.parametrize("by_hand", ["2", None], ids=["set", "deleted"])
@pytest.mark.usefixtures("two_versions")
def test_a_champion_that_a_person_made_is_no_yardstick(
    trained: Trained, by_hand: str | None, bundle: Bundle
) -> None:
    """The next candidate is as good as what was set by hand, which never passed the gate."""
    version = register(reseal(bundle.path, seed=5))
    connect().delete_registered_model_alias("vae", "champion")
    if by_hand is not None:
        set_by_hand(by_hand)
    refused = promote_with(trained, version, GATE)
    assert refused.decision == "refused"
    (reason,) = refused.reasons
    assert reason.startswith("a person has set the alias: ")
    assert reason.endswith(f"set it back, or run vae promote {by_hand or '1'} first")
    assert promote_with(trained, version, GATE, force="yes").decision == "promoted"


def test_a_champion_with_another_bundle_is_neither_promoted_again_nor_compared_with(
    two_versions: Path, trained: Trained
) -> None:
    exchange(two_versions, "1", "2")
    found = named_by_ledger(connect(), "vae")
    assert isinstance(found, Refusal)
    assert "version 1 names bundle" in found.reason
    with pytest.raises(VerificationFailed, match=r"^version 1 of vae holds bundle .* was promoted"):
        promote_with(trained, "1", force="yes")
    with pytest.raises(VerificationFailed, match=r"^champion 1 cannot be compared with: version 1"):
        promote_with(trained, "2")
    assert champion() == "1"


@pytest.mark.usefixtures("two_versions")
def test_there_is_no_way_back_to_a_version_that_passed_no_gate() -> None:
    set_by_hand("2", "previous")
    with pytest.raises(VerificationFailed, match="version 2 of vae is previous by its alias alone"):
        rollback("vae", threads=1)
    assert champion() == "1"
    assert [row["decision"] for row in list_decisions("vae")] == ["refused", "promoted"]


def test_there_is_no_way_back_to_another_bundle(two_versions: Path, trained: Trained) -> None:
    promote_with(trained, "2", force="yes")
    exchange(two_versions, "1", "2")
    with pytest.raises(VerificationFailed, match=r"version 1 of vae holds bundle .* was promoted"):
        rollback("vae", threads=1)
    assert champion() == "2"


FORGED = {
    "no record": {},
    "record of another version": {"version": "1"},
    "record that was refused": {"version": "2"},
}


@pytest.mark.parametrize("action", ["promote", "rollback", "delete"])
@pytest.mark.parametrize("record", FORGED.values(), ids=FORGED.keys())
@pytest.mark.usefixtures("two_versions")
def test_an_entry_that_nobody_decided_is_not_carried_out(
    trained: Trained, record: Mapping[str, str], action: str
) -> None:
    assert promote_with(trained, "2").decision == "refused"
    rows = [row for row in list_decisions("vae") if record and row["version"] == record["version"]]
    run_id = rows[0]["run_id"] if rows else "0" * 32
    forge({"action": action, "version": "2", "base": "1", "after": "1"}, run_id)
    client = connect()
    assert moving.finish_last_move(client, "vae") == (2, None)
    assert (champion(), alias("previous")) == ("1", None)
    client.get_model_version("vae", "2")  # it is still there
    assert [row["decision"] for row in list_decisions("vae")] == ["refused", "promoted"]
    assert [move.number for move in champion_moves(list_moves(client, "vae"))] == [1]
    assert promote_with(trained, "2", force="now it is decided").decision == "promoted"
    found = named_by_ledger(client, "vae")
    assert isinstance(found, Named)
    assert found.version == "2"


@pytest.mark.usefixtures("two_versions")
def test_record_report_and_ledger_hold_the_digest_of_what_was_decided(
    sealed: Bundle, worse: Bundle, trained: Trained
) -> None:
    promote_with(trained, "2", force="yes")
    rollback("vae", threads=1)
    client = connect()
    for name in ("candidate", "previous"):
        client.delete_registered_model_alias("vae", name)
    delete("vae", "2")
    one, two = sealed.manifest.digest, worse.manifest.digest
    rows = list_decisions("vae")
    assert [(row["action"], row["digest"]) for row in rows] == [
        ("delete", two),
        ("rollback", one),
        ("promote", two),
        ("promote", one),
    ]
    for row in rows:
        path = client.download_artifacts(row["run_id"], "decision.json")
        assert json.loads(Path(path).read_text())["digest"] == row["digest"]
    assert [move.digest for move in list_moves(client, "vae")] == [one, two, one, two]


def strip_digests() -> None:
    """Make the store what it was before digests were recorded."""
    client = connect()
    for move in list_moves(client, "vae"):
        client.delete_model_version_tag(ledger_name("vae"), str(move.number), "digest")
        client.delete_tag(move.run_id, "digest")


@pytest.mark.usefixtures("two_versions")
def test_a_record_from_before_digests_counts_until_its_version_is_promoted_again(
    trained: Trained,
) -> None:
    strip_digests()
    found = named_by_ledger(connect(), "vae")
    assert isinstance(found, Named)
    assert str(found.warning).endswith("with what was promoted: run vae promote 1")
    decision = promote_with(trained, "1")
    assert "without a champion to compare with" in decision.reasons[0]
    found = named_by_ledger(connect(), "vae")
    assert isinstance(found, Named)
    assert (found.warning, found.move[0]) == (None, 2)


def spoil_record(tag: str, value: str | None) -> Any:
    def spoil(client: Any, run_id: str) -> None:
        client.delete_tag(run_id, tag) if value is None else client.set_tag(run_id, tag, value)

    return spoil


def delete_record(client: Any, run_id: str) -> None:
    client.delete_run(run_id)


RECORDS = {
    "deleted": (
        lambda client, run_id: client.delete_run(run_id),
        "was deleted: run vae promote VERSION,",
    ),
    "refused": (spoil_record("decision", "refused"), "says refused"),
    "accepted": (spoil_record("decision", "accepted"), "says accepted"),
    "of another version": (spoil_record("version", "2"), "is of a promote of version 2"),
    "of another action": (spoil_record("action", "rollback"), "is of a rollback of version 1"),
    "of another bundle": (spoil_record("digest", "0" * 64), "is of bundle 000000000000, the move"),
    "of no bundle": (spoil_record("digest", None), "is of bundle none, the move of "),
    "of another time": (spoil_record("moved_at", "2026-01-01T00:00:00"), "is of another move"),
    "of no time": (spoil_record("moved_at", None), "is of another move"),
}


@pytest.mark.parametrize(("spoil", "said"), RECORDS.values(), ids=RECORDS.keys())
@pytest.mark.usefixtures("two_versions")
def test_a_move_without_its_record_is_not_followed(spoil: Any, said: str) -> None:
    client = connect()
    spoil(client, list_decisions("vae")[0]["run_id"])
    found = named_by_ledger(client, "vae")
    assert isinstance(found, Refusal)
    assert found.reason.startswith("the ledger names version 1, but its record, run ")
    assert said in found.reason


@pytest.mark.usefixtures("two_versions")
def test_a_record_among_other_runs_is_none() -> None:
    """Its tags are right, but it is not among the decisions on this model."""
    client = connect()
    real = client.get_run(list_decisions("vae")[0]["run_id"])
    tags = {key: value for key, value in real.data.tags.items() if not key.startswith("mlflow.")}
    other = client.create_run(client.create_experiment("others"), tags=tags).info.run_id
    base = {"action": "promote", "version": "1", "base": "1", "digest": tags["digest"]}
    forge({**base, "after": "1", "done": "true"}, other)
    found = named_by_ledger(client, "vae")
    assert isinstance(found, Refusal)
    assert "is not among the decisions, or was deleted" in found.reason


@pytest.mark.usefixtures("two_versions")
def test_a_record_counts_for_one_move() -> None:
    """An entry that names the record of an earlier move of this version was not decided."""
    move = list_moves(connect(), "vae")[0]
    base = {"action": "promote", "version": "1", "base": "1", "digest": str(move.digest)}
    forge({**base, "after": "1", "done": "true"}, move.run_id)
    found = named_by_ledger(connect(), "vae")
    assert isinstance(found, Refusal)
    assert "is of another move" in found.reason


WHOLE = {"action": "promote", "version": "2", "base": "1", "after": "1", "done": "true"}
MALFORMED = {
    "empty": {},
    "unknown action": {**WHOLE, "action": "crown"},
    "no action": {key: value for key, value in WHOLE.items() if key != "action"},
    "no version": {key: value for key, value in WHOLE.items() if key != "version"},
    "word for a version": {**WHOLE, "version": "two"},
    "path for a version": {**WHOLE, "version": "../2"},
    "no base": {key: value for key, value in WHOLE.items() if key != "base"},
    "no place": {key: value for key, value in WHOLE.items() if key != "after"},
    "word for a place": {**WHOLE, "after": "last"},
    "place below all": {**WHOLE, "after": "-1"},
    "place after itself": {**WHOLE, "after": "2"},
    "endless place": {**WHOLE, "after": "9" * 400},
}


@pytest.mark.parametrize("tags", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.usefixtures("two_versions")
def test_an_entry_that_vae_cannot_have_written_does_not_count(tags: Mapping[str, str]) -> None:
    client = connect()
    before = list_moves(client, "vae")
    forge(tags)
    assert list_moves(client, "vae") == before
    assert isinstance(named_by_ledger(client, "vae"), Named)


@pytest.mark.usefixtures("two_versions")
def test_an_entry_without_a_run_does_not_count() -> None:
    client = connect()
    before = list_moves(client, "vae")
    client.create_model_version(ledger_name("vae"), "nowhere", tags=WHOLE, await_creation_for=0)
    assert list_moves(client, "vae") == before


@pytest.mark.usefixtures("two_versions")
def test_the_champion_is_promoted_again_after_an_entry_that_nobody_decided(
    trained: Trained,
) -> None:
    forge(WHOLE)
    found = named_by_ledger(connect(), "vae")
    assert isinstance(found, Refusal)
    assert (found.version, champion()) == ("2", "1")
    assert found.reason.endswith("run vae promote VERSION, for the version that should be served")
    assert promote_with(trained, "1").decision == "promoted"
    found = named_by_ledger(connect(), "vae")
    assert isinstance(found, Named)
    assert (found.version, found.move[0]) == ("1", 3)


@pytest.mark.usefixtures("two_versions")
def test_an_entry_that_came_too_late_cannot_be_put_after_a_later_one(trained: Trained) -> None:
    """Its number is lower than that of the move which really follows, and would win."""
    forge({**WHOLE, "after": "0"})
    assert promote_with(trained, "2", force="yes").decision == "promoted"
    client = connect()
    before = list_moves(client, "vae")
    assert [move.number for move in before] == [1, 3]
    client.set_model_version_tag(ledger_name("vae"), "2", "after", "3")
    assert list_moves(client, "vae") == before
