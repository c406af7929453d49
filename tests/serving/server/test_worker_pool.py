"""The worker processes: their numbers, signals, deaths and ends; real processes, small ones."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from serving.server import worker_pool
from serving.server.settings import Settings
from serving.server.shared_counters import SharedCounters
from serving.server.worker_pool import WorkerPool, block_signals
from tests.serving.server.settings import make_settings

pytestmark = pytest.mark.slow

SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def note(folder: Path, index: int, text: str = "") -> int:
    """Write a file for a start of this worker; return how many there were before."""
    before = len([*folder.glob(f"start-{index}-*")])
    file = folder / f"start-{index}-{before}"
    file.with_suffix(".new").write_text(text)
    file.with_suffix(".new").rename(file)
    return before


def follow(settings: Settings, index: int) -> None:
    """Write which signals are blocked, and end when the server does."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    note(settings.folder, index, ",".join(sorted(signal.Signals(each).name for each in blocked)))
    counters = settings.open_counters(index + 1)
    while not counters.get("stopping"):
        time.sleep(0.01)


def stay(settings: Settings, index: int) -> None:
    """Never end."""
    note(settings.folder, index)
    while True:
        time.sleep(10)


def die_once(settings: Settings, index: int) -> None:
    if index == 0 and note(settings.folder, index) == 0:
        os._exit(7)
    follow(settings, index + 10)


def die(settings: Settings, index: int) -> None:
    note(settings.folder, index)
    os._exit(3)


def die_while_draining(settings: Settings, index: int) -> None:
    note(settings.folder, index)
    counters = settings.open_counters(index + 1)
    while not counters.get("draining"):
        time.sleep(0.01)
    os._exit(1 if index == 0 else 0)


@contextlib.contextmanager
def in_parallel(act: Callable[[], None]) -> Iterator[None]:
    """Run something in a thread, since a pool is served from the main thread."""

    def run() -> None:
        try:
            act()
        except AssertionError:
            send(signal.SIGTERM, signal.SIGTERM)  # else the pool would go on for ever
            raise

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    thread.join(20)
    assert not thread.is_alive()


