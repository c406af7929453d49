"""Training in several processes, which torchrun starts: `torchrun … -m pipeline.cli train …`.

In: the environment variables of torchrun. Out: the processes, joined. Process 0 alone speaks, opens
the run, logs and saves; the others train along, and end.
"""

import functools
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.memory_options import agree_on_memory
from serving.errors import UsageRefused

if TYPE_CHECKING:
    from pipeline.training.processes import Processes

_WAIT = timedelta(minutes=30)
"""How long a process waits for another, which may be saving to a slow store."""
_COMMANDS = ("run", "train")
"""The commands that several processes can share."""


def prepare_processes(command: str | None) -> None:
    """Let process 0 alone speak, and refuse a command that is one process's work.

    Raises:
        UsageRefused: several processes were started for such a command.
    """
    if _number("WORLD_SIZE", 1) == 1 or "RANK" not in os.environ:
        return
    if _number("RANK", 0):
        sys.stderr = open(os.devnull, "w")
    if command not in _COMMANDS:
        raise UsageRefused(
            f"vae {command} is the work of one process: torchrun is for {' and '.join(_COMMANDS)}"
        )


def shared(command: Callable[..., None]) -> Callable[..., None]:
    """Join the processes and give them to a command; divide by default the cores among them."""

    @functools.wraps(command)
    def call(**parameters: Any) -> None:
        source = click.get_current_context().get_parameter_source("threads")
        if source is click.core.ParameterSource.DEFAULT:
            beside = _number("LOCAL_WORLD_SIZE", 1)
            parameters["threads"] = max(1, parameters["threads"] // beside)
        with join() as processes:
            agree_on_memory(processes)
            command(processes=processes, **parameters)

    return call


@contextmanager
def join() -> "Iterator[Processes]":
    """Connect to the processes that torchrun started, until the block ends.

    If one fails, all end with its message and its exit code, the message written by one of them.

    Raises:
        ProcessFailed: another process failed, or was killed.
        UsageRefused: the environment variables are not those of torchrun.
    """
    from pipeline.training.processes import ALONE, Processes

    world = _number("WORLD_SIZE", 1)
    if world == 1:
        yield ALONE
        return
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise UsageRefused(
                f"WORLD_SIZE is {world}, but {name} is not set: start the processes with torchrun, "
                "or unset WORLD_SIZE to train in one"
            )
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    from pipeline.training.failures import end_together, someone_speaks

    terminate = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # torch waits without heeding Python
    store, rank, _ = next(iter(rendezvous("env://")))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=PrefixStore("torch", store),
        rank=rank,
        world_size=world,
        timeout=_WAIT,
    )
    signal.signal(signal.SIGTERM, terminate)
    processes = Processes(rank, world, _number("LOCAL_RANK", 0), store)
    try:
        with end_together(processes):
            yield processes
    except BaseException as err:
        for error in (err, err.__cause__, err.__context__):
            traceback.clear_frames(error.__traceback__ if error else None)
        if rank and not someone_speaks(processes, err):
            sys.stderr = sys.__stderr__
        raise
    finally:
        gc.collect()  # a DistributedDataParallel that outlives its group aborts the process
        dist.destroy_process_group()


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdecimal():
        raise UsageRefused(f"{name}, which torchrun sets, must be a number, got {value!r}")
    return int(value)
