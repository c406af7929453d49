"""The shared folder of a server: nothing of a killed server stays, nothing of a living one goes."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from serving.errors import VaeError
from serving.server.runtime_folder import runtime_folder

HOLD = """
import sys, time
from serving.server.runtime_folder import runtime_folder
with runtime_folder() as folder:
    (folder / "counters").write_bytes(b"0")
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def make_old(folder: Path) -> None:
    then = time.time() - 3600
    os.utime(folder, (then, then))


def test_the_folder_is_gone_after_the_block(temporary: Path) -> None:
    with runtime_folder() as folder:
        assert folder.parent == temporary
        (folder / "counters").write_bytes(b"0")
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_the_folder_of_a_killed_server_is_removed_and_that_of_a_living_one_is_not(
    temporary: Path,
) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        folder = Path(other.stdout.readline().strip())
        make_old(folder)
        with runtime_folder():
            assert folder.exists()
        other.kill()
        other.wait()
    make_old(folder)
    with runtime_folder() as own:
        assert list(temporary.iterdir()) == [own]


def test_a_folder_that_was_made_just_now_may_be_about_to_be_locked(temporary: Path) -> None:
    (temporary / "vae-server-new").mkdir()
    with runtime_folder():
        assert (temporary / "vae-server-new").exists()


def test_a_missing_temporary_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with (
        pytest.raises(VaeError, match=r"cannot make a temporary folder: .*TMPDIR"),
        runtime_folder(),
    ):
        pass
