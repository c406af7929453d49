"""The contract with granian: the methods that the adapter overrides, calls and reads."""

import inspect
import signal
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import pytest
from granian import rsgi
from granian.server import mp
from granian.server.common import AbstractWorker
from granian.server.mp import MPServer, WorkerProcess

from serving.server.granian_adapter import GranianServer
from serving.server.supervisor import free_port
from tests.serving.server.settings import make_settings

GRANIAN = f"granian {version('granian')}"


class Method(NamedTuple):
    """A method of granian: its parameters, and the methods that must call it."""

    parameters: tuple[str, ...]
    callers: tuple[str, ...] = ()


METHODS: Mapping[str, Method] = {
    "_spawn_worker": Method(
        ("self", "idx", "target", "callback_loader"), ("_spawn_workers", "_respawn_workers")
    ),
    "_spawn_workers": Method(("self", "spawn_target", "target_loader"), ("startup",)),
    "_respawn_workers": Method(
        ("self", "workers", "spawn_target", "target_loader", "delay"), ("_serve_loop",)
    ),
    "_stop_workers": Method(("self",), ("shutdown",)),
    "signal_handler_interrupt": Method(("self", "args", "kwargs"), ("startup",)),
    "signal_handler_reload": Method(("self", "args", "kwargs"), ("startup",)),
    "serve": Method(("self", "spawn_target", "target_loader", "wrap_loader")),
}
OPTIONS = {
    "target", "address", "port", "interface", "workers", "runtime_mode", "loop", "http",
    "websockets", "backlog", "backpressure", "http1_settings", "log_level", "log_dictconfig",
    "ssl_cert", "ssl_key", "ssl_protocol_min", "respawn_failed_workers", "workers_kill_timeout",
}  # fmt: skip


def find_differences(server: Any) -> Iterator[str]:
    """Tell in words how a server of granian differs from the one that the adapter needs."""
    for name, method in METHODS.items():
        if not callable(found := getattr(server, name, None)):
            yield f"{GRANIAN} has no method {name}: see serving/server/granian_adapter.py"
            continue
        parameters = tuple(inspect.signature(found).parameters)
        if parameters != method.parameters:
            yield (
                f"{name} of {GRANIAN} takes {', '.join(parameters)}; "
                f"the adapter needs {', '.join(method.parameters)}"
            )
        for caller in method.callers:
            code = getattr(getattr(server, caller, None), "__code__", None)
            if code is None or name not in code.co_names:
                yield f"{caller} of {GRANIAN} does not call {name}, which the adapter overrides"
    for option in sorted(OPTIONS - inspect.signature(server.__init__).parameters.keys()):
        yield f"the server of {GRANIAN} takes no option {option}"
    for caller in ("_spawn_workers", "_respawn_workers"):
        code = getattr(getattr(server, caller, None), "__code__", None)
        if code is not None and "wrks" not in code.co_names:
            yield f"{caller} of {GRANIAN} does not keep its workers in wrks"


def copy_members(server: type) -> dict[str, Any]:
    """Return the members of a class, inherited ones too, so that a test can change them."""
    classes = reversed(server.__mro__[:-1])
    return {name: member for each in classes for name, member in vars(each).items()}


def test_granian_is_the_one_that_the_adapter_was_written_for() -> None:
    differences = [*find_differences(MPServer)]
    assert not differences, "\n".join(differences)


@pytest.mark.parametrize("name", METHODS)
def test_a_renamed_method_is_named_with_the_version_of_granian(name: str) -> None:
    members = copy_members(MPServer)
    members[f"{name}_renamed"] = members.pop(name)
    differences = [*find_differences(SimpleNamespace(**members))]
    assert f"{GRANIAN} has no method {name}: see serving/server/granian_adapter.py" in differences


