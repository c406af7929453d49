"""Follow the ledger, poll by poll: what is taken up, held back, said and told to the workers."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.registry import aliases as moving
from pipeline.registry.audit_log import list_decisions
from pipeline.registry.ledger import mark_done
from pipeline.registry.promotion import rollback
from serving import champion
from serving.bundle import Bundle
from serving.errors import VerificationFailed
from serving.ledger import Move, ledger_name, list_moves
from serving.mlflow_store import DIGEST_TAG, connect
from serving.server.service import Service
from serving.server.settings import Settings
from serving.server.shared_counters import SharedCounters
from serving.server.supervisor import open_first
from serving.server.version_follower import ServedVersion, VersionFollower
from serving.server.worker import Worker
from serving.source import parse_reference
from tests.pipeline.registry.versions import GATE, promote_with, register
from tests.serving.server.settings import make_settings
from tests.trained_models import Trained

REFERENCE = "models:/vae@champion"


@dataclass(frozen=True, slots=True)
class Following:
    """A follower of a server that has just started, and what it writes."""

    follower: VersionFollower
    settings: Settings

    def poll(self) -> ServedVersion:
        """Poll once; return what the workers are told."""
        self.follower.poll()
        return ServedVersion.read(self.settings.version_file)

    def counter(self, name: str) -> float:
        return self.follower.counters.get(name)


@pytest.fixture
def follow(
    store: Path, sealed: Bundle, worse: Bundle, trained: Trained, tmp_path: Path
) -> Callable[[], Following]:
    """Start to follow a store whose versions are 1, the champion, and 2."""
    for bundle in (worse, sealed):
        register(bundle)
    assert promote_with(trained, "1", GATE).decision == "promoted"

    def start() -> Following:
        settings = make_settings(tmp_path)
        source = open_first(REFERENCE, follow="ledger")
        ServedVersion.of(source).write(settings.version_file)
        registered = parse_reference(REFERENCE)
        assert registered is not None
        counters = SharedCounters(tmp_path / "counters", 2, 0)
        common = settings.version_file, lambda source: None, counters, 600.0
        follower = VersionFollower(REFERENCE, registered, "ledger", source, *common)
        return Following(follower, settings)

    return start


def test_workers_are_told_why_a_version_is_served(
    follow: Callable[[], Following], trained: Trained
) -> None:
    following = follow()
    for decide in (lambda: promote_with(trained, "2", GATE), lambda: rollback("vae", threads=1)):
        served, record = following.poll(), list_decisions("vae")[0]
        assert served.version == record["version"]
        assert served.decision == {
            "action": record["action"],
            "time": record["moved_at"],
            "operator": record["operator"],
            "reasons": record["reasons"],
            "run_id": record["run_id"],
        }
        decide()
    assert following.poll().decision["action"] == "rollback"  # type: ignore[index]
    assert following.poll().version == "1"


def test_a_worker_passes_the_decision_on(tmp_path: Path) -> None:
    """Its service shows it on the page."""
    settings = make_settings(tmp_path)
    decision = {"action": "promote"}
    ServedVersion("x", "vae", "1", "0", {"version": "2"}, decision).write(settings.version_file)
    worker = Worker.__new__(Worker)
    worker._settings, worker._counters = settings, settings.open_counters(1)
    limits = {"max_requests": 1, "max_rows": 1, "timeout_s": 1.0}
    worker._service = Service(worker._counters, **limits)  # type: ignore[arg-type]
    worker._read_version()
    assert (worker._service.decision, worker._service.refused) == (decision, {"version": "2"})


def test_a_move_by_hand_is_said_once_and_over_when_it_is_undone(
    follow: Callable[[], Following], caplog: pytest.LogCaptureFixture
) -> None:
    following = follow()
    decision = following.poll().decision
    connect().set_registered_model_alias("vae", "champion", "2")
    for _ in range(3):
        served = following.poll()
        assert (served.version, served.decision) == ("1", decision)
        assert served.refused is not None
        assert served.refused["version"] == "2"
    assert (following.counter("version_refused"), following.counter("reload_failures")) == (1, 1)
    said = [text for text in caplog.messages if "is refused, still serving 1" in text]
    assert len(said) == 1
    connect().set_registered_model_alias("vae", "champion", "1")
    assert following.poll().refused is None
    assert following.counter("version_refused") == 0


def test_a_version_that_was_held_back_is_taken_up_as_soon_as_it_is_promoted(
    follow: Callable[[], Following], trained: Trained
) -> None:
    following = follow()
    connect().set_registered_model_alias("vae", "champion", "2")
    assert following.poll().refused is not None
    assert promote_with(trained, "2", GATE).decision == "promoted"
    served = following.poll()
    assert (served.version, served.refused) == ("2", None)


def test_a_promotion_in_progress_is_waited_for(
    follow: Callable[[], Following], trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The alias is set, and the ledger does not yet say that the move is done."""
    following, seen = follow(), []

    def poll_first(client: Any, name: str, move: Move, moved: bool = True) -> None:
        done = partial(mark_done, client, name, move, moved)
        monkeypatch.setattr("serving.champion.time.sleep", lambda seconds: done())
        seen.append(following.poll())

    monkeypatch.setattr(moving, "mark_done", poll_first)
    assert promote_with(trained, "2", GATE).decision == "promoted"
    (served,) = seen
    assert (served.version, served.refused) == ("2", None)


