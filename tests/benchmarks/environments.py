"""Environments of their own for peers, whose pins conflict with this project's."""

import subprocess
from collections.abc import Sequence
from pathlib import Path


class NotInstalled(Exception):
    """An environment could not be made; the message has the last line of pip's error."""


def make_environment(folder: Path, requirements: Sequence[str]) -> Path:
    """Return a folder of programs; it is made on first use and when the requirements change."""
    marker, wanted = folder / "installed.txt", "\n".join(requirements)
    if not marker.exists() or marker.read_text() != wanted:
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-qq"]
        _run(["python3.11", "-m", "venv", "--clear", str(folder)])
        _run([*pip, "--disable-pip-version-check", *requirements])
        marker.write_text(wanted)
    return folder / "bin"


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as err:
        raise NotInstalled(str(err)) from err
    if done.returncode:
        raise NotInstalled((done.stderr.strip().splitlines() or ["no reason given"])[-1])
