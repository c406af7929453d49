import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from serving import cpu
from serving.cpu import available_cores, limit_spinning

Files = Mapping[str, str]
"""Paths and contents, of /proc/self/cgroup under that name and of cgroups under theirs."""


def set_machine(monkeypatch: pytest.MonkeyPatch, folder: Path, affinity: int, files: Files) -> None:
    """Simulate a machine: its cores by affinity, and the files of its cgroups."""
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    monkeypatch.setattr(cpu, "CGROUPS", folder)
    monkeypatch.setattr(cpu, "MEMBERSHIP", folder / "membership")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)), raising=False)


def version_1(folder: str, quota: int, period: int = 100_000) -> Files:
    return {
        f"{folder}/cpu.cfs_quota_us": f"{quota}\n",
        f"{folder}/cpu.cfs_period_us": f"{period}\n",
    }


@pytest.mark.parametrize(
    ("affinity", "quota", "cores"),
    [
        (4, "max 100000\n", 4),
        (4, "200000 100000\n", 2),
        (4, "150000 100000\n", 2),
        (4, "50000 100000\n", 1),
        (4, "800000 100000\n", 4),
        (1, "800000 100000\n", 1),
        (4, "", 4),
        (4, "100000 0\n", 4),
        (4, "nonsense\n", 4),
    ],
    ids=[
        "no quota",
        "quota",
        "quota rounded up",
        "below one core",
        "quota above affinity",
        "one core",
        "empty file",
        "period of nothing",
        "nonsense",
    ],
)
def test_cores_are_the_affinity_capped_by_the_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, affinity: int, quota: str, cores: int
) -> None:
    set_machine(monkeypatch, tmp_path, affinity, {"cpu.max": quota})
    assert available_cores() == cores


V2 = "0::/system.slice/vae.service\n"
V1 = "9:name=systemd:/\n4:cpu,cpuacct:/docker/abc\n1:memory:/docker/abc\n"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        (version_1("cpu", 200_000), 2),
        (version_1("cpu", 50_000, 25_000), 2),
        (version_1("cpu", -1), 8),
        ({"cpu/cpu.cfs_quota_us": "200000\n"}, 8),
        ({"membership": V1, **version_1("cpu/docker/abc", 300_000)}, 3),
        ({"membership": V1, **version_1("cpu,cpuacct/docker/abc", 300_000)}, 3),
        ({"membership": V1, **version_1("cpu", 250_000)}, 3),
        (
            {
                "membership": V1,
                **version_1("cpu/docker/abc", 300_000),
                **version_1("cpu/docker", 200_000),
                **version_1("cpu", -1),
            },
            2,
        ),
        ({"membership": V1, **version_1("memory/docker/abc", 100_000)}, 8),
        ({"membership": V2, "system.slice/vae.service/cpu.max": "400000 100000\n"}, 4),
        (
            {
                "membership": V2,
                "system.slice/vae.service/cpu.max": "max 100000\n",
                "system.slice/cpu.max": "100000 100000\n",
            },
            1,
        ),
        ({"membership": f"{V1}0::/\n", "unified/cpu.max": "300000 100000\n"}, 3),
        ({"membership": f"{V1}{V2}", **version_1("cpu/docker/abc", 100_000)}, 1),
        ({"membership": "0::/../..\n", "cpu.max": "200000 100000\n"}, 2),
    ],
    ids=[
        "no cgroup",
        "v1, quota",
        "v1, other period",
        "v1, no quota",
        "v1, no period",
        "v1, nested",
        "v1, nested, both controllers in the name",
        "v1, path of the host",
        "v1, outer quota is less",
        "v1, another controller",
        "v2, nested",
        "v2, outer quota",
        "both, v2 mounted within",
        "both, quota of v1",
        "path outside",
    ],
)
def test_the_quota_is_the_least_of_the_cgroups_around_the_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: Files, cores: int
) -> None:
    set_machine(monkeypatch, tmp_path / "machine", 8, files)
    assert available_cores() == cores


@pytest.mark.parametrize(("count", "cores"), [(3, 3), (None, 1)], ids=["known", "unknown"])
def test_without_affinity_all_cores_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, count: int | None, cores: int
) -> None:
    set_machine(monkeypatch, tmp_path, 8, {})
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
