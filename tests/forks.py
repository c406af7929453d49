"""Processes that start in milliseconds: forks of one that has done the imports already.

A command that runs in a fork has an environment, a working folder, signals, output and an exit code
of its own, as in a process that a shell starts; it only does not import torch and mlflow again.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path


def forks() -> ForkServerContext:
    """Return a context whose processes start with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preload"])
    return context


def start_fork(
    words: tuple[str, ...], folder: Path, env: Mapping[str, str], output: Path
) -> BaseProcess:
    """Start `vae` or `mlflow` in `folder`; `stdout` and `stderr` in `output` get what it prints.

    They are new files, or FIFOs that stand there.
    """
    process = forks().Process(target=_run, args=(words, folder, dict(env), output))
    process.start()
    return process


def run_fork(
    words: tuple[str, ...], folder: Path, env: Mapping[str, str]
) -> "subprocess.CompletedProcess[str]":
    """Run `vae` or `mlflow` in `folder` to its end."""
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary)
        process = start_fork(words, folder, env, output)
        process.join()
        assert process.exitcode is not None
        said, error = ((output / name).read_text() for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(words, process.exitcode, said, error)


def _run(words: tuple[str, ...], folder: Path, env: Mapping[str, str], output: Path) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, number in (("stdout", 1), ("stderr", 2)):
        file = os.open(output / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    sys.argv = list(words)
    import mlflow.cli

    from pipeline.cli import main

    {"vae": main.main, "mlflow": mlflow.cli.cli}[words[0]]()
