"""`vae train` in processes of their own, which a signal meets at a chosen step or save."""

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cli import main
from pipeline.tracking import TrackedRun, fetch_artifact
from pipeline.training import loop
from serving.mlflow_store import connect
from tests.forks import forks
from tests.pipeline.registry.processes import die_at, use_store


@dataclass(frozen=True)
class Blow:
    """Signals that a process sends itself, each one at once after the other.

    It does so after its step `step`, or when it has written its save `save`; or it is killed before
    its `change`th change to the store. All are counted from 1.
    """

    numbers: tuple[signal.Signals, ...] = (signal.SIGKILL,)
    step: int | None = None
    save: int | None = None
    change: int | None = None

    def prepare(self) -> None:
        """In the process that it will meet."""
        self._strike_after(loop, "_make_step", self.step)
        self._strike_after(TrackedRun, "log_file", self.save)
        if self.change is not None:
            die_at(self.change)

    def _strike_after(self, owner: Any, name: str, count: int | None) -> None:
        real, calls = getattr(owner, name), [0]

        def call(*arguments: Any, **named: Any) -> Any:
            result = real(*arguments, **named)
            calls[0] += 1
            if calls[0] == count:
                for number in self.numbers:
                    signal.raise_signal(number)
            return result

        setattr(owner, name, call)


@dataclass(frozen=True)
class Ended:
    """How a process ended, and what it said."""

    exit_code: int
    said: list[str]


def vae_train(folder: Path, *arguments: object, blow: Blow | None = None) -> Ended:
    """Run `vae train` on one thread, with the store of this process."""
    uri = os.environ["MLFLOW_TRACKING_URI"]
    words = ["train", *map(str, arguments), "--threads", "1"]
    process = forks().Process(target=_run, args=(uri, folder, words, blow))
    process.start()
    process.join()
    assert process.exitcode is not None
    return Ended(process.exitcode, (folder / "said").read_text().splitlines())


def _run(uri: str, folder: Path, words: list[str], blow: Blow | None) -> None:
    use_store(uri, folder)
    sys.argv = ["vae", *words]
    sys.stdout = (folder / "result").open("w")
    sys.stderr = (folder / "said").open("w", buffering=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if blow is not None:
        blow.prepare()
    main.main()


def outcome(run_id: str, folder: Path) -> Mapping[str, Any]:
    """What a run holds in the end, apart from times: weights, metrics by step, status."""
    client = connect()
    run = client.get_run(run_id)
    folder.mkdir()
    weights = fetch_artifact(run_id, "checkpoint", folder) / "weights.pt"
    metrics = {
        name: [(row.step, row.value) for row in client.get_metric_history(run_id, name)]
        for name in run.data.metrics
        if name != "train_seconds"
    }
    return {
        "weights": weights.read_bytes(),
        "metrics": metrics,
        "seconds": len(client.get_metric_history(run_id, "train_seconds")),
        "status": (run.info.status, run.data.tags["vae.status"]),
        "inputs": len(run.inputs.dataset_inputs),
        "artifacts": sorted(item.path for item in client.list_artifacts(run_id)),
    }
