"""Processes of a server: a death, an orphan, a drain, a start that cannot be."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
import pytest

from serving.engine import Engine
from serving.errors import DeviceUnavailable, UsageRefused, VerificationFailed
from serving.protocol import open_inference_pb2 as pb
from serving.server.alias_follower import ServedVersion
from serving.server.auth import Access
from serving.server.rest_messages import Limits
from serving.server.worker import Settings, Worker
from tests.serving.conftest import SEALED
from tests.serving.running import SERVE, Running, serve
from tests.serving.server.asking import CASES, asking, body, metrics, over_grpc, ready, wait_for

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
REQUEST = json.dumps(body(CASES[0])).encode()
PATH = f"/v2/models/{CASES[0].operation}/infer"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with two workers that note what they have loaded when they end."""
    folder = tmp_path_factory.mktemp("pair")
    with serve(folder, SEALED, "--workers", "2", "--drain", "1") as running:
        yield running


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_worker_is_replaced_while_the_other_answers(pair: Running, engine: Engine) -> None:
    first, second = pair.children()
    with asking(pair, {pair.version: engine}) as tally:
        wait_for("all ask", lambda: len(tally.answers) == 3)
        before = metrics(pair)
        os.kill(first, signal.SIGKILL)
        wait_for("it is gone", lambda: not alive(first))
        answered = tally.answers.total()
        wait_for("the other answers", lambda: tally.answers.total() > answered + 30)
        wait_for("it is replaced", lambda: len(pair.children()) == 2)
        wait_for(
            "all are ready", lambda: {worker_of(pair) for _ in range(20)} == {*pair.children()}
        )
        failed = len(tally.failed)
        answered = tally.answers.total()
        wait_for("both answer", lambda: tally.answers.total() > answered + 30)
    assert second in pair.children()
    assert tally.wrong == []
    # what was under way in the killed process is lost, and nothing after it
    assert len(tally.failed) == failed <= 3
    after = metrics(pair)
    counters = [name for name in before if name.endswith("_total") or "_bucket" in name]
    assert counters
    assert [name for name in counters if after[name] < before[name]] == []
    assert after["vae_ready"] == 2


def worker_of(server: Running) -> int:
    """Which process a new connection reaches: the socket's other end says it."""
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET /v2/health/ready HTTP/1.1\r\nhost: here\r\n\r\n")
        assert client.recv(2**16).startswith(b"HTTP/1.1 200")
        port = f":{client.getsockname()[1]:04X}"
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        # a set: the kernel may show a socket twice while others come and go
        here = f":{server.port:04X}"
        found = [x for x in lines if x[1].endswith(here) and x[2].endswith(port) and x[9] != "0"]
        (inode,) = {line[9] for line in found}
        for pid in server.children():
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.readlink(link) == f"socket:[{inode}]":
                        return pid
    raise AssertionError("no worker has this connection")


def test_metrics_are_the_sum_of_all_workers(pair: Running) -> None:
    def answers() -> float:
        name = 'vae_requests_total{operation="encode",status="200",transport="rest"}'
        return metrics(pair).get(name, 0)

    before, reached = answers(), set[int]()
    for asked in range(1, 200):
        with socket.create_connection(("127.0.0.1", pair.port)) as client:
            client.sendall(head(len(REQUEST)) + REQUEST)
            assert client.recv(2**16).startswith(b"HTTP/1.1 200")
        assert answers() == before + asked
        reached.add(worker_of(pair))
        if asked >= 10 and len(reached) == 2:
            return
    raise AssertionError("all connections reached one worker")


def test_a_worker_of_a_bundle_loads_nothing_heavy(pair: Running) -> None:
    for pid in pair.children():
        files = Path(f"/proc/{pid}/maps").read_text()
        assert "onnxruntime" in files
        for name in HEAVY:
            assert f"/site-packages/{name}/" not in files


def test_a_worker_imports_neither_torch_nor_mlflow_nor_stages(tmp_path: Path) -> None:
    """In the processes themselves: each writes the names of its modules when it ends."""
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
        assert {"serving.server.worker", "onnxruntime", "granian"} <= modules
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
        # it has read what to do from its parent, and imports now
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_signal_to_all_processes_drains_like_one_to_the_parent(
    tmp_path: Path, number: signal.Signals
) -> None:
    """A terminal sends SIGINT to the whole group, systemd SIGTERM to the whole unit."""
    with serve(tmp_path, SEALED, "--workers", "2", "--drain", "5") as running:
        slow = Slow(running.port)
        for pid in (*running.children(), running.process.pid):
            os.kill(pid, number)
        assert slow.finish().startswith(b"HTTP/1.1 200")
        assert running.process.wait(20) == 0
    log = running.log.read_text()
    assert "Unexpected exit" not in log
    assert "Traceback" not in log


