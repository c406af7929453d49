"""The benchmark of servers names all programs that are missing at once, before it starts."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.benchmarks.serve import tools


def set_machine(
    monkeypatch: pytest.MonkeyPatch, folder: Path, programs: Sequence[str], cores: int
) -> None:
    for program in programs:
        (folder / program).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))


def test_all_that_is_missing_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_machine(monkeypatch, tmp_path, (), cores=1)
    with pytest.raises(SystemExit) as ended:
        tools.require()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "wrk is missing: apt-get install wrk",
        "h2load is missing: apt-get install nghttp2-client",
        "taskset is missing: apt-get install util-linux",
        "python3.11 is missing: apt-get install python3.11 python3.11-venv",
        "2 cores are needed, for the server and for the load; this has 1",
    ]


def test_what_is_there_is_not_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_machine(monkeypatch, tmp_path, ("wrk", "taskset"), cores=2)
    assert [line.split()[0] for line in tools.missing()] == ["h2load", "python3.11"]


@pytest.mark.parametrize(("makes", "lines"), [(True, 0), (False, 1)], ids=["with venv", "without"])
def test_a_python_that_makes_no_environments_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, makes: bool, lines: int
) -> None:
    set_machine(monkeypatch, tmp_path, [*tools.PACKAGES], cores=2)
    monkeypatch.setattr(tools, "_makes_environments", lambda: makes)
    assert len(tools.missing()) == lines