def test_other_parameters_are_named() -> None:
    def spawn(self: Any, number: int, target: Any, callback_loader: Any) -> None: ...

    members = copy_members(MPServer) | {"_spawn_worker": spawn}
    assert [*find_differences(SimpleNamespace(**members))] == [
        f"_spawn_worker of {GRANIAN} takes self, number, target, callback_loader; "
        "the adapter needs self, idx, target, callback_loader"
    ]


def test_a_method_that_is_called_no_more_is_named() -> None:
    def shutdown(self: Any, exit_code: int = 0) -> None: ...

    members = copy_members(MPServer) | {"shutdown": shutdown}
    assert [*find_differences(SimpleNamespace(**members))] == [
        f"shutdown of {GRANIAN} does not call _stop_workers, which the adapter overrides"
    ]


def test_an_option_that_is_gone_is_named() -> None:
    def init(self: Any, **options: Any) -> None: ...

    members = copy_members(MPServer) | {"__init__": init}
    differences = [*find_differences(SimpleNamespace(**members))]
    assert f"the server of {GRANIAN} takes no option backpressure" in differences
    assert len(differences) == len(OPTIONS)


def test_the_adapter_overrides_nothing_private_that_is_not_in_the_contract() -> None:
    theirs = copy_members(MPServer).keys()
    ours = {name for name in vars(GranianServer) if name in theirs and not name.startswith("__")}
    assert ours == METHODS.keys() - {"serve"}


def test_workers_can_be_killed_and_requests_answered() -> None:
    assert {"start", "kill"} <= {*dir(AbstractWorker)}, f"{GRANIAN} has other worker processes"
    assert issubclass(WorkerProcess, AbstractWorker)
    needed = {"__call__", "__aiter__", "response_bytes", "client_disconnect"}
    missing = needed - {*dir(rsgi.HTTPProtocol)}
    assert not missing, f"HTTPProtocol of {GRANIAN} has no {', '.join(missing)}"


class Process:
    """A worker process that is not started."""

    made: ClassVar[list["Process"]] = []

    def __init__(self, parent: Any, idx: int, target: Any, args: tuple[Any, ...]) -> None:
        self.server = parent
        self.idx = idx
        load = args[2]
        self.application = load() + (" again" if len(self.made) == 2 else "")
        self.blocked: set[int] = set()
        self.ends: list[str] = []
        self.looks = 0
        self.made.append(self)

    def start(self) -> None:
        self.blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        if self.application == "worker 1":  # worker 0 dies
            self.server.interrupt_children.append(0)
            self.server.main_loop_interrupt.set()
        if self.application == "worker 0 again":
            self.server.signal_handler_interrupt()
            self.server.signal_handler_interrupt()

    def terminate(self) -> None:
        self.ends.append("terminate")

    def kill(self) -> None:
        self.ends.append("kill")

    def join(self, timeout: float | None = None) -> None: ...

    def is_alive(self) -> bool:
        """Whether it is there still: for a moment after its end, as the system sees it."""
        self.looks += 1
        return self in self.server.wrks and "terminate" in self.ends and self.looks < 5


@pytest.fixture
def handlers() -> Iterator[None]:
    """Put back the handlers of signals, which a server sets."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_workers_get_their_index_and_start_with_signals_blocked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Run granian's own code without processes: a worker dies, then a signal comes twice."""
    started: list[Process] = []
    monkeypatch.setattr(Process, "made", started)
    monkeypatch.setattr(mp, "WorkerProcess", Process)
    settings = make_settings(tmp_path, port=free_port("127.0.0.1", 0, "--port"), workers=2)
    counters = settings.open_counters(0)
    GranianServer(settings, counters).run_workers("worker {}".format)
    assert [process.application for process in started] == [
        "worker 0",
        "worker 1",
        "worker 0 again",
    ]
    for process in started:
        assert process.blocked >= {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGINT, signal.SIGTERM}
    assert [process.ends for process in started] == [
        ["terminate"],
        ["kill", "terminate", "terminate"],
        ["terminate", "terminate"],
    ]
    assert counters.get("draining") == counters.get("stopping") == 1