def head(length: int, *lines: str) -> bytes:
    """The head of an infer request with a body of `length` bytes."""
    lines = (f"POST {PATH} HTTP/1.1", "host: here", f"content-length: {length}", *lines)
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class Slow:
    """A request whose body stops half way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 20)
        # an answered request first: the server has this connection for sure
        self.socket.sendall(head(len(REQUEST)) + REQUEST)
        assert self.socket.recv(2**16).startswith(b"HTTP/1.1 200")
        self.socket.sendall(head(len(REQUEST)) + REQUEST[:40])

    def finish(self) -> bytes:
        """Send the rest, and give the answer; nothing where the server has gone."""
        try:
            self.socket.sendall(REQUEST[40:])
            return self.wait()
        except ConnectionError:
            return b""

    def wait(self) -> bytes:
        """What the server sends, if anything."""
        with self.socket, contextlib.suppress(ConnectionError):
            return self.socket.recv(2**16)
        return b""


@dataclass(slots=True)
class Drained:
    """What clients saw of a server that stops under load."""

    answered: set[str] = field(default_factory=set)
    """Request ids."""
    lost: list[str] = field(default_factory=list)
    """Requests without an answer, on connections that had one before."""
    turned_away: set[str] = field(default_factory=set)
    """Requests on connections that never had an answer."""
    refused: list[str] = field(default_factory=list)
    """Answers that are not 200."""


def keep_asking(port: int, name: str, renew: bool, drained: Drained) -> None:
    """Ask until nothing listens; close a connection when told to, or after each answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    on_this = 0
    for number in range(100_000):
        key = f"{name}-{number}"
        try:
            connection.request("POST", PATH, REQUEST, {"x-request-id": key})
            answer = connection.getresponse()
            answer.read()
        except ConnectionRefusedError:
            return
        except (OSError, http.client.HTTPException) as err:
            if on_this:
                drained.lost.append(f"{key}: {err!r}")
            else:
                drained.turned_away.add(key)
            connection.close()
            on_this = 0
            continue
        on_this += 1
        drained.answered.add(key)
        if answer.status != 200:
            drained.refused.append(f"{key}: {answer.status}")
        if renew or answer.getheader("connection") == "close":
            connection.close()
            on_this = 0


@pytest.mark.parametrize(("workers", "clients"), [(1, 4), (2, 4), (2, 7)])
def test_every_request_that_the_server_had_is_answered_before_it_stops(
    tmp_path: Path, workers: int, clients: int
) -> None:
    drained = Drained()
    arguments = ("--workers", str(workers), "--drain", "10", "--access-log", "--log-format", "json")
    with serve(tmp_path, SEALED, *arguments) as running:
        threads = [
            threading.Thread(
                target=keep_asking, args=(running.port, f"client-{i}", i % 2 == 0, drained)
            )
            for i in range(clients)
        ]
        for thread in threads:
            thread.start()
        wait_for("all ask", lambda: len(drained.answered) > 100)
        slow = Slow(running.port)
        running.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()  # nothing listens now
        assert running.process.poll() is None
        assert slow.finish().startswith(b"HTTP/1.1 200")
        assert running.process.wait(20) == 0
    assert drained.lost == []
    assert drained.refused == []
    logged = map(json.loads, running.log.read_text().splitlines())
    seen = {line["request_id"] for line in logged if "request_id" in line}
    assert drained.answered == seen
    assert not drained.turned_away & seen


def test_a_draining_server_is_not_ready(tmp_path: Path) -> None:
    with serve(tmp_path, SEALED, "--drain", "5") as running, over_grpc(running) as ask:
        with grpc.insecure_channel(running.grpc) as channel:
            call = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=pb.HealthCheckRequest.SerializeToString,
                response_deserializer=pb.HealthCheckResponse.FromString,
            )
            assert call(pb.HealthCheckRequest()).status == 1
            slow = Slow(running.port)  # keeps the server from its end
            running.process.send_signal(signal.SIGTERM)
            wait_for("it drains", lambda: not ready(running)["ready"])
            answer = httpx.get(f"{running.rest}/v2/health/ready")
            assert (answer.status_code, answer.headers["connection"]) == (503, "close")
            assert httpx.get(f"{running.rest}/v2/models/encode/ready").status_code == 503
            assert httpx.get(f"{running.rest}/v2/health/live").status_code == 200
            assert call(pb.HealthCheckRequest()).status == 2
            version, _ = ask(CASES[0])  # who asks all the same is answered
            assert version == running.version
        assert slow.finish().startswith(b"HTTP/1.1 200")


