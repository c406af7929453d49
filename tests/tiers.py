"""The two tiers of tests, as a plugin of pytest.

`pytest -m "not slow"` is the fast tier. Its tests use no network, start no process and open no
MLflow store, and this plugin fails a test that does. These tests are slow: all in `SLOW_FOLDERS`,
those whose fixtures request `slow_tier`, and those that are marked `@pytest.mark.slow`. A number
in that mark says about how many seconds the test takes: the longest tests start first.
"""

import ipaddress
import multiprocessing.process
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
SERVING = TESTS / "serving"
SLOW_FOLDERS = (TESTS / "clients", TESTS / "e2e", TESTS / "integration")
PROCESSES = frozenset(
    {
        "subprocess.Popen",
        "multiprocessing.Process.start",
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "os.system",
    }
)
"""Audit events of a process that is started; the second is raised here."""
ADDRESSES = frozenset({"socket.bind", "socket.connect", "socket.sendmsg", "socket.sendto"})
HOSTS = frozenset({"socket.getaddrinfo", "socket.gethostbyname"})
ADVICE = (
    "Mark the test with @pytest.mark.slow, let the fixture that does it request slow_tier, "
    "or test this without it."
)
SEEN = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def slow_tier() -> None:
    """Request this in a fixture that starts a process or opens an MLflow store."""


class Guard:
    """What fast tests may not do: an audit hook raises where they try.

    The hook cannot be removed, so that there is one guard in a process; it acts within `watch`.
    """

    def __init__(self) -> None:
        self._seen: list[str] | None = None
        sys.addaudithook(self._audit)
        start = multiprocessing.process.BaseProcess.start

        def audited_start(self: multiprocessing.process.BaseProcess) -> None:
            sys.audit("multiprocessing.Process.start", self.name)
            start(self)

        multiprocessing.process.BaseProcess.start = audited_start  # type: ignore[method-assign]

    @contextmanager
    def watch(self, seen: list[str] | None) -> Iterator[None]:
        """Add to `seen` what is forbidden and tried within this block; None allows all."""
        before, self._seen = self._seen, seen
        try:
            yield
        finally:
            self._seen = before

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._seen is None:
            return
        words = forbidden(event, arguments)
        if words:
            self._seen.append(words)
            pytest.fail(f"A fast test {words}. {ADVICE}")


def forbidden(event: str, arguments: tuple[Any, ...]) -> str:
    """Say what an audit event means that no fast test may cause; empty for all others."""
    if event in PROCESSES:
        return f"started a process ({event} of {arguments[0]!r})"
    if event == "sqlite3.connect":
        return f"opened a database, as an MLflow store is ({arguments[0]!r})"
    if event in HOSTS and not is_local(arguments[0]):
        return f"used the network ({event} of {arguments[0]!r})"
    if event in ADDRESSES and not is_local_address(arguments[1]):
        return f"used the network ({event} of {arguments[1]!r})"
    return ""


def is_local_address(address: object) -> bool:
    """Whether an address of a socket is one of this machine alone: a path, or a loopback host."""
    return not isinstance(address, tuple) or is_local(address[0])


def is_local(host: object) -> bool:
    """Whether a host is the loopback interface."""
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(name)).is_loopback
    except ValueError:
        return False


GUARD = Guard()


def is_slow(item: pytest.Item) -> bool:
    """Whether a test belongs to the slow tier."""
    return (
        item.get_closest_marker("slow") is not None
        or any(folder in item.path.parents for folder in SLOW_FOLDERS)
        or "slow_tier" in getattr(item, "fixturenames", ())
    )


def expected_seconds(item: pytest.Item) -> float:
    """Return what the mark of a slow test says that it takes, 0 where it says nothing."""
    return max((float(mark.args[0]) for mark in item.iter_markers("slow") if mark.args), default=0)


def longest_first(items: list[pytest.Item], workers: int = 2) -> list[pytest.Item]:
    """Order tests so that each worker of `--dist=worksteal` begins with the longest ones.

    xdist gives each worker a part of the list to begin with, and the parts are of equal length.
    """
    long = sorted(filter(expected_seconds, items), key=expected_seconds, reverse=True)
    others = [item for item in items if not expected_seconds(item)]
    ordered: list[pytest.Item] = []
    for worker in range(workers):
        mine = long[worker::workers]
        count = len(items) * (worker + 1) // workers - len(ordered) - len(mine)
        ordered += mine + others[:count]
        others = others[count:]
    return ordered


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None, None, None]:
    """Mark the slow tests before `-m` selects, and order what it leaves."""
    for item in items:
        if is_slow(item):
            item.add_marker("slow")
        if SERVING in item.path.parents:
            item.add_marker("serving")
    yield
    items[:] = longest_first(items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Guard a fast test from the setup of its first fixture to the teardown of its last."""
    item.stash[SEEN] = []
    with GUARD.watch(None if item.get_closest_marker("slow") else item.stash[SEEN]):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Fail also a test that caught what the guard raised."""
    yield
    if seen := item.stash[SEEN]:
        pytest.fail(f"A fast test {seen[0]}, and caught the error. {ADVICE}")
