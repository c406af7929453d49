"""Start a server in a process of its own, as a user does."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SERVE = (sys.executable, "-m", "pipeline.cli", "serve")
STOP_S = 30


@dataclass(frozen=True, slots=True)
class Running:
    """A server that has announced that it is ready."""

    process: "subprocess.Popen[bytes]"
    rest: str
    grpc: str
    version: str
    digest: str
    log: Path
    """File of what it writes to stderr."""

    @property
    def port(self) -> int:
        """Return the port of REST."""
        return int(self.rest.rsplit(":", 1)[1])

    def children(self) -> list[int]:
        """Return the ids of its worker processes."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        pids = [int(pid) for task in tasks for pid in task.read_text().split()]
        return [pid for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@contextlib.contextmanager
def serve(folder: Path, model: str | Path, *arguments: str, **variables: str) -> Iterator[Running]:
    """Start `vae serve` in `folder` on free ports; end it with SIGTERM, which must give exit 0.

    Rows are watched only if the arguments say so: else a test would find one process more among the
    children, from a request on that is chosen at random.
    """
    if "--watch-share" not in arguments:
        arguments += ("--watch-share", "0")
    log = folder / "serve.log"
    foreign = ("MLFLOW_", "PYTEST_", "VAE_", "OTEL_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    env |= {"XDG_CACHE_HOME": str(folder / "cache"), **variables}
    command = [*SERVE, "--model", str(model), "--port", "0", "--grpc-port", "0", *arguments]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=stderr
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log.read_text()
        content = json.loads(line)
        yield Running(process, log=log, **content)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        finally:
            if process.stdout is not None:
                process.stdout.close()
    assert code == 0, log.read_text()
