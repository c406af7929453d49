"""A command that is stopped ends as its signal says, and leaves its run and its store whole."""

import contextlib
import os
import signal
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import TINY, clean_environment, run_vae
from tests.e2e.refusals import run_statuses, versions
from tests.forks import start_fork

each_signal = pytest.mark.parametrize(
    ("number", "exit_code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
    ids=["SIGINT", "SIGTERM"],
)


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Let programs that are started here react to SIGINT, even if the tests run in background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
@each_signal
def test_a_training_that_is_stopped_ends_its_run_as_killed(
    made: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    number: signal.Signals,
    exit_code: int,
    word: str,
) -> None:
    slow = ("--epochs", "1000", "--patience", "1000", "--batch-size", "1")
    words = ("vae", "run", "--data", str(made / "x.npy"), *slow, *TINY)
    output = tmp_path_factory.mktemp("output")
    os.mkfifo(output / "stderr")
    process = start_fork(words, tmp_path, clean_environment(tmp_path, {}), output)
    said = []
    with (output / "stderr").open() as stderr:
        for line in stderr:
            said.append(line.rstrip("\n"))
            if line.startswith("epoch 1/"):
                assert process.pid is not None
                os.kill(process.pid, number)
    process.join()
    assert (output / "stdout").read_text() == ""
    assert process.exitcode == exit_code
    assert said[-1] == word
    assert not any(line.startswith(("error", "Traceback")) for line in said)
    assert run_statuses(tmp_path) == ["KILLED"]
    assert versions(tmp_path) == []
    assert not (tmp_path / "bundles").exists()


@each_signal
def test_an_interrupt_while_garbage_is_collected_is_not_lost(
    tmp_path: Path, number: signal.Signals, exit_code: int, word: str
) -> None:
    """Python cannot raise from a callback of the garbage collector, where SQLAlchemy runs often."""
    code = f"""
import signal, threading, weakref, click
from serving.cli.command import run_command

@click.command()
def work():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    thing = threading.Event()
    reference = weakref.ref(thing, lambda gone: signal.raise_signal({int(number)}))
    del thing
    threading.Event().wait(60)
    click.echo("worked on")

run_command(work)
"""
    result = run_vae(tmp_path, command=(sys.executable, "-c", code))
    assert result.returncode == exit_code
    assert result.stdout == ""
    assert result.stderr.split() == [word]


def test_an_interrupt_while_the_store_is_made_leaves_it_whole(tmp_path: Path) -> None:
    """The signal arrives when the database is opened for the first time."""
    code = """
import click, signal, sys
from serving.cli.command import run_command
from serving.mlflow_store import connect

@click.command()
def work():
    connect(create=True)

def interrupt(event, arguments, came=[]):
    if event == "sqlite3.connect" and "mode=ro" not in str(arguments[0]) and not came:
        came.append(event)
        signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.addaudithook(interrupt)
run_command(work)
"""
    result = run_vae(tmp_path, command=(sys.executable, "-c", code))
    assert result.returncode == 130
    assert result.stderr.split() == ["interrupted"]
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        tables = {name for (name,) in store.execute("select name from sqlite_master")}
    assert {"runs", "model_versions", "registered_model_aliases", "guardrails"} <= tables
