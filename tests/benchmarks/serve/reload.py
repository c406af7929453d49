"""What a start and a move of the alias cost: `python -m tests.benchmarks.serve.reload`.

A server on one core that follows an alias, the load on the other, at a fixed share of the peak. Two
versions take turns; every answer's bytes are compared with those of the version that it names.
"""

import argparse
import os
import select
import shutil
import sqlite3
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from serving.bundle import open_bundle
from serving.engine import Engine
from serving.mlflow_store import DIGEST_TAG, connect
from serving.protocol.http_body import HEADER_LENGTH, decode_response
from tests.benchmarks.serve.exchanges import Answer
from tests.benchmarks.serve.inputs import Array, Inputs, prepare_inputs
from tests.benchmarks.serve.load import run_wrk, two_cores
from tests.benchmarks.serve.openloop import Connection
from tests.benchmarks.serve.wires import V2_BINARY, Request
from tests.e2e.versions import other_model
from tests.serving.running import Running, serve

CONNECTIONS = 32
SHARE = 0.7
"""Share of the peak."""
APART_S = 0.8
"""Seconds between two moves, enough to poll, fetch and take up a version."""
REFERENCE = "models:/vae@champion"
OPTIONS = ("--poll", "0.2", "--drain", "0.5", "--follow", "alias")


@dataclass(slots=True)
class Seen:
    """The results of the requests of one load."""

    latency_ms: list[float] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    failed: int = 0
    mixed: int = 0
    """Answers that are nearer to another version than to the version that they name."""
    inexact: int = 0
    """Answers of the right version whose bytes differ from those of a run without a batch."""

    @property
    def moves(self) -> int:
        """Number of changes of the version between answers."""
        return sum(a != b for a, b in zip(self.versions, self.versions[1:], strict=False))

    def take(self, answer: Answer, due: float, now: float, right: Mapping[str, Array]) -> None:
        """Judge one answer."""
        if answer.status != 200:
            self.failed += 1
            return
        response = decode_response(answer.body, answer.headers.get(HEADER_LENGTH))
        x_loc = response.outputs["x_loc"]
        self.latency_ms.append((now - due) * 1e3)
        self.versions.append(response.version)
        if x_loc.tobytes() == right[response.version].tobytes():
            return
        off = {version: float(np.abs(x_loc - y).max()) for version, y in right.items()}
        if min(off, key=lambda version: off[version]) == response.version:
            self.inexact += 1
        else:
            self.mixed += 1


def measure(inputs: Inputs, moves: int) -> Iterator[str]:
    """Measure start, memory, and moves under load; return one line for each figure."""
    server_core, load_core = two_cores()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        other = other_model(inputs.bundle, folder / "other")
        database = register(folder, [inputs.bundle, other.path])
        variables = {"MLFLOW_TRACKING_URI": f"sqlite:///{database}"}
        os.sched_setaffinity(0, {server_core})  # processes started here inherit it
        with timed(folder, inputs.bundle) as (_, seconds):
            yield f"ready from a bundle folder                {seconds:.2f} s"
        with timed(folder, REFERENCE, **variables) as (_, seconds):
            yield f"ready from models:/, fetched              {seconds:.2f} s"
        with timed(folder, REFERENCE, **variables) as (running, seconds):
            yield f"ready from models:/, cached               {seconds:.2f} s"
            os.sched_setaffinity(0, {load_core})
            yield from memory(running)
            request = V2_BINARY.encode(inputs.x[:1])
            engines = {"1": inputs.bundle, "2": other.path}
            right = {v: answer_of(path, inputs) for v, path in engines.items()}
            peak = run_wrk(running.port, request, CONNECTIONS, 3).requests_s
            rate = peak * SHARE
            yield f"peak, binary, {CONNECTIONS} connections            {peak:.0f} requests/s"
            still = offer(running.port, request, rate, moves * APART_S / 4, right)
            yield show("without moves", still)
            mover = threading.Thread(target=move, args=(database, moves))
            mover.start()
            moving = offer(running.port, request, rate, (moves + 1) * APART_S, right)
            mover.join()
            yield show(f"{moves} moves", moving)
            yield from memory(running)


