"""The limit of memory of cgroups of both versions, of the process's own one and those around it."""

from pathlib import Path

import pytest

from serving.errors import DataRefused
from serving.io import memory
from serving.io.memory import memory_limit, require_memory

GIB = 1 << 30


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN", tmp_path / "own")
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 16 * GIB // 4096}.get)
    return tmp_path


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {}, 16 * GIB),
        ("0::/\n", {"memory.max": "max\n"}, 16 * GIB),
        ("0::/\n", {"memory.max": f"{2 * GIB}\n"}, 2 * GIB),
        ("0::/jobs/7\n", {"jobs/7/memory.max": f"{GIB}\n", "memory.max": "max\n"}, GIB),
        ("0::/jobs/7\n", {"jobs/7/memory.max": "max\n", "jobs/memory.max": f"{GIB}\n"}, GIB),
        (
            "5:cpu:/\n4:memory:/jobs/7\n0::/\n",
            {"memory/jobs/7/memory.limit_in_bytes": f"{3 * GIB}\n"},
            3 * GIB,
        ),
        # in a container the path is the host's, and the root is the container's own
        (
            "4:memory:/docker/abc\n",
            {"memory/memory.limit_in_bytes": f"{2 * GIB}\n"},
            2 * GIB,
        ),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, 16 * GIB),
    ],
)
def test_the_least_limit_counts(
    cgroups: Path, own: str, files: dict[str, str], expected: int
) -> None:
    (cgroups / "own").write_text(own)
    for name, text in files.items():
        (cgroups / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroups / name).write_text(text)
    assert memory_limit() == expected


def test_where_there_are_no_cgroups_the_machine_s_memory_counts(cgroups: Path) -> None:
    assert memory_limit() == 16 * GIB
    require_memory("x.npy", 16 * GIB)
    with pytest.raises(DataRefused, match=r"x\.npy needs 17\.2 GB of memory, and there are 17\.2"):
        require_memory("x.npy", 16 * GIB + 1)
