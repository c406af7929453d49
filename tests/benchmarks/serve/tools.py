"""The programs that the benchmark of servers needs, beside what the environment has.

`python -m tests.benchmarks.serve.tools` names those that are missing, and how to install them; it
needs no other package, so that it can run before an environment is made.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

PACKAGES: Mapping[str, str] = {
    "wrk": "wrk",
    "h2load": "nghttp2-client",
    "taskset": "util-linux",
    "python3.11": "python3.11 python3.11-venv",
}
"""Programs, and Debian's packages that have them."""
CORES = 2
"""One for the server and one for the load."""


def missing() -> list[str]:
    """Return a line for each thing that is missing."""
    lines = [
        f"{program} is missing: apt-get install {package}"
        for program, package in PACKAGES.items()
        if shutil.which(program) is None
    ]
    if shutil.which("python3.11") and not _makes_environments():
        lines.append("python3.11 cannot make environments: apt-get install python3.11-venv")
    if (cores := len(os.sched_getaffinity(0))) < CORES:
        lines.append(f"{CORES} cores are needed, for the server and for the load; this has {cores}")
    return lines


def require() -> None:
    """Name all that is missing and exit with 2, unless everything is there."""
    if lines := missing():
        print("\n".join(lines), file=sys.stderr)
        sys.exit(2)


def _makes_environments() -> bool:
    command = ["python3.11", "-c", "import ensurepip, venv"]
    return subprocess.run(command, capture_output=True).returncode == 0


if __name__ == "__main__":
    require()