@contextmanager
def timed(folder: Path, model: str | Path, **variables: str) -> Iterator[tuple[Running, float]]:
    """Start a server; give it, and the seconds until it announced that it is ready."""
    started = time.perf_counter()
    with serve(folder, model, *OPTIONS, **variables) as running:
        yield running, time.perf_counter() - started


def register(folder: Path, bundles: list[Path]) -> Path:
    """Make an sqlite store with a version of each bundle, and the alias on the first."""
    database = folder / "mlflow.db"
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{database}"
    client = connect(create=True)
    client.create_registered_model("vae")
    for number, bundle in enumerate(bundles, 1):
        source = folder / f"version-{number}"
        shutil.copytree(bundle, source / "artifacts" / "bundle")
        digest = open_bundle(bundle).manifest.digest
        client.create_model_version("vae", str(source), tags={DIGEST_TAG: digest})
    client.set_registered_model_alias("vae", "champion", "1")
    return database


def move(database: Path, moves: int) -> None:
    """Move the alias by SQL, since MLflow's client would use the load's core."""
    query = "UPDATE registered_model_aliases SET version = ? WHERE alias = 'champion'"
    start = time.perf_counter()
    for number in range(moves):
        time.sleep(max(0.0, start + (number + 0.5) * APART_S - time.perf_counter()))
        with sqlite3.connect(database, timeout=30) as connection:
            connection.execute(query, (2 - number % 2,))
        connection.close()


def offer(
    port: int, request: Request, rate: float, seconds: float, right: Mapping[str, Array]
) -> Seen:
    """Send requests when they are due, answered or not; keep and judge every answer."""
    count = round(rate * seconds)
    seen = Seen()
    pool = {
        one.socket.fileno(): one for one in (_connect(port, request) for _ in range(CONNECTIONS))
    }
    idle, busy = deque(pool), dict[int, float]()
    answers: list[tuple[Answer, float, float]] = []
    start, at = time.perf_counter(), 0
    while at < count or busy:
        now = time.perf_counter() - start
        while at < count and at / rate <= now and idle:
            fd = idle.popleft()
            busy[fd] = at / rate
            pool[fd].send(pool[fd].exchange.request())
            at += 1
        if now > seconds + 10:
            break
        wait_s = max(0.0, min(at / rate - now, 0.01)) if idle else 0.01
        for fd in select.select([*busy], [], [], wait_s)[0]:
            try:
                answer = pool[fd].receive()
            except ConnectionError:
                seen.failed += 1
                pool.pop(fd).socket.close()
                new = _connect(port, request)
                pool[new.socket.fileno()] = new
                busy.pop(fd)
                idle.append(new.socket.fileno())
                continue
            if answer is not None:
                answers.append((answer, busy.pop(fd), time.perf_counter() - start))
                idle.append(fd)
    for one in pool.values():
        one.socket.close()
    seen.failed += len(busy)
    for answer, due, now in answers:
        seen.take(answer, due, now, right)
    return seen


def show(what: str, seen: Seen) -> str:
    """Return one line of the report."""
    p50, p99, most = np.percentile(seen.latency_ms, (50, 99, 100))
    return (
        f"{what:<16} {len(seen.latency_ms) + seen.failed} requests, {seen.failed} failed, "
        f"{seen.mixed} of mixed versions, {seen.inexact} inexact, {seen.moves} changes of version; "
        f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, most {most:.1f} ms"
    )


def memory(running: Running) -> Iterator[str]:
    """Return the resident memory of each process."""
    for name, pid in (("parent", running.process.pid), ("worker", running.children()[0])):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        yield f"memory of the {name}                      {pages * 4096 / 2**20:.0f} MiB"


def answer_of(bundle: Path, inputs: Inputs) -> Array:
    """Return the answer of a version to the request in a batch of its own."""
    return Engine(open_bundle(bundle)).reconstruct(inputs.x[:1])


def _connect(port: int, request: Request) -> Connection:
    return Connection(port, request, grpc=False)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Starts, and moves of the alias under load")
    parser.add_argument("--moves", type=int, default=50, help="of the alias  [default: 50]")
    parser.add_argument("--preset", default="seed", help="of the model  [default: seed]")
    given = parser.parse_args()
    for line in measure(prepare_inputs(given.preset), given.moves):
        print(line, flush=True)


if __name__ == "__main__":
    main()
