"""Start a server on its own core, wait until it is ready, measure its memory, stop it."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.cache import CACHE
from tests.benchmarks.environments import NotInstalled, make_environment
from tests.benchmarks.serve.catalog import Peer
from tests.benchmarks.serve.inputs import ROOT, Inputs
from tests.benchmarks.serve.wires import Wire

READY_TIMEOUT_S = 120
STOP_TIMEOUT_S = 15
PEERS = Path(__file__).with_name("peers")


class NotMeasured(Exception):
    """A server could not be installed or started; the message says why."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server, and the processes that it started."""

    pid: int
    port: int
    grpc_port: int
    ready_s: float
    """Seconds from the start to the first 200 of its health route."""
    announced_s: float | None
    """Seconds from the start to a line of JSON on stdout, which only our server prints."""

    def port_of(self, wire: Wire) -> int:
        """URL or address of such requests."""
        return self.grpc_port if wire.grpc else self.port

    def processes(self) -> list[int]:
        """Return the processes that it consists of now."""
        return list(_family(self.pid))

    def cpu_s(self) -> float:
        """Return the seconds of a core that its processes have taken, the kernel's included."""
        ticks = sum(sum(stat_of(pid)[11:13]) for pid in self.processes())
        return ticks / os.sysconf("SC_CLK_TCK")

    def rss_mib(self) -> float:
        """Return the resident memory of all its processes."""
        return sum(self.rss_mib_of_each())

    def rss_mib_of_each(self) -> list[float]:
        """Return the resident memory of each of its processes."""
        return [_resident(pid) / 2**20 for pid in self.processes()]


def install(peer: Peer) -> Path:
    """Return the folder of a peer's programs; it is made on first use and when its pins change."""
    if not peer.requirements:
        return Path(sys.executable).parent
    try:
        return make_environment(CACHE / peer.folder, peer.requirements)
    except NotInstalled as err:
        raise NotMeasured(f"cannot install {peer.name}: {err}") from err


@contextmanager
def running(peer: Peer, inputs: Inputs, core: int) -> Iterator[Server]:
    """Start the server, and stop all of its processes afterwards."""
    bin_folder = install(peer)
    with tempfile.TemporaryDirectory() as work:
        port, grpc_port, metrics_port = free_ports(3)
        names = {"bin": bin_folder, "bundle": inputs.bundle, "work": work, "peers": PEERS}
        names["site"] = bin_folder.parent / "lib" / "python3.11" / "site-packages"
        names |= {"port": port, "grpc_port": grpc_port, "metrics_port": metrics_port}
        env = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "TMPDIR": work}
        env |= {"GRAPH": str(inputs.graph), "PYTHONPATH": str(PEERS), "OMP_NUM_THREADS": "1"}
        env |= {key: value.format(**names) for key, value in peer.env.items()}
        if not peer.requirements:
            env["PYTHONPATH"] = str(ROOT)
        if peer.prepare:
            _run([part.format(**names) for part in peer.prepare], "cannot save its model", env)
        command = ["taskset", "-c", str(core), *(part.format(**names) for part in peer.command)]
        out, err = Path(work, "stdout.log"), Path(work, "stderr.log")
        with out.open("wb") as stdout, err.open("wb") as stderr:
            started = time.perf_counter()
            process = subprocess.Popen(
                command, stdout=stdout, stderr=stderr, env=env, cwd=work, start_new_session=True
            )
        try:
            health = f"http://127.0.0.1:{port}{peer.health}"
            ready_s, announced_s = _wait(process, health, peer.announces, out, err, started)
            yield Server(process.pid, port, grpc_port, ready_s, announced_s)
        finally:
            _stop(process)


def free_ports(count: int) -> list[int]:
    """Return ports on which nothing listens."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def wait_for_port(port: int) -> None:
    """Wait until something listens there."""
    deadline = time.perf_counter() + READY_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            if time.perf_counter() > deadline:
                raise
            time.sleep(0.01)


def _run(command: Sequence[str], what: str, env: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=env)
    except OSError as err:
        raise NotMeasured(f"{what}: {err}") from err
    if done.returncode:
        raise NotMeasured(f"{what}: {_last_line(done.stderr)}")


def _wait(
    process: subprocess.Popen[bytes],
    health: str,
    announces: bool,
    out: Path,
    err: Path,
    started: float,
) -> tuple[float, float | None]:
    """Return the seconds to the first 200, and to the line of JSON."""
    ready_s: float | None = None
    announced_s: float | None = None
    while (now := time.perf_counter() - started) < READY_TIMEOUT_S:
        if process.poll() is not None:
            reason = _last_line(out.read_text() + err.read_text())
            raise NotMeasured(f"exit code {process.returncode}: {reason}")
        if announced_s is None and announces and b"\n" in out.read_bytes():
            announced_s = now
        if ready_s is None and _healthy(health):
            ready_s = time.perf_counter() - started
        if ready_s is not None and (announced_s is not None or not announces):
            return ready_s, announced_s
        time.sleep(0.01)
    raise NotMeasured(f"not ready after {READY_TIMEOUT_S} s: {_last_line(err.read_text())}")


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:  # URLError is one
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, and kill the processes that outlive it."""
    family = _family(process.pid)
    _signal(process.pid, signal.SIGTERM)
    deadline = time.perf_counter() + STOP_TIMEOUT_S
    while time.perf_counter() < deadline and any(_born(pid) == at for pid, at in family.items()):
        process.poll()  # otherwise it would stay as a zombie
        time.sleep(0.05)
    for pid, at in family.items():
        if _born(pid) == at:  # not another process that has its number now
            _signal(pid, signal.SIGKILL)
    process.wait()


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _family(pid: int) -> dict[int, int]:
    """Return a process and its descendants, with their start times."""
    parents = {int(path.name): stat_of(int(path.name))[1] for path in Path("/proc").glob("[0-9]*")}
    found = [pid]
    for parent in found:  # the list grows while it is read
        found += [child for child, its_parent in parents.items() if its_parent == parent]
    return {each: _born(each) for each in found}


def _born(pid: int) -> int:
    """Return the clock ticks from boot to its start; 0 if it has ended."""
    return stat_of(pid)[19]


def stat_of(pid: int) -> list[int]:
    """Return the numbers of /proc/PID/stat after the state; all are 0 if it has ended."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return [0] * 50
    return [0] * 50 if state == "Z" else [0, *map(int, numbers)]


def _resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][-200:] if lines else "it said nothing"
