"""How the processes of a training end when one of them fails: all with its message and exit code.

The one that fails first tells the store why, and ends; the connections of the others to it break,
and the store tells them the reason. One that was killed tells nothing.
"""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed import DistError
from torch.distributed.distributed_c10d import Store

from pipeline.errors import ProcessFailed, TrainingStopped
from pipeline.training.processes import Processes
from serving.errors import VaeError

_FIRST, _FIRST_RANK_SPEAKS = "failure", "speaks"
"""Keys of the store."""
_READY, _LOOK_S = "ready", 0.1
_GRACE_S = 1.0
"""How long a process waits for the first one to report the same failure instead of it."""
_LOST = (
    "another process of this training has ended, or cannot be reached: see what it wrote, and the "
    "report of torchrun"
)


@contextmanager
def end_together(processes: Processes) -> Iterator[None]:
    """Raise `ProcessFailed` if another process failed first; tell the others of a failure here.

    When a process has ended, torchrun sends SIGTERM to the others. From a failure on it is ignored
    here, since this process ends anyway, and may have a run to close.
    """
    store = processes.store
    if store is None:
        yield
        return
    try:
        yield
    except BaseException as err:
        failure = _failure_of(err)
        if isinstance(failure, TrainingStopped):
            signal.raise_signal(signal.SIGTERM)  # another process was told to stop, and so is this
        if isinstance(failure, KeyboardInterrupt):
            if first := _read_first(store):
                raise ProcessFailed(*first) from None
            raise
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if isinstance(failure, ProcessFailed):
            raise failure from None
        lost = _is_loss(failure)
        code = failure.exit_code if isinstance(failure, VaeError) else 1
        mine = (processes.rank, code, _LOST if lost else str(failure) or type(failure).__name__)
        first = _tell(store, mine)
        if lost:
            raise ProcessFailed(*first, teller=first == mine) from failure
        if failure is err:
            raise
        raise failure from None


def wait_for_all(processes: Processes) -> None:
    """Wait until all processes have come here, however long they take to read their data.

    Raises:
        ProcessFailed: another process failed.
    """
    store = processes.store
    if store is None:
        return
    store.add(_READY, 1)
    while store.add(_READY, 0) < processes.world:
        if first := _read_first(store):
            raise ProcessFailed(*first)
        time.sleep(_LOOK_S)


def someone_speaks(processes: Processes, err: BaseException) -> bool:
    """Whether another process reports the failure that this process ends with."""
    if isinstance(err, KeyboardInterrupt) or (isinstance(err, ProcessFailed) and not err.teller):
        return True
    deadline = time.monotonic() + _GRACE_S
    while time.monotonic() < deadline:
        try:
            if processes.store is not None and processes.store.check([_FIRST_RANK_SPEAKS]):
                return True
        except RuntimeError:  # the store has ended with its process
            return False
        time.sleep(0.05)
    return False


def _failure_of(err: BaseException) -> BaseException:
    """Return what failed, also if a signal came while that was being handled."""
    context = err.__context__
    if isinstance(err, KeyboardInterrupt) and isinstance(context, Exception):
        return err if isinstance(context, TrainingStopped) else context
    return err


def _is_loss(failure: BaseException) -> bool:
    """Whether a connection to another process broke: gloo raises no class of its own."""
    gloo = type(failure) is RuntimeError and "gloo" in str(failure)
    return gloo or isinstance(failure, DistError)


Failure = tuple[int, int, str]
"""The process that failed, its exit code and its message."""


def _tell(store: Store, mine: Failure) -> Failure:
    """Tell the others of a failure, and return the first that was told."""
    try:
        if mine[0] == 0:
            store.set(_FIRST_RANK_SPEAKS, "")
        told = store.compare_set(_FIRST, "", json.dumps(mine))
    except RuntimeError:  # the store has ended with its process
        return mine
    rank, code, message = json.loads(told)
    return rank, code, message


def _read_first(store: Store) -> Failure | None:
    try:
        if not store.check([_FIRST]):
            return None
        rank, code, message = json.loads(store.get(_FIRST))
    except RuntimeError:
        return None
    return rank, code, message
