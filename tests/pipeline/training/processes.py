"""Run `vae train` in a process of its own that sends itself signals at a chosen step or save."""

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
class Interruption:
    """Signals that a process sends itself, one directly after the other.

    It sends them after step number `step`, or after save number `save`; or it is killed before
    change number `change` to the MLflow store. All are counted from 1.
    """

    signals: tuple[signal.Signals, ...] = (signal.SIGKILL,)
    step: int | None = None
    save: int | None = None
    change: int | None = None
    save_always: bool = False
    """Whether a state is saved after each step, as after ten minutes."""

    def prepare(self) -> None:
        """Patch the functions of the process that is to be interrupted."""
        self._signal_after(loop, "train_step", self.step)
        self._signal_after(TrackedRun, "log_file", self.save)
        if self.change is not None:
            die_at(self.change)
        if self.save_always:
            loop.SAVE_EVERY_S = 0.0

    def _signal_after(self, owner: Any, name: str, count: int | None) -> None:
        real, calls = getattr(owner, name), [0]

        def call(*arguments: Any, **named: Any) -> Any:
            result = real(*arguments, **named)
            calls[0] += 1
            if calls[0] == count:
                for number in self.signals:
                    signal.raise_signal(number)
            return result

        setattr(owner, name, call)


@dataclass(frozen=True)
class Ended:
    """The exit code of a process, and the lines that it wrote to stderr."""

    exit_code: int
    stderr: list[str]


def vae_train(folder: Path, *arguments: object, interruption: Interruption | None = None) -> Ended:
    """Run `vae train` on one thread, with the MLflow store of this process."""
    uri = os.environ["MLFLOW_TRACKING_URI"]
    words = ["train", *map(str, arguments), "--threads", "1"]
    process = forks().Process(target=_run, args=(uri, folder, words, interruption))
    process.start()
    process.join()
    assert process.exitcode is not None
    return Ended(process.exitcode, (folder / "stderr").read_text().splitlines())


def _run(uri: str, folder: Path, words: list[str], interruption: Interruption | None) -> None:
    use_store(uri, folder)
    sys.argv = ["vae", *words]
    sys.stdout = (folder / "stdout").open("w")
    sys.stderr = (folder / "stderr").open("w", buffering=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if interruption is not None:
        interruption.prepare()
    main.main()


def run_content(run_id: str, folder: Path) -> Mapping[str, Any]:
    """Return what a finished run holds, except times: weights, metrics by step, status."""
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