def test_a_promotion_that_died_is_not_waited_for_without_end(
    follow: Callable[[], Following], trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    following = follow()
    monkeypatch.setattr(moving, "mark_done", lambda *_: None)
    monkeypatch.setattr(champion, "SETTLE_S", 0.1)
    promote_with(trained, "2", GATE)
    served = following.poll()
    assert served.version == "1"
    assert served.refused is not None
    assert "run vae promote 2" in served.refused["reason"]
    monkeypatch.setattr(moving, "mark_done", mark_done)
    assert promote_with(trained, "2", GATE).reasons == ("version 2 is the champion already",)
    assert following.poll().version == "2"  # the command has finished the move


def test_a_record_from_before_digests_is_served_with_one_warning(
    follow: Callable[[], Following], caplog: pytest.LogCaptureFixture
) -> None:
    client = connect()
    (move,) = list_moves(client, "vae")
    client.delete_model_version_tag(ledger_name("vae"), "1", "digest")
    client.delete_tag(move.run_id, "digest")
    following = follow()
    for _ in range(3):
        assert following.poll().refused is None
    (said,) = [text for text in caplog.messages if "from before digests" in text]
    assert said.endswith("run vae promote 1")
    client.set_model_version_tag("vae", "1", DIGEST_TAG, "0" * 64)
    served = following.poll()
    assert served.refused is not None
    assert "names bundle 000000000000 now, but" in served.refused["reason"]


def test_a_tag_that_changes_while_the_version_is_fetched_is_found(
    follow: Callable[[], Following], trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    following = follow()
    promote_with(trained, "2", GATE)
    monkeypatch.setattr(champion, "open_version", lambda *_: following.follower.source)
    served = following.poll()
    assert served.version == "1"
    assert served.refused is not None
    assert "version 2 of vae became bundle" in served.refused["reason"]


def test_a_start_needs_the_registry_unless_the_ledger_was_followed_before(
    follow: Callable[[], Following], store: Path
) -> None:
    assert open_first(REFERENCE).version == "1"
    connect().set_registered_model_alias("vae", "champion", "2")
    with pytest.raises(VerificationFailed, match="version 2 is vae@champion by its alias alone"):
        follow()
    connect().set_registered_model_alias("vae", "champion", "1")
    follow()
    store.write_bytes(b"no store")
    assert open_first(REFERENCE, follow="ledger").version == "1"


def test_what_is_served_is_written_as_json(tmp_path: Path) -> None:
    file = tmp_path / "served.json"
    decision = {"action": "promote", "operator": "ada"}
    served = ServedVersion("/x", "vae", "1", "0" * 64, decision=decision)
    served.write(file)
    assert json.loads(file.read_text())["decision"] == decision
    assert ServedVersion.read(file) == served
