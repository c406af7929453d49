"""Run a session on CUDA by CUDA graphs, which start all kernels of a run at once.

onnxruntime records one for inputs and outputs at fixed addresses and of fixed shapes, so there is
one for each of a few numbers of rows, and a batch is filled up to the next of them. It belongs to
the thread that ran the session when it was recorded, and a copy by another thread would spoil the
recording. So one thread of the process runs all sessions of engines that have graphs.
"""

from collections.abc import Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

Array = NDArray[Any]

SIZES = (1, 4, 16, 64, 256, 1024)
"""Rows of the graphs. On one H100, 1,024 rows of a decoder took 1.3 times as long as one row."""
_RECORDING_RUNS = 3
"""Runs of a graph when it is opened: onnxruntime records the third at the latest."""
_DTYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}


class _Bound(NamedTuple):
    """Memory of one number of rows, to which a graph is bound."""

    rows: int
    host: Mapping[str, Array]
    inputs: Mapping[str, ort.OrtValue]
    outputs: Mapping[str, ort.OrtValue]
    binding: ort.IOBinding
    options: ort.RunOptions


class RecordedSession:
    """Has the method `run` of a session.

    Args:
        session: an open session with the option `enable_cuda_graph`, whose tensors have one free
            axis, the batch.
        memory: the kind of memory to bind it to.
    """

    def __init__(self, session: ort.InferenceSession, memory: str = "cuda") -> None:
        self._session = session
        self._bound = _gpu_thread().submit(self._record, memory).result()

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """Return the outputs of these names; the rows are at most the largest of `SIZES`."""
        return _gpu_thread().submit(self._run, names, feeds).result()

    def _record(self, memory: str) -> list[_Bound]:
        bound = [
            _bind(self._session, rows, number, memory) for number, rows in enumerate(SIZES, start=1)
        ]
        for each in bound:
            for _ in range(_RECORDING_RUNS):
                self._session.run_with_iobinding(each.binding, each.options)
        return bound

    def _run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        rows = len(next(iter(feeds.values())))
        bound = next(each for each in self._bound if each.rows >= rows)
        for name, array in feeds.items():
            bound.host[name][:rows] = array  # rows of an earlier run may stand below, unread
            bound.inputs[name].update_inplace(bound.host[name])
        self._session.run_with_iobinding(bound.binding, bound.options)
        # the next run has the same memory
        return [bound.outputs[name].numpy()[:rows].copy() for name in names]


class OneThreadSession:
    """Has the method `run` of a session, which the thread of the recorded sessions runs."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """Return the outputs of these names."""
        return list(_gpu_thread().submit(self._session.run, names, feeds).result())


def record_sessions(
    sessions: Mapping[str, ort.InferenceSession], recorded: Container[str]
) -> dict[str, RecordedSession | OneThreadSession]:
    """Return what runs the sessions of an engine, those that are to be `recorded` by graphs."""
    return {
        name: RecordedSession(session) if name in recorded else OneThreadSession(session)
        for name, session in sessions.items()
    }


def _bind(session: ort.InferenceSession, rows: int, number: int, memory: str) -> _Bound:
    binding, options = session.io_binding(), ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))
    host = {node.name: _zeros(node, rows) for node in session.get_inputs()}
    inputs, outputs = (
        {node.name: ort.OrtValue.ortvalue_from_numpy(_zeros(node, rows), memory) for node in nodes}
        for nodes in (session.get_inputs(), session.get_outputs())
    )
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    for name, value in outputs.items():
        binding.bind_ortvalue_output(name, value)
    return _Bound(rows, host, inputs, outputs, binding, options)


def _zeros(node: Any, rows: int) -> Array:
    return np.zeros((rows, *node.shape[1:]), _DTYPES[node.type])


@cache
def _gpu_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "cuda graphs")
