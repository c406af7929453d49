"""The benchmark of servers: turns beside another server, the floor of each wire, Triton's model."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.benchmarks.serve import pairs, pairs_report, transports
from tests.benchmarks.serve.catalog import ECHO, OURS, PEERS, TRITON, Peer
from tests.benchmarks.serve.cells import Cell, Results
from tests.benchmarks.serve.inputs import Inputs
from tests.benchmarks.serve.load import Load
from tests.benchmarks.serve.noise import Quiet
from tests.benchmarks.serve.openloop import Offered, ask
from tests.benchmarks.serve.pairs import Comparison, Pair, Turn, compare
from tests.benchmarks.serve.peers import on_triton
from tests.benchmarks.serve.servers import NotMeasured, Server, running
from tests.benchmarks.serve.wires import V2_BINARY, V2_GRPC, Request, Wire

CELL = Cell("triton", "gRPC", 1, 32)
SPEEDS = {OURS.name: 3000.0, TRITON.name: 1500.0, ECHO.name: 6000.0}


class Machine:
    """Stands for the machine: what starts, what is sent to it, and which start of Triton fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fails: Callable[[int], bool]) -> None:
        self.started: list[str] = []
        self.asked: list[tuple[str, str, int]] = []
        """Server, path and size of the answer of each peak."""
        self.offered: list[tuple[str, float, int]] = []
        """Server, rate and bytes of a request."""
        self._fails = fails
        for name in ("running", "checked_request", "peak", "offer", "version_of"):
            monkeypatch.setattr(pairs, name, getattr(self, name))
        monkeypatch.setattr(Server, "cpu_s", lambda server: 0.0)
        monkeypatch.setattr(pairs, "WARM_UP_S", 0)

    @contextmanager
    def running(self, peer: Peer, inputs: Inputs, core: int) -> Iterator[Server]:
        self.started.append(peer.name)
        if peer is TRITON and self._fails(self.started.count(TRITON.name)):
            raise NotMeasured("exit code -11: it said nothing")
        number = [*SPEEDS].index(peer.name)
        yield Server(number, number, number, 0.0, None)

    def checked_request(
        self, server: Server, wire: Wire, inputs: Inputs, rows: int
    ) -> tuple[Request, int]:
        return Request("/infer", bytes(rows)), 3000 + rows

    def peak(
        self, server: Server, wire: Wire, request: Request, conns: int, seconds: int, size: int
    ) -> Load:
        name = [*SPEEDS][server.pid]
        if seconds:
            self.asked.append((name, request.path, size))
        return Load(SPEEDS[name], 1, 2)

    def offer(self, port: int, request: Request, rate: float, seconds: float, **_: Any) -> Offered:
        if seconds:
            self.offered.append(([*SPEEDS][port], rate, len(request.body)))
        status = np.full(round(rate), 200)
        return Offered(1, status, np.full(len(status), 5.0), np.zeros(len(status)), 0, 0)

    def version_of(self, server: Server) -> str:
        return "triton 2.51.0"


def run(
    *, turns: int, halves: bool = False, tell: Callable[[Pair], None] | None = None
) -> Comparison:
    rows = Inputs(Path("bundle"), np.zeros((64, 28, 28), np.uint8))
    quiet = Quiet((0, 0), budget_s=0)
    return compare(TRITON, rows, 3, turns, quiet, tell or (lambda pair: None), halves=halves)


def make_load(requests_s: float, p99_ms: float = 1, cpu_us: float = 1) -> Load:
    return Load(requests_s, p99_ms / 2, p99_ms, cpu_us=cpu_us)


def make_pair(*turns: tuple[float, float, float]) -> Pair:
    """Return a pair of requests a second of ours, of theirs and of the echo."""
    return Pair(CELL, [Turn(*(make_load(rate) for rate in turn)) for turn in turns])


def test_triton_is_a_peer_and_the_echo_is_not() -> None:
    assert PEERS["triton"] is TRITON
    assert ECHO not in PEERS.values()


def test_servers_take_turns_and_triton_is_started_anew_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(monkeypatch, fails=lambda start: False)
    found = run(turns=2)
    assert [len(pair.turns) for pair in found.at_peak] == [2] * 8
    assert [name for name, _, _ in machine.asked] == [OURS.name, TRITON.name, ECHO.name] * 16
    assert machine.started == [OURS.name, ECHO.name, TRITON.name, *[TRITON.name] * 16]
    assert found.at_half == []


def test_the_echo_gets_the_request_and_answers_as_many_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(monkeypatch, fails=lambda start: False)
    run(turns=1)
    echoed = [(path, size) for name, path, size in machine.asked if name == ECHO.name]
    assert echoed == [("/3001", 3001)] * 2 + [("/3064", 3064)] * 2 + echoed[:4]


