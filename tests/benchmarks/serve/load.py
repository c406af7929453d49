"""Peak load, closed loop: wrk for REST, h2load for gRPC. Both are C, and use one thread.

In: a request and where to send it. Out: a `Load`. A request that fails makes the cell a failure.
"""

import json
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.benchmarks.serve import tools
from tests.benchmarks.serve.wires import Request


def two_cores() -> tuple[int, int]:
    """Return a core for the server and one for the load; exit with 2 if something is missing."""
    tools.require()
    server, load, *_ = sorted(os.sched_getaffinity(0))
    return server, load


@dataclass(frozen=True, slots=True)
class Load:
    """The result of one load."""

    requests_s: float
    p50_ms: float
    p99_ms: float
    others: float = 0.0
    """Cores that other programs used meanwhile."""
    cpu_us: float = float("nan")
    """Microseconds of a core that the server took for a request, if they were measured."""


def run_wrk(port: int, request: Request, connections: int, seconds: float) -> Load:
    """POST over open `connections`, each with one request at a time; 0 if no answer came."""
    with tempfile.NamedTemporaryFile() as body:
        Path(body.name).write_bytes(request.body)
        headers = [f"{name}: {value}" for name, value in request.headers.items()]
        options = ["-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "20s"]
        script = ["-s", str(Path(__file__).with_name("post.lua"))]
        url = f"http://127.0.0.1:{port}{request.path}"
        text = _output("wrk", *options, *script, url, "--", body.name, *headers)
    found = json.loads(text.splitlines()[-1])
    if found["failed"]:
        raise ValueError(f"{found['failed']} of {found['requests']} requests failed")
    return Load(found["requests"] / found["seconds"], found["p50_ms"], found["p99_ms"])


def run_h2load(
    port: int, request: Request, connections: int, seconds: float, answer_bytes: int
) -> Load:
    """Do the same over gRPC. Its errors are a 200 without a message, so bytes are counted too."""
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder, "body"), Path(folder, "log")
        body.write_bytes(request.body)
        headers = [f"--header={name}: {value}" for name, value in request.headers.items()]
        text = _output(
            "h2load",
            *("-t1", f"-c{connections}", "-m1", f"-D{seconds:.0f}", f"--data={body}"),
            *(*headers, f"--log-file={log}", f"http://127.0.0.1:{port}{request.path}"),
        )
        rows = np.loadtxt(log, dtype=np.int64, ndmin=2)
    done = _find(r"(\d+) done", text)
    refused = done - _find(r"status codes: (\d+) 2xx", text)
    if not len(rows):
        return Load(0, 0, 0)
    if refused > 0:  # below 0 if the header fields of an answer came, and the time was over
        raise ValueError(f"{refused} of {done} requests failed")
    data = _find(r"\((\d+)\) data", text)
    if abs(data / done / answer_bytes - 1) > 0.01 + connections / done:
        raise ValueError(f"answers have {data / done:.0f} bytes, should be {answer_bytes}")
    p50, p99 = np.percentile(rows[:, 2], (50, 99)) / 1e3
    return Load(done / seconds, float(p50), float(p99))


def _find(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"no {pattern!r} in: {text[-300:]}")
    return int(found[1])


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{command[0]} failed: {done.stderr.strip()[-300:]}")
    return done.stdout