class Pool:
    """A pool whose processes a test can see."""

    def __init__(
        self,
        folder: Path,
        workers: int,
        run: Callable[[Settings, int], None],
        drain_s: float = 1000,
    ) -> None:
        self.folder = folder
        self.settings = replace(make_settings(folder, workers=workers), drain_s=drain_s)
        self.counters = SharedCounters(folder / "counters", 32, 0)
        self.pool = WorkerPool(self.settings, self.counters, partial(run, self.settings))
        self.made: list[BaseProcess] = []
        start = self.pool._start

        def keep(index: int) -> BaseProcess:
            self.made.append(start(index))
            return self.made[-1]

        self.pool._start = keep  # type: ignore[method-assign]

    def wait_for(self, *names: str) -> None:
        end = time.monotonic() + 15
        while not all((self.folder / name).exists() for name in names):
            assert time.monotonic() < end, names
            time.sleep(0.01)

    def serve(self) -> None:
        """Serve; afterwards no process is left, and the signals are as before."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            self.pool.serve()
        finally:
            # they have been waited for: the kernel knows them no more
            assert [each for each in self.made if Path(f"/proc/{each.pid}").exists()] == []
            assert {number: signal.getsignal(number) for number in SIGNALS} == before
            assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & SIGNALS

    def exit_codes(self) -> list[int | None]:
        return [each.exitcode for each in self.made]


def send(*numbers: int) -> None:
    for number in numbers:
        # else it would end the tests
        assert getattr(signal.getsignal(number), "__func__", None) is WorkerPool._note
        os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "ANNOUNCED_S", 0.1)


@pytest.mark.parametrize("number", sorted(SIGNALS), ids=lambda number: signal.Signals(number).name)
def test_each_worker_gets_its_number_and_starts_with_signals_blocked(
    tmp_path: Path, number: int
) -> None:
    pool = Pool(tmp_path, 2, follow)

    def act() -> None:
        pool.wait_for("start-0-0", "start-1-0")
        send(number)

    with in_parallel(act):
        pool.serve()
    assert pool.exit_codes() == [0, 0]
    assert [process.name for process in pool.made] == ["worker 0", "worker 1"]
    for index in range(2):
        found = (tmp_path / f"start-{index}-0").read_text().split(",")
        assert {*found} >= {signal.Signals(each).name for each in SIGNALS}
    assert pool.counters.get("draining") == pool.counters.get("stopping") == 1


def test_a_worker_that_dies_is_started_again_with_its_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = Pool(tmp_path, 2, die_once)

    def act() -> None:
        pool.wait_for("start-0-0", "start-0-1", "start-10-0", "start-11-0")
        send(signal.SIGTERM)

    with in_parallel(act):
        pool.serve()
    assert "worker 0 ended with exit code 7" in caplog.text
    assert "cannot live" not in caplog.text
    assert pool.exit_codes() == [7, 0, 0]
    assert [process.name for process in pool.made] == ["worker 0", "worker 1", "worker 0"]


def test_a_worker_that_dies_again_soon_ends_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = Pool(tmp_path, 1, die)
    with pytest.raises(SystemExit) as ended:
        pool.serve()
    assert ended.value.code == 1
    assert pool.exit_codes() == [3, 3]
    assert "worker 0 cannot live: stopping" in caplog.text
    assert pool.counters.get("stopping") == 1


def test_one_that_dies_again_later_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_pool, "CRASH_S", 0.0)
    pool = Pool(tmp_path, 1, die)

    def act() -> None:
        pool.wait_for("start-0-2")
        send(signal.SIGTERM)

    with in_parallel(act):
        pool.serve()
    assert len(pool.made) >= 3
    assert {*pool.exit_codes()} == {3}


def test_a_second_signal_kills(tmp_path: Path) -> None:
    pool = Pool(tmp_path, 2, stay)

    def act() -> None:
        pool.wait_for("start-0-0", "start-1-0")
        send(signal.SIGTERM)
        while not pool.counters.get("stopping"):
            time.sleep(0.01)
        send(signal.SIGINT)

    with in_parallel(act):
        pool.serve()
    assert pool.exit_codes() == [-signal.SIGKILL] * 2


def test_workers_that_outlast_the_drain_are_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_pool, "_LATE_S", 0.1)
    pool = Pool(tmp_path, 1, stay, drain_s=0.1)

    def act() -> None:
        pool.wait_for("start-0-0")
        send(signal.SIGTERM)

    with in_parallel(act):
        pool.serve()
    assert pool.exit_codes() == [-signal.SIGKILL]


def test_a_worker_that_dies_in_the_drain_is_not_started_again(tmp_path: Path) -> None:
    pool = Pool(tmp_path, 2, die_while_draining)

    def act() -> None:
        pool.wait_for("start-0-0", "start-1-0")
        send(signal.SIGTERM)

    with in_parallel(act):
        pool.serve()
    assert pool.exit_codes() == [1, 0]


@pytest.mark.parametrize("count", [1, 2])
def test_signals_while_workers_start(tmp_path: Path, count: int) -> None:
    """They come in when the first process has been started."""
    pool = Pool(tmp_path, 2, follow)
    start = pool.pool._start

    def start_and_signal(index: int) -> BaseProcess:
        process = start(index)
        if index == 0:
            send(*[signal.SIGTERM] * count)
        return process

    pool.pool._start = start_and_signal  # type: ignore[method-assign]
    pool.serve()
    assert pool.exit_codes() == ([0, 0] if count == 1 else [-signal.SIGKILL] * 2)


def test_a_start_that_fails_ends_those_that_were_started(tmp_path: Path) -> None:
    """Else the parent would wait for them for ever when it ends."""
    pool = Pool(tmp_path, 2, stay)
    start = pool.pool._start

    def fail(index: int) -> BaseProcess:
        if index:
            raise BlockingIOError("no more processes")
        return start(index)

    pool.pool._start = fail  # type: ignore[method-assign]
    with pytest.raises(BlockingIOError):
        pool.serve()
    assert pool.exit_codes() == [-signal.SIGKILL]


def test_signals_that_were_blocked_before_stay_so() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        with block_signals():
            assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= SIGNALS
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) & SIGNALS == {signal.SIGHUP}
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def test_no_worker_of_these_tests_is_left() -> None:
    assert [each for each in multiprocessing.active_children() if "worker" in each.name] == []
