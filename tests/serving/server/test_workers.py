"""Worker processes: one that is killed is replaced, and none outlives its parent."""

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.engine import Engine
from serving.errors import VerificationFailed
from serving.server.version_follower import ServedVersion
from serving.server.worker import Worker
from tests.serving.conftest import SEALED
from tests.serving.running import SERVE, Running, serve
from tests.serving.server.asking import REQUEST, asking, head, metrics, wait_for
from tests.serving.server.settings import make_settings

HEAVY = {
    "torch",
    "mlflow",
    "pandas",
    "onnx",
    "onnxscript",
    "matplotlib",
    "pyarrow",
    "opentelemetry",
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with two workers."""
    folder = tmp_path_factory.mktemp("two_workers")
    with serve(folder, SEALED, "--workers", "2", "--drain", "1") as running:
        yield running


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_worker_is_replaced_while_the_other_answers(
    two_workers: Running, engine: Engine
) -> None:
    first, second = two_workers.children()
    with asking(two_workers, {two_workers.version: engine}) as counts:
        wait_for("all ask", lambda: len(counts.answers) == 3)
        before = metrics(two_workers)
        os.kill(first, signal.SIGKILL)
        wait_for("it is gone", lambda: not alive(first))
        answered = counts.answers.total()
        wait_for("the other answers", lambda: counts.answers.total() > answered + 30)
        wait_for("it is replaced", lambda: len(two_workers.children()) == 2)
        wait_for(
            "all are ready",
            lambda: {worker_of(two_workers) for _ in range(20)} == {*two_workers.children()},
        )
        failed = len(counts.failed)
        answered = counts.answers.total()
        wait_for("both answer", lambda: counts.answers.total() > answered + 30)
    assert second in two_workers.children()
    assert counts.wrong == []
    # only requests in progress in the killed process are lost
    assert len(counts.failed) == failed <= 3
    after = metrics(two_workers)
    counters = [name for name in before if name.endswith("_total") or "_bucket" in name]
    assert counters
    assert [name for name in counters if after[name] < before[name]] == []
    assert after["vae_ready"] == 2


def worker_of(server: Running) -> int:
    """Return the process that a new connection reaches, found by its socket's other end."""
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET /v2/health/ready HTTP/1.1\r\nhost: here\r\n\r\n")
        assert client.recv(2**16).startswith(b"HTTP/1.1 200")
        port = f":{client.getsockname()[1]:04X}"
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        # a set, since the kernel may list a socket twice while others open and close
        here = f":{server.port:04X}"
        found = [x for x in lines if x[1].endswith(here) and x[2].endswith(port) and x[9] != "0"]
        (inode,) = {line[9] for line in found}
        for pid in server.children():
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.readlink(link) == f"socket:[{inode}]":
                        return pid
    raise AssertionError("no worker has this connection")


def test_metrics_are_the_sum_of_all_workers(two_workers: Running) -> None:
    def answers() -> float:
        name = 'vae_requests_total{operation="encode",status="200",transport="rest"}'
        return metrics(two_workers).get(name, 0)

    before, reached = answers(), set[int]()
    for asked in range(1, 200):
        with socket.create_connection(("127.0.0.1", two_workers.port)) as client:
            client.sendall(head(len(REQUEST)) + REQUEST)
            assert client.recv(2**16).startswith(b"HTTP/1.1 200")
        assert answers() == before + asked
        reached.add(worker_of(two_workers))
        if asked >= 10 and len(reached) == 2:
            return
    raise AssertionError("all connections reached one worker")


def test_a_worker_of_a_bundle_loads_nothing_heavy(two_workers: Running) -> None:
    for pid in two_workers.children():
        files = Path(f"/proc/{pid}/maps").read_text()
        assert "onnxruntime" in files
        for name in HEAVY:
            assert f"/site-packages/{name}/" not in files


def test_a_worker_imports_neither_torch_nor_mlflow_nor_stages(tmp_path: Path) -> None:
    """Each process writes the names of its modules when it ends."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, json, os, pathlib, sys\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "def note():\n"
        "    file = folder / f'{os.getpid()}.json'\n"
        "    file.write_text(json.dumps(list(sys.modules)))\n"
        "atexit.register(note)\n"
    )
    root = str(Path(__file__).parents[3])
    path = os.pathsep.join([str(tmp_path), root])
    with serve(tmp_path, SEALED, "--drain", "0.2", PYTHONPATH=path) as running:
        pids = [running.process.pid, *running.children()]
    assert len(pids) == 2
    for pid in pids:
        modules = set(json.loads((tmp_path / f"{pid}.json").read_text()))
        assert "serving.server.settings" in modules
        computes = pid != running.process.pid  # the parent would keep that memory for good
        for name in ("serving.server.worker", "onnxruntime"):
            assert (name in modules) == computes
        assert {name.split(".")[0] for name in modules} & HEAVY == set()
        assert modules & {"pipeline.training", "pipeline.model", "pipeline.registry"} == set()


def test_workers_end_by_themselves_when_their_parent_is_killed(tmp_path: Path) -> None:
    with killed(tmp_path, "--workers", "2", "--drain", "1") as running:
        workers = running.children()
        assert len(workers) == 2
        running.process.kill()
        wait_for("the workers are gone", lambda: not any(map(alive, workers)), patience_s=15)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", running.port))


def test_a_worker_that_starts_while_its_parent_is_killed_ends_too(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*SERVE, "--model", str(SEALED), "--port", "0", "--grpc-port", "0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    running = Running(process, "", "", "", "", tmp_path / "none")
    workers: list[int] = []
    try:
        wait_for("it starts a worker", running.children)
        workers += running.children()
        # it has its arguments from its parent, and imports now
        wait_for("it imports", lambda: "numpy" in Path(f"/proc/{workers[0]}/maps").read_text())
        process.kill()
        process.wait()
        wait_for("the worker is gone", lambda: not any(map(alive, workers)), patience_s=10)
    finally:
        for pid in filter(alive, workers):
            os.kill(pid, signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.close()


@contextlib.contextmanager
def killed(folder: Path, *arguments: str) -> Iterator[Running]:
    """A server that the test kills."""
    server = serve(folder, SEALED, *arguments)
    running = server.__enter__()
    try:
        yield running
    finally:
        with pytest.raises(AssertionError):  # its exit code is not 0
            server.__exit__(None, None, None)
    assert running.process.returncode == -signal.SIGKILL


def test_a_restarted_worker_refuses_another_bundle(tmp_path: Path) -> None:
    """The bundle's folder is replaced while the server runs, and then a worker restarts."""
    settings = make_settings(tmp_path)
    ServedVersion(str(SEALED), None, None, digest="0" * 64).write(settings.version_file)
    with pytest.raises(VerificationFailed, match="holds another bundle than at the start"):
        Worker(settings, 0)