def test_a_request_that_outlasts_the_drain_is_cut(tmp_path: Path) -> None:
    with serve(tmp_path, SEALED, "--drain", "1", "--timeout", "600") as running:
        slow = Slow(running.port)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(20) == 0
        assert slow.wait() == b""


@pytest.fixture(scope="module")
def taken() -> Iterator[int]:
    """A port that something listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def refusal(folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a server that cannot start; stdout must stay empty."""
    result = subprocess.run(
        [*SERVE, *arguments], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert result.stdout == ""
    return result.returncode, result.stderr


ANY = ("--model", str(SEALED), "--port", "0", "--grpc-port", "0")


def test_cuda_that_is_not_there_ends_the_start(tmp_path: Path) -> None:
    code, said = refusal(tmp_path, *ANY, "--device", "cuda")
    assert code == DeviceUnavailable.exit_code == 8
    assert said.startswith("error: device cuda is not available")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("option", ["--port", "--grpc-port"])
def test_a_port_that_is_taken_is_named(tmp_path: Path, taken: int, option: str) -> None:
    code, said = refusal(tmp_path, *ANY, option, str(taken))
    assert code == UsageRefused.exit_code == 2
    assert said == (
        f"error: cannot listen at 127.0.0.1:{taken}: Address already in use; "
        f"choose another with {option}\n"
    )


def test_an_address_of_another_machine_is_named(tmp_path: Path) -> None:
    """Of 192.0.2.0/24, which is for documentation: no machine has it."""
    code, said = refusal(tmp_path, *ANY, "--host", "192.0.2.1")
    assert code == UsageRefused.exit_code
    assert said.splitlines()[-1] == (
        "error: cannot listen at 192.0.2.1: it is no address of this machine; "
        "choose another with --host"
    )


def test_both_protocols_at_one_port_are_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    process = subprocess.Popen(
        [*SERVE, "--model", str(SEALED), "--port", port, "--grpc-port", port, "--drain", "0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()  # comes when it serves, or when it has ended
    process.terminate()
    _, said = process.communicate()
    assert (line, process.returncode) == ("", UsageRefused.exit_code)
    assert "--grpc-port" in said


@pytest.mark.parametrize("damage", ["empty", "damaged"])
def test_a_bundle_that_is_not_whole_ends_the_start(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    if damage == "damaged":
        for file in SEALED.iterdir():
            content = file.read_bytes()
            (folder / file.name).write_bytes(content + b" " * (file.name == "decoder.onnx"))
    code, said = refusal(tmp_path, *ANY, "--model", str(folder))
    assert code == VerificationFailed.exit_code == 7
    assert said.startswith(f"error: {folder}")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("bad", ["no file", "no certificate", "key alone"])
def test_bad_tls_files_end_the_start(tmp_path: Path, bad: str) -> None:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    if bad == "no certificate":
        chain.write_text("nonsense")
        key.write_text("nonsense")
    arguments = ["--tls-key", str(key)]
    if bad != "key alone":
        arguments += ["--tls-cert", str(chain)]
    code, said = refusal(tmp_path, *ANY, *arguments)
    assert code == UsageRefused.exit_code
    assert said.startswith("error: --tls" if bad == "key alone" else f"error: cannot use {chain}")
    assert len(said.splitlines()) == 1


def test_a_name_of_the_host_is_resolved(tmp_path: Path) -> None:
    with serve(tmp_path, SEALED, "--host", "localhost", "--drain", "0.2") as running:
        assert running.rest.removeprefix("http://").rsplit(":", 1)[0] in ("127.0.0.1", "[::1]")
        assert httpx.get(f"{running.rest}/v2/health/ready").status_code == 200


def test_a_worker_serves_no_other_bundle_than_its_neighbours(tmp_path: Path) -> None:
    """The folder is replaced while the server runs, and a worker has to start again."""
    settings = Settings(
        folder=tmp_path,
        parent=os.getpid(),
        host="127.0.0.1",
        port=0,
        grpc_port=0,
        workers=1,
        device="cpu",
        threads=1,
        max_requests=8,
        max_queue=8,
        max_connections=8,
        timeout_s=1,
        drain_s=1,
        limits=Limits(),
        access=Access(),
        tls=None,
        log_format="plain",
        access_log=False,
    )
    ServedVersion(str(SEALED), None, None, digest="0" * 64).write(settings.version_file)
    with pytest.raises(VerificationFailed, match="holds another bundle than at the start"):
        Worker(settings, 0)