def test_a_turn_in_which_triton_crashes_is_named_and_the_others_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Machine(monkeypatch, fails=lambda start: start == 3)  # the second turn of the first cell
    first, second, *_ = run(turns=2).at_peak
    assert (len(first.turns), len(second.turns)) == (1, 2)
    assert first.failed == ["NotMeasured: exit code -11: it said nothing"]
    assert second.failed == []


def test_a_server_that_never_starts_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, fails=lambda start: True)
    with pytest.raises(NotMeasured):
        run(turns=2)


def test_each_is_offered_half_of_its_own_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, fails=lambda start: False)
    found = run(turns=1, halves=True)
    assert [(pair.cell.wire, pair.cell.rows) for pair in found.at_half] == [
        ("binary", 1),
        ("binary", 64),
        ("gRPC", 1),
        ("gRPC", 64),
    ]
    assert machine.offered[:4] == [
        (OURS.name, 1500.0, 1),
        (TRITON.name, 750.0, 1),
        (OURS.name, 1500.0, 64),
        (TRITON.name, 750.0, 64),
    ]


def test_each_pair_is_told_as_soon_as_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, fails=lambda start: start == 3)
    told: list[tuple[int, str]] = []

    def tell(pair: Pair) -> None:
        told.extend((len(machine.started), line) for line in pairs_report.summary(pair))

    found = run(turns=2, halves=True, tell=tell)
    assert len(told) == len(found.at_peak) + len(found.at_half) + 1
    ratios = "req/s 2.00x (2.00 to 2.00), p99 1.00x (1.00 to 1.00) of triton"
    reason = "a turn failed: NotMeasured: exit code -11: it said nothing"
    assert told[:2] == [(5, f"binary    1     1 {ratios}"), (5, f"binary    1     1 {reason}")]


def test_a_cell_without_a_peak_has_no_half(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, fails=lambda start: 1 < start <= 5)  # all cells of the first wire, 1 row
    found = run(turns=2, halves=True)
    assert [(pair.cell.wire, pair.cell.rows) for pair in found.at_half] == [
        ("binary", 64),
        ("gRPC", 1),
        ("gRPC", 64),
    ]


def test_refused_requests_make_no_figure_of_half_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, fails=lambda start: False)

    def refuse(*arguments: Any, **options: Any) -> Offered:
        offered = machine.offer(*arguments, **options)
        return replace(offered, status=np.where(np.arange(len(offered.status)) < 3, 429, 200))

    monkeypatch.setattr(pairs, "offer", refuse)
    (first, *_) = run(turns=1, halves=True).at_half
    assert (first.turns, first.failed) == ([], ["ValueError: 3 requests failed"])


def test_ratios_are_of_turns_and_ours_is_above() -> None:
    pair = make_pair((200, 100, 400), (30, 10, 300), (8, 8, 10))
    assert pair.ratios == [2.0, 3.0, 1.0]
    assert pair.of_echo == [0.5, 0.1, 0.8]
    assert pair.middle("theirs", "requests_s") == 10
    assert pairs_report.spread(pair.ratios) == "2.00x (1.00 to 3.00)"


def test_the_best_turn_of_the_other_server_stands_among_all_servers() -> None:
    results = Results()
    pair = make_pair((2, 1, 1), (2, 5, 1), (2, 3, 1))
    pair.failed.append("it crashed")
    Comparison(TRITON, at_peak=[pair]).add_to(results)
    assert results.rate("triton", "gRPC", 1, 32) == 5
    assert results.failed == {CELL: "it crashed"}
    assert results.rate(OURS.name, "gRPC", 1, 32) != 5


@pytest.mark.parametrize(
    ("theirs", "verdict"), [(1000, "holds"), (1300, "does not hold")], ids=["faster", "not enough"]
)
def test_goals_are_ratios_of_requests(theirs: float, verdict: str) -> None:
    found = Comparison(TRITON, at_peak=[make_pair((1250, theirs, 9999))])
    (line,) = pairs_report.goals(found)
    assert line.startswith("gRPC, 1 row, 32 connections / triton ")
    assert line.endswith(f" at least 1.2x  {verdict}")


@pytest.mark.parametrize(
    ("theirs", "verdict"), [(4, "holds"), (2, "does not hold")], ids=["sooner", "later"]
)
def test_goals_at_half_of_the_peak_are_ratios_of_p99(theirs: float, verdict: str) -> None:
    pair = Pair(CELL, [Turn(make_load(100, p99_ms=3), make_load(90, p99_ms=theirs))])
    (line,) = pairs_report.goals(Comparison(TRITON, at_half=[pair]))
    assert line.startswith("gRPC, 1 row, p99 at half of the peak / triton ")
    assert " at most 1x " in line
    assert line.endswith(verdict)


