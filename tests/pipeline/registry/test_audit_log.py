import os
import pwd
import time
from datetime import UTC, datetime, timedelta

import pytest

from pipeline.registry.audit_log import Tenure, champion_at, list_decisions, operator_name
from pipeline.registry.promotion import rollback
from serving.bundle import Bundle
from serving.errors import UsageRefused
from serving.ledger import iso_time
from serving.mlflow_store import connect
from tests.pipeline.registry.versions import promote_with, register
from tests.trained_models import Trained

pytestmark = pytest.mark.usefixtures("store")

STEP = timedelta(milliseconds=1)


def moves() -> list[datetime]:
    """The times at which the champion moved, the first move first."""
    times = [row["moved_at"] for row in list_decisions("vae") if row["moved_at"]]
    return [datetime.fromisoformat(time) for time in reversed(times)]


def at(when: datetime) -> tuple[str | None, bool]:
    tenure = champion_at("vae", when)
    return tenure.version, tenure.certain


def test_who_was_champion_when(sealed: Bundle, worse: Bundle, trained: Trained) -> None:
    """Asked just before and at each move, the champion is none, 1, 2, and 1 again."""
    register(worse)
    register(sealed)
    promote_with(trained, "1")
    promote_with(trained, "2")
    rollback("vae", threads=1)
    first, second, third = moves()
    assert at(first - STEP) == (None, True)
    assert at(first) == ("1", True)
    assert at(second - STEP) == ("1", True)
    assert at(second) == ("2", True)
    assert at(third - STEP) == ("2", True)
    assert at(third) == ("1", True)
    now = datetime.now(UTC)
    assert champion_at("vae", now) == Tenure(version="1", since=third.isoformat(), certain=True)
    began = datetime.fromisoformat(list_decisions("vae")[-1]["time"])
    with pytest.raises(UsageRefused, match=r"nothing is recorded of vae before 20"):
        champion_at("vae", began - STEP)
    with pytest.raises(UsageRefused, match="--at must be a time in the past"):
        champion_at("vae", now + timedelta(hours=1))


def test_a_move_by_hand_shows_in_the_next_record_or_in_the_alias_now(
    sealed: Bundle, worse: Bundle, trained: Trained
) -> None:
    register(worse)
    register(sealed)
    promote_with(trained, "1")
    (first,) = moves()
    connect().set_registered_model_alias("vae", "champion", "2")
    assert at(first) == ("1", False)  # it is 2 now, and the audit does not know since when
    wait_past(first)
    promote_with(trained, "1")  # refused, but its record says which version is champion
    seen = datetime.fromisoformat(list_decisions("vae")[0]["time"])
    assert list_decisions("vae")[0]["decision"] == "refused"
    assert at(seen - STEP) == ("1", False)
    assert champion_at("vae", seen) == Tenure(version="2", since=seen.isoformat(), certain=True)


def wait_past(when: datetime) -> None:
    """Wait until the clock, read in milliseconds, shows a later time."""
    while iso_time(time.time() * 1000) <= when.isoformat(timespec="milliseconds"):
        pass


def test_a_refused_decision_leaves_the_champion_certain(
    sealed: Bundle, worse: Bundle, trained: Trained
) -> None:
    promote_with(trained, register(sealed))
    (first,) = moves()
    wait_past(first)
    promote_with(trained, register(worse))
    seen = datetime.fromisoformat(list_decisions("vae")[0]["time"])
    assert champion_at("vae", seen) == Tenure(version="1", since=first.isoformat(), certain=True)


def test_a_model_without_decisions_has_no_known_champion() -> None:
    connect().create_registered_model("vae")
    assert list_decisions("vae") == []
    with pytest.raises(UsageRefused, match="nothing is recorded of vae before"):
        champion_at("vae", datetime.now(UTC) - STEP)


def test_an_operator_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(number: int) -> str:
        raise KeyError("uid not found")

    monkeypatch.setenv("USER", "somebody-else")  # which anybody can set
    assert operator_name() == pwd.getpwuid(os.getuid()).pw_name
    monkeypatch.setattr("pwd.getpwuid", fail)
    assert operator_name() == str(os.getuid())
