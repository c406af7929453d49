import os
from pathlib import Path

import pytest

from serving.cpu import available_cores, limit_spinning


def set_machine(monkeypatch: pytest.MonkeyPatch, affinity: int, quota: str | None) -> None:
    """Simulate a machine: its cores by affinity, and the content of the cgroup's cpu.max."""

    def read_text(path: Path) -> str:
        assert path == Path("/sys/fs/cgroup/cpu.max")
        if quota is None:
            raise FileNotFoundError(path)
        return quota

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)), raising=False)
    monkeypatch.setattr(Path, "read_text", read_text)


@pytest.mark.parametrize(
    ("affinity", "quota", "cores"),
    [
        (4, "max 100000\n", 4),
        (4, "200000 100000\n", 2),
        (4, "150000 100000\n", 2),
        (4, "50000 100000\n", 1),
        (4, "800000 100000\n", 4),
        (1, "800000 100000\n", 1),
        (4, None, 4),
        (4, "", 4),
    ],
    ids=[
        "no quota",
        "quota",
        "quota rounded up",
        "below one core",
        "quota above affinity",
        "one core",
        "no cgroup",
        "empty file",
    ],
)
def test_cores_are_the_affinity_capped_by_the_quota(
    monkeypatch: pytest.MonkeyPatch, affinity: int, quota: str | None, cores: int
) -> None:
    set_machine(monkeypatch, affinity, quota)
    assert available_cores() == cores


@pytest.mark.parametrize(("count", "cores"), [(3, 3), (None, 1)], ids=["known", "unknown"])
def test_without_affinity_all_cores_count(
    monkeypatch: pytest.MonkeyPatch, count: int | None, cores: int
) -> None:
    set_machine(monkeypatch, 8, None)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert available_cores() == cores


def test_this_machine_has_a_core() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("before", "after"), [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7")], ids=["unset", "chosen"]
)
def test_spinning_is_limited_unless_the_user_has_set_it(
    monkeypatch: pytest.MonkeyPatch, before: dict[str, str], after: str
) -> None:
    monkeypatch.setattr(os, "environ", before)
    limit_spinning()
    assert before == {"GOMP_SPINCOUNT": after}
