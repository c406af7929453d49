"""The complete state of a training, so that a resumed one equals one that was never interrupted.

In: a `Dataset` and a `Config`, or the bytes of a saved state. Out: a `TrainState`, or its bytes.
Damaged bytes raise `VerificationFailed`, changed data raises `DataRefused`, and numbers that are
not finite raise `TrainingDiverged`.
"""

import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import Config, TrainConfig
from pipeline.errors import TrainingDiverged
from pipeline.model.vae import VAE
from pipeline.training.cuda_graph import StepGraph
from pipeline.training.processes import ALONE, Processes
from serving.errors import DataRefused, UsageRefused, VerificationFailed

_DIGEST_BYTES = hashlib.sha256().digest_size
SAVED_FIELDS = (
    "epoch",
    "step",
    "position",
    "history",
    "best_epoch",
    "best_elbo",
    "seconds",
    "saves",
    "order",
    "sums",
    "best_weights",
)
"""Fields that are saved unchanged."""
STREAMED_FIELDS = ("streamed", "window_rows", "drawn_from", "blocks")
"""Fields that are saved as well if the rows are streamed."""


@dataclass(slots=True)
class TrainState:
    """A training between two steps; learning rate and KL weight follow from `step`."""

    config: Config
    data: Mapping[str, str]
    """SHA-256 of each split."""
    device: str
    model: VAE
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    """The source of the order of rows, of binarized pixels and of noise."""
    rng: Mapping[str, Tensor]
    """States of torch's global generators by device, (processes, bytes), which a user's networks
    may draw from; empty before they are first recorded."""
    best_weights: Mapping[str, Tensor]
    order: Tensor
    """This epoch's permutation of the training rows, if they are in memory; empty before its first
    step."""
    sums: Tensor
    """Sums of log-likelihood, KL and bound over the rows that each process has had in this epoch,
    (processes, 3), on the device; of other processes, as they were when they were last gathered."""
    batch_loss: nn.Module
    """The `BatchLoss` of the model; its gradients are those of all processes."""
    history: list[dict[str, float]]
    """Metrics of each epoch."""
    epoch: int = 1
    """The epoch in progress, from 1."""
    position: int = 0
    """Number of rows that have been used in this epoch."""
    step: int = 0
    """Steps completed since the start of training."""
    best_epoch: int = 0
    best_elbo: float = -math.inf
    seconds: float = 0.0
    """Training time so far, over all processes."""
    saves: int = 0
    """How often the state has been saved, including this time."""
    streamed: Mapping[str, Any] | None = None
    """What `Dataset.describe` says of rows that are streamed; None for rows in memory."""
    window_rows: int = 0
    """The most rows that are permuted at once, if they are streamed; 0 for all of them."""
    drawn_from: Tensor = field(default_factory=partial(torch.empty, 0, dtype=torch.uint8))
    """The state of `generator` from which the order of this epoch was drawn, if the rows are
    streamed and it is one of all rows; empty before its first step."""
    blocks: str = ""
    """SHA-256 of the numbers of rows in the blocks of streamed rows, on which their order depends.
    """
    processes: Processes = ALONE
    """Those that share each batch."""
    graph: StepGraph | None = None
    """What makes the steps by a CUDA graph, if the settings ask for it; not saved."""
    origin: Mapping[str, str] = field(default_factory=dict)
    """Where the weights before the first step came from, if they were not drawn; not saved."""

    @property
    def settings(self) -> TrainConfig:
        """The settings of the optimisation."""
        return self.config.train

    @property
    def out_of_time(self) -> bool:
        """Whether `max_time` has been used up."""
        limit = self.settings.max_time
        return limit is not None and self.seconds >= 60 * limit

    @property
    def finished(self) -> bool:
        """Whether training ends here: between epochs, at any of its limits."""
        done = self.epoch - 1
        out_of_patience = done - self.best_epoch >= self.settings.patience
        limit_reached = done >= self.settings.epochs or out_of_patience or self.out_of_time
        return self.position == 0 and limit_reached

    @property
    def early_end(self) -> str:
        """Why a training that has finished did so before its last epoch, if it did."""
        settings, done = self.settings, self.epoch - 1
        if self.out_of_time:
            return f"{settings.max_time:g} minutes have passed: training ends in epoch {done}"
        if done < settings.epochs:
            return (
                f"validation has not improved for {settings.patience} epochs: training ends, with "
                f"the weights of epoch {self.best_epoch}"
            )
        return ""

    def copy_weights(self) -> dict[str, Tensor]:
        """Return a copy of the current weights."""
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    @contextmanager
    def isolated_rng(self) -> Iterator[None]:
        """Set torch's global generators to this training's state within the block only."""
        cuda = [torch.device(self.device)] if self.device != "cpu" else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(self.settings.seed + self.processes.rank)
            for device, values in self.rng.items():
                # set_state reads from the start of the memory, whatever the offset of a view
                _global_generator(device).set_state(values[self.processes.rank].clone())
            yield

    def gather(self) -> None:
        """Record what each process has of its own: its sums, and its global generators in `rng`."""
        gather = self.processes.gather
        devices = sorted({"cpu", self.device})
        self.rng = {device: gather(_global_generator(device).get_state()) for device in devices}
        self.gather_sums()

    def gather_sums(self) -> Tensor:
        """Record the sums of each process, and return those of all, (3,)."""
        self.sums = self.processes.gather(self.sums[self.processes.rank])
        return self.sums.sum(0)

    def check_processes(self) -> None:
        """Check that all processes are about to train the same.

        Raises:
            DataRefused: one has other data.
            UsageRefused: one has other settings, or other weights.
        """
        weights = b"".join(value.cpu().numpy().tobytes() for value in self.copy_weights().values())
        settings = json.dumps([self.config.to_json(), self.device, self.step, self.window_rows])
        for content, what, error in (
            (json.dumps(dict(self.data)).encode(), "data", DataRefused),
            (settings.encode(), "settings", UsageRefused),
            (weights, "weights", UsageRefused),
        ):
            if (other := self.processes.differing(content)) is not None:
                raise error(f"process {other} has other {what} than process 0")

    def check_finite(self) -> None:
        """Check that weights, Adam's moments and sums are finite, with one synchronization.

        Raises:
            TrainingDiverged: some are not; the message names the epoch and the first of them.
        """
        tensors = dict(self._tensors())
        finite = torch.stack([value.isfinite().all() for value in tensors.values()]).tolist()
        if not all(finite):
            name = list(tensors)[finite.index(False)]
            raise TrainingDiverged(
                f"training diverged in epoch {self.epoch}: {name} is not finite; "
                "try a lower --learning-rate"
            )

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in zip(("log-likelihood", "KL", "bound"), self.sums.sum(0), strict=True):
            yield f"the sum of the {name}", value
        weights = dict(self.model.named_parameters())
        yield from weights.items()  # and not buffers: a mask may be infinite
        for name, parameter in weights.items():
            for moment in ("exp_avg", "exp_avg_sq"):
                value = self.optimizer.state.get(parameter, {}).get(moment)
                if value is not None:
                    yield f"Adam's {moment} of {name}", value

    def to_bytes(self) -> bytes:
        """Serialize the state, preceded by its SHA-256."""
        content = {
            "config": self.config.to_json(),
            "data": dict(self.data),
            "device": self.device,
            "threads": torch.get_num_threads(),
            "processes": self.processes.world,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "rng": dict(self.rng),
            **{name: getattr(self, name) for name in SAVED_FIELDS},
            **{name: getattr(self, name) for name in STREAMED_FIELDS if self.streamed},
        }
        buffer = io.BytesIO(bytes(_DIGEST_BYTES))
        buffer.seek(_DIGEST_BYTES)
        torch.save(content, buffer)
        view = buffer.getbuffer()
        view[:_DIGEST_BYTES] = hashlib.sha256(view[_DIGEST_BYTES:]).digest()
        return buffer.getvalue()


def read_state(content: bytes) -> Mapping[str, Any]:
    """Read what `to_bytes` wrote, onto the CPU; raise `VerificationFailed` if a byte differs."""
    if hashlib.sha256(content[_DIGEST_BYTES:]).digest() != content[:_DIGEST_BYTES]:
        raise VerificationFailed("the saved training state is damaged: its digest differs")
    saved: Mapping[str, Any] = torch.load(
        io.BytesIO(content[_DIGEST_BYTES:]), weights_only=True, map_location="cpu"
    )
    return saved


def _global_generator(device: str) -> torch.Generator:
    if device == "cpu":
        return torch.default_generator
    return torch.cuda.default_generators[torch.cuda.current_device()]
