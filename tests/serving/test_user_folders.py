"""Where models are cached if a user has no home, or one that cannot be written."""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from serving import user_folders
from serving.errors import VaeError
from serving.user_folders import cache_folder, ensure_home

NOBODY = ("unshare", "--user", "--map-user=12345", "--map-group=12345")
"""Runs a command as a user that has no name and no home, and yet its caller's files."""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of temporary files; there is no other setting."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    user_folders._private_folder.cache_clear()
    return folder


def private(temporary: Path) -> Path:
    return temporary / f"vae-pipeline-{os.geteuid()}"


def test_the_cache_is_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "50% off #1 ü"))
    assert cache_folder() == tmp_path / "50% off #1 ü" / ".cache" / "vae-pipeline"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "vae-pipeline"


@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME"])
def test_a_cache_that_cannot_be_made_is_a_private_temporary_folder(
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variable: str,
) -> None:
    monkeypatch.setenv(variable, "/proc/no")
    assert cache_folder() == cache_folder() == private(temporary)
    assert private(temporary).stat().st_mode & 0o777 == 0o700
    (said,) = [row for row in caplog.records if row.levelno == logging.WARNING]  # said once
    assert str(private(temporary)) in said.getMessage()
    assert "set XDG_CACHE_HOME" in said.getMessage()


def lay_open(folder: Path) -> None:
    folder.mkdir(mode=0o755)


def lay_link(folder: Path) -> None:
    (folder.parent / "trap").mkdir(mode=0o700)
    folder.symlink_to(folder.parent / "trap")


def lay_file(folder: Path) -> None:
    folder.touch(mode=0o600)


@pytest.mark.parametrize("trap", [lay_open, lay_link, lay_file], ids=["open", "link", "file"])
def test_a_temporary_folder_that_is_not_private_is_refused(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, trap: object
) -> None:
    assert callable(trap)
    trap(private(temporary))
    monkeypatch.setenv("HOME", "/proc/no")
    with pytest.raises(VaeError, match="does not belong to this user alone: set XDG_CACHE_HOME"):
        cache_folder()


def test_a_temporary_folder_of_another_user_is_refused(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    (temporary / f"vae-pipeline-{other}").mkdir(mode=0o700)
    monkeypatch.setenv("HOME", "/proc/no")
    with pytest.raises(VaeError, match="does not belong to this user alone: set XDG_CACHE_HOME"):
        cache_folder()


def test_no_temporary_folder_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/no")
    monkeypatch.setenv("HOME", "/proc/no")
    with pytest.raises(VaeError, match="no temporary folder can be written: set XDG_CACHE_HOME"):
        cache_folder()


def test_a_home_that_exists_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/proc/no")
    ensure_home()
    assert os.environ["HOME"] == "/proc/no"


def namespaces() -> bool:
    """Whether this machine lets a user be another one in a namespace."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NOBODY, "true"], capture_output=True).returncode == 0


@pytest.mark.slow
def test_a_user_without_a_name_gets_a_private_home(temporary: Path) -> None:
    if not namespaces():
        pytest.skip("a user cannot be another one here")
    program = (
        "import os; from serving.user_folders import cache_folder; print(cache_folder());"
        "print(os.environ['HOME'])"
    )
    env = {"PATH": os.environ["PATH"], "TMPDIR": str(temporary)}
    done = subprocess.run(
        [*NOBODY, sys.executable, "-c", program], env=env, capture_output=True, text=True
    )
    home = str(temporary / "vae-pipeline-12345")
    assert done.stdout.split() == [f"{home}/.cache/vae-pipeline", home], done.stderr
    assert done.stderr == (
        f"this user has no home folder: using {home}; "
        "set HOME to a folder that this user can write to\n"
    )
