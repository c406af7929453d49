"""Start the command line as torchrun does, in two processes, and read what they say."""

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tests.e2e.conftest import clean_environment

_TRACEBACK = "Traceback (most recent call last):"
"""The first of torchrun's own lines, after those of the processes."""
MODULE = ("-m", "pipeline.cli")


@dataclass(frozen=True)
class Ended:
    """What torchrun and its processes left behind."""

    exit_code: int
    stdout: str
    said: tuple[str, ...]
    """The lines of the processes on stderr."""
    exit_codes: tuple[int, ...]
    """Those of the processes that failed, as torchrun reports them."""
    seconds: float


class Torchrun:
    """A running torchrun with two processes, each on one thread."""

    def __init__(self, folder: Path, *arguments: object, program: tuple[str, ...] = MODULE) -> None:
        self.folder, self._output = folder, folder / "torchrun"
        self._output.mkdir(exist_ok=True)
        launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
        env = clean_environment(folder, {"OMP_NUM_THREADS": "1"})
        env["PYTHONPATH"] = os.pathsep.join(sys.path)
        with self._open("stdout") as stdout, self._open("stderr") as stderr:
            self.process = subprocess.Popen(
                [*launch, "2", *program, *map(str, arguments)],
                cwd=folder,
                env=env,
                stdout=stdout,
                stderr=stderr,
            )

    def _open(self, name: str) -> TextIO:
        return (self._output / name).open("w")

    def wait_for(self, start: str) -> None:
        """Return when a line that starts so has been written."""
        while not any(line.startswith(start) for line in self._lines()):
            assert self.process.poll() is None, self._lines()
            time.sleep(0.02)

    def pid(self, rank: int) -> int:
        """Return the process id of a process."""
        parent = self.process.pid
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            environment = Path(f"/proc/{child}/environ").read_text().split("\0")
            if f"RANK={rank}" in environment:
                return int(child)
        raise LookupError(rank)

    def wait(self) -> Ended:
        """Return what is left when all have ended."""
        started = time.monotonic()
        exit_code = self.process.wait()
        seconds = time.monotonic() - started
        lines = self._lines()
        codes = [re.match(r"  exitcode  : (-?\d+) ", line) for line in lines]
        end = next(
            (i for i, line in enumerate(lines) if line == "Traceback (most recent call last):"),
            None,
        )
        return Ended(
            exit_code,
            (self._output / "stdout").read_text(),
            tuple(line for line in lines[:end] if line and not re.match(r"[WE]\d{4} ", line)),
            tuple(int(code[1]) for code in codes if code),
            seconds,
        )

    def _lines(self) -> list[str]:
        return (self._output / "stderr").read_text().splitlines()


def torchrun(folder: Path, *arguments: object, program: tuple[str, ...] = MODULE) -> Ended:
    """Run two processes to their end."""
    return Torchrun(folder, *arguments, program=program).wait()