def test_the_table_has_figures_and_the_turns_that_failed() -> None:
    pair = make_pair((3000, 1500, 6000))
    pair.failed.append("it crashed")
    lines = [*pairs_report.comparison(Comparison(TRITON, at_peak=[pair]))]
    assert "3,000" in lines[-2]
    assert "2.00x (2.00 to 2.00)" in lines[-2]
    assert lines[-2].endswith("0.500x (0.500 to 0.500)")
    assert lines[-1] == "gRPC      1    32 a turn failed: it crashed"
    assert all(len(line) < 180 for line in lines)


def test_a_cell_whose_turns_all_failed_has_no_figures() -> None:
    found = Comparison(TRITON, at_peak=[Pair(CELL, failed=["it crashed"])])
    assert [*pairs_report.comparison(found)][-1].endswith("a turn failed: it crashed")
    (goal,) = pairs_report.goals(found)
    assert "not measured" in goal


@pytest.mark.slow(5)
@pytest.mark.parametrize("size", [3_288, 200_859])
@pytest.mark.parametrize("wire", ECHO.wires, ids=lambda wire: wire.name)
def test_the_echo_answers_over_both_transports(wire: Wire, size: int) -> None:
    rows = np.zeros((64, 28, 28), np.uint8)
    core = min(os.sched_getaffinity(0))
    with running(ECHO, Inputs(Path("bundle"), rows), core) as server:
        request = replace(wire.encode(rows), path=f"/{size}")
        answer = ask(server.port_of(wire), request, grpc=wire.grpc)
    assert (answer.status, len(answer.body)) == (200, size)


def test_the_echo_of_grpc_is_one_whole_message() -> None:
    message = transports.message_of([(b":path", b"/3181")])
    assert len(message) == 3181
    assert (message[0], int.from_bytes(message[1:5])) == (0, 3176)


class Backend:
    """Stands for Triton's module of the Python backend."""

    @staticmethod
    def Tensor(name: str, value: Any) -> tuple[str, Any]:
        return name, value

    @staticmethod
    def InferenceResponse(tensors: Sequence[Any]) -> Sequence[Any]:
        return tensors

    @staticmethod
    def get_input_tensor_by_name(request: Any, name: str) -> Any:
        return SimpleNamespace(as_numpy=lambda: request[name])


class Session:
    """Stands for onnxruntime's: adds one, and counts its runs."""

    runs = 0

    def run(self, outputs: None, feeds: dict[str, Any]) -> list[Any]:
        self.runs += 1
        return [feeds["x"] + np.float32(1)]


@pytest.mark.parametrize("sizes", [(2,), (1, 3, 2)], ids=["one request", "a batch"])
def test_tritons_model_answers_a_batch_by_one_run(sizes: tuple[int, ...]) -> None:
    model = on_triton.TritonPythonModel()
    model.backend, model.session = Backend, Session()
    values = np.arange(sum(sizes) * 4).reshape(-1, 4).astype(np.uint8)
    starts = np.cumsum((0, *sizes))
    requests = [{"x": values[at : at + size]} for at, size in zip(starts, sizes, strict=False)]
    answers = model.execute(requests)
    assert model.session.runs == 1
    for request, ((name, x_loc),) in zip(requests, answers, strict=True):
        assert name == "x_loc"
        np.testing.assert_array_equal(x_loc, request["x"] + 1.0)


def test_tritons_folders_have_what_it_reads(tmp_path: Path) -> None:
    server = tmp_path / "server"
    stub = server / "python_backend_stubs" / "3.11" / "triton_python_backend_stub"
    for file in (server / "backends" / "python" / "libtriton_python.so", stub):
        file.parent.mkdir(parents=True)
        file.write_text(file.name)
    on_triton.write_folders(server, tmp_path / "out")
    assert sorted(
        str(file.relative_to(tmp_path / "out"))
        for file in (tmp_path / "out").rglob("*")
        if file.is_file()
    ) == [
        "backends/python/libtriton_python.so",
        "backends/python/triton_python_backend_stub",
        "models/reconstruct/1/model.py",
        "models/reconstruct/1/session.py",
        "models/reconstruct/config.pbtxt",
    ]


def test_versions_are_those_that_a_server_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    given = b'{"name": "triton", "version": "2.51.0", "extensions": []}'

    class Opened:
        def __enter__(self) -> Any:
            return SimpleNamespace(read=lambda: given)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: Opened())
    assert pairs.version_of(Server(1, 2, 3, 0.0, None)) == "triton 2.51.0"


def test_the_wires_are_those_that_both_have() -> None:
    assert TRITON.wires == ECHO.wires == (V2_BINARY, V2_GRPC)
    assert {*TRITON.wires} <= {*OURS.wires}
