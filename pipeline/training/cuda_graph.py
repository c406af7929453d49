"""Make the steps of a training by one CUDA graph, which starts all kernels of a step at once.

A graph replays kernels with the arguments that they were recorded with. So whatever changes between
two steps is copied into tensors of its own before a replay: rows, noise, learning rate and weight
of the KL. Noise is drawn outside of the graph, by the same calls as without one, so that a training
by a graph is trained on the same numbers. The eager step is the reference, and makes the first
steps, which warm up the libraries, and the smaller last batch of a pass.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pipeline.config import Config
from serving.errors import DeviceUnavailable, UsageRefused

Step = Callable[[Tensor, Tensor, float | Tensor, float | Tensor], Tensor]
"""Makes a step on rows with noise, a learning rate and a weight of the KL; returns its sums."""
Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Records a function, without running it, and returns what runs it again."""

WARM_UP_STEPS = 3
"""Eager steps before a capture, as PyTorch's notes on CUDA graphs have them."""


def check_gpu_settings(config: Config, device: str) -> None:
    """Refuse settings of the training that its device, its networks or its processes prevent.

    Raises:
        DeviceUnavailable: the device has no CUDA graphs, or no bfloat16.
        UsageRefused: a graph would not compute what an eager step does.
    """
    if config.train.bf16 and device != "cpu" and not torch.cuda.is_bf16_supported(False):
        name = torch.cuda.get_device_name()
        raise DeviceUnavailable(f"--bf16 is not available: {name} does not compute in bfloat16")
    if not config.train.cuda_graph:
        return
    if device == "cpu":
        raise DeviceUnavailable(
            "--cuda-graph is not available: the training is on cpu; use --device cuda on a machine "
            "with a GPU, or --no-cuda-graph"
        )
    if obstacle := find_obstacle(config, _processes()):
        raise UsageRefused(f"--cuda-graph cannot be used: {obstacle}; use --no-cuda-graph")


def find_obstacle(config: Config, processes: int) -> str:
    """Return why a step on a GPU must not become a graph, or an empty string.

    Neither bfloat16 nor rows outside of the GPU's memory prevent it.
    """
    if ":" in config.model.model:
        return (
            f"networks of your own, {config.model.model}, may choose by values or count their "
            "calls, which a graph would not repeat"
        )
    if processes > 1:
        return f"{processes} processes train together, and exchange gradients within a step"
    return ""


def _processes() -> int:
    distributed = torch.distributed
    started = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if started else 1


def capture_on_gpu(function: Callable[[], None]) -> Callable[[], None]:
    """Record the kernels of a function as a CUDA graph; return what replays it.

    Raises:
        DeviceUnavailable: it cannot be recorded, for example since it waits for the GPU.
    """
    try:
        graph = torch.cuda.CUDAGraph()
        # a thread that reads rows ahead may allocate memory meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            function()
    except RuntimeError as err:
        raise DeviceUnavailable(
            f"a training step cannot be recorded as a CUDA graph: {err}; use --no-cuda-graph"
        ) from err
    return graph.replay


class StepGraph:
    """Makes steps of a training, those of its largest batches by a graph.

    Args:
        optimizer: the fused Adam that the steps use.
        capture: records a step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, capture: Capture = capture_on_gpu) -> None:
        self.replays = 0
        """Number of steps that were made by a graph."""
        self._optimizer = optimizer
        self._capture = capture
        self._size = 0
        self._warm = 0
        self._replay: Callable[[], None] | None = None

    def make_step(
        self, step: Step, rows: Tensor, eps: Tensor, learning_rate: float, kl_weight: float
    ) -> Tensor:
        """Make one step; `step` makes it eagerly, and is what a graph records.

        The next step overwrites the tensor that is returned.

        Raises:
            DeviceUnavailable: the step cannot be recorded.
        """
        if len(rows) > self._size:
            self._size, self._warm, self._replay = len(rows), 0, None
        if len(rows) < self._size:
            return step(rows, eps, learning_rate, kl_weight)
        if self._warm < WARM_UP_STEPS:
            self._warm += 1
            with _side_stream(rows):
                return step(rows, eps, learning_rate, kl_weight)
        self._replay = self._replay or self._record(step, rows, eps)
        self._rows.copy_(rows)
        self._eps.copy_(eps)
        self._learning_rate.fill_(learning_rate)
        self._kl_weight.fill_(kl_weight)
        self._replay()
        self.replays += 1
        return self._sums

    def _record(self, step: Step, rows: Tensor, eps: Tensor) -> Callable[[], None]:
        self._rows, self._eps = torch.empty_like(rows), torch.empty_like(eps)
        self._learning_rate, self._kl_weight = (
            torch.zeros((), device=eps.device) for _ in range(2)
        )
        inputs = self._rows, self._eps, self._learning_rate, self._kl_weight

        def make() -> None:
            self._sums = step(*inputs)

        self._optimizer.zero_grad()  # so that the graph has gradients of its own
        with _capturable(self._optimizer):
            return self._capture(make)


@contextmanager
def _side_stream(rows: Tensor) -> Iterator[None]:
    """Run the block on a stream of its own, where rows are on a GPU: a capture is on one, too."""
    if not rows.is_cuda:
        yield
        return
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


@contextmanager
def _capturable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let Adam be recorded within the block alone: its settings are saved as those of any other."""
    groups = optimizer.param_groups
    kept = [(group["lr"], group["capturable"]) for group in groups]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group, (rate, capturable) in zip(groups, kept, strict=True):
            group["lr"], group["capturable"] = rate, capturable
