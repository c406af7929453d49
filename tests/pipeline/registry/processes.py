"""Promotions in separate processes, which can be held at one point, or killed at any point."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any

import mlflow

from pipeline.config import PromoteConfig
from pipeline.data.dataset import Split
from pipeline.registry.audit_log import list_decisions
from pipeline.registry.promotion import promote, rollback
from pipeline.registry.versions import register_bundle
from pipeline.tracking import tracked_run
from serving.bundle import Manifest
from serving.ledger import list_moves
from serving.mlflow_store import alias_version, connect
from tests.e2e.versions import reseal
from tests.forks import forks

READS = ("get_", "search_", "list_", "download_", "_")
"""Methods of mlflow's client whose names begin like this change nothing."""
TIMEOUT_S = 60.0


def use_store(uri: str, folder: Path) -> None:
    """Use a store in a fork, which starts with the environment of the first process."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    mlflow.set_tracking_uri(uri)


def die_at(step: int) -> None:
    """Kill this process before its `step`th change to the store, counted from 1."""
    left = [step]

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return call

    for name, real in list(vars(mlflow.MlflowClient).items()):
        if callable(real) and not name.startswith(READS):
            setattr(mlflow.MlflowClient, name, dying(real))


def promote_and_die(uri: str, folder: Path, version: str, test: Split, step: int) -> None:
    use_store(uri, folder)
    die_at(step)
    promote("vae", version, lambda manifest: test, PromoteConfig(), threads=1)


def roll_back_and_die(uri: str, folder: Path, step: int) -> None:
    use_store(uri, folder)
    die_at(step)
    rollback("vae", threads=1)


def race(uri: str, folder: Path, test: Split, start: Any, results: Any, rounds: Any) -> None:
    """Promote each version from `rounds`, until it is None.

    Every promotion waits until all other processes have read the champion too.
    """
    use_store(uri, folder)

    def load_test(manifest: Manifest) -> Split:
        start.wait(TIMEOUT_S)
        return test

    while (version := rounds.get()) is not None:
        try:
            decision = promote("vae", version, load_test, PromoteConfig(), threads=1)
            results.put((version, decision.decision, decision.reasons))
        except BrokenBarrierError:
            results.put((version, "held up", ()))
            return
        except Exception as err:  # noqa: BLE001 - it must not leave the others waiting
            results.put((version, "failed", (repr(err),)))


class Race:
    """Processes that each promote a version, all at once and against the same champion.

    Args:
        uri: a store with one more version of `vae` than there are processes.
        folder: the folder for the cache.
        test: the held-out rows of all versions.
        racers: the number of processes.
    """

    def __init__(self, uri: str, folder: Path, test: Split, racers: int) -> None:
        context = forks()
        self._start = context.Barrier(
            racers
        )  # keeps it alive: it ends with its last reference in this process
        self._rounds = [context.Queue() for _ in range(racers)]
        self._results = context.Queue()
        common = (uri, folder, test, self._start, self._results)
        self._processes = [
            context.Process(target=race, args=(*common, rounds)) for rounds in self._rounds
        ]
        for process in self._processes:
            process.start()

    def run(self, versions: list[str]) -> dict[str, str]:
        """Run one round; return the status of the decision on each version."""
        for rounds, version in zip(self._rounds, versions, strict=True):
            rounds.put(version)
        rows = [self._results.get(timeout=3 * TIMEOUT_S) for _ in versions]
        for version, status, reasons in rows:
            assert status in ("promoted", "stale"), (version, status, reasons)
        return {version: status for version, status, _ in rows}

    def close(self) -> None:
        """End the processes."""
        for rounds in self._rounds:
            rounds.put(None)
        for process in self._processes:
            process.join()


def run_rounds(rounds: int, uri: str, folder: Path, test: Split, versions: list[str]) -> None:
    """In each round let all versions but the champion race, and check the result."""
    contest = Race(uri, folder, test, len(versions) - 1)
    try:
        champion: str | None = None
        for _ in range(rounds):
            racing = [version for version in versions if version != champion]
            champion = check_round(contest.run(racing[: len(versions) - 1]), champion)
    finally:
        contest.close()


def check_round(statuses: dict[str, str], before: str | None) -> str:
    """Assert that one version won, and that alias, ledger and audit agree; return the champion."""
    (winner,) = (version for version, status in statuses.items() if status == "promoted")
    client = connect()
    assert alias_version(client, "vae", "champion") == winner
    assert alias_version(client, "vae", "previous") == before
    records = list_decisions("vae")[: len(statuses)]
    assert {row["version"]: row["decision"] for row in records} == statuses
    assert {row["previous"] for row in records} == {before}
    move = list_moves(client, "vae")[-1]
    assert (move.version, move.base, move.done) == (winner, before, True)
    (record,) = (row for row in records if row["decision"] == "promoted")
    assert record["run_id"] == move.run_id
    return winner


def register_racers(source: Path, folder: Path, racers: int) -> list[str]:
    """Register one version more than racers: the same model, each time with another digest."""
    versions = []
    for number in range(racers + 1):
        shutil.copytree(source, folder / f"bundle-{number}")
        with tracked_run("test") as run:
            bundle = reseal(folder / f"bundle-{number}", seed=number)
            versions.append(register_bundle(run, bundle, "vae"))
    return versions
