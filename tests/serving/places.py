"""Places where programs often break, each as the beginning of a command that runs another there."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.serving.running import SERVE

VAE = SERVE[:-1]
ASCII = {"LC_ALL": "POSIX", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def inside(script: str) -> tuple[str, ...]:
    """Run a command after a shell script, and with its redirections."""
    return ("sh", "-c", f'{script} exec "$@"', "sh")


def mounted(script: str) -> tuple[str, ...]:
    """Run a command with mounts that only it sees."""
    return ("unshare", "--mount", *inside(f"set -e; {script};"))


READ_ONLY = mounted('mount --bind "$PWD" "$PWD"; mount -o remount,bind,ro /; cd "$PWD"')
"""All is read-only but the working folder."""
ALL_READ_ONLY = mounted("mount -o remount,bind,ro /; cd /")
NO_SHARED_MEMORY = mounted("umount -l /dev/shm; mount -t tmpfs -o ro none /dev/shm")


def mounts() -> bool:
    """Whether this user may mount file systems, as root in most containers of CI may."""
    with tempfile.TemporaryDirectory() as folder:
        return not subprocess.run([*READ_ONLY, "true"], cwd=folder, capture_output=True).returncode


needs_mounts = pytest.mark.skipif(not mounts(), reason="this user may not mount file systems")


def as_unknown_user() -> tuple[str, ...]:
    """Run a command as a user without a name and a home, who can read this interpreter."""
    base = Path(sys.base_prefix)
    script = ":"
    for folder in reversed(base.parents):
        if folder.stat().st_mode & 0o005 != 0o005:  # such as the home of root
            script = (
                f'mkdir -p python; mount --bind "{base}" python; '
                f'mount -t tmpfs -o mode=755 none "{folder}"; mkdir -p "{base}"; '
                f'mount --bind python "{base}"'
            )
            break
    identity = ("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups")
    return (*mounted(script), "env", "-u", "HOME", "-u", "USER", "-u", "LOGNAME", *identity)


def runs_as_another() -> bool:
    """Whether this user may become another, who can read this interpreter and its packages."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        code = "import click, sys; print(sys.base_prefix)"
        command = [*as_unknown_user(), sys.executable, "-c", code]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        return done.stdout.strip() == sys.base_prefix


needs_another_user = pytest.mark.skipif(
    not runs_as_another(), reason="this user may not become another, or hides its python"
)


def run(
    place: Path, prefix: Sequence[str], env: Mapping[str, str], *command: str
) -> "subprocess.CompletedProcess[str]":
    foreign = ("MLFLOW_", "TORCH")  # set by make, and by torch in this process
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return subprocess.run(
        [*prefix, *VAE, *command],
        cwd=place,
        env={**inherited, "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(place), **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
