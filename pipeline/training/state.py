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
from pipeline.data.plan import default_memory
from pipeline.data.splits import Dataset, StreamedSplit
from pipeline.errors import TrainingDiverged
from pipeline.model.likelihoods import resolve_model_config
from pipeline.model.vae import VAE
from pipeline.training.batch_loss import BatchLoss
from pipeline.training.processes import ALONE, Processes
from pipeline.training.schedules import passes_per_epoch, total_steps
from pipeline.training.windows import choose_window
from serving.errors import DataRefused, UsageRefused, VerificationFailed

_DIGEST_BYTES = hashlib.sha256().digest_size
_SAVED_FIELDS = (
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
_STREAMED_FIELDS = ("streamed", "window_rows", "drawn_from")
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
    processes: Processes = ALONE
    """Those that share each batch."""
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
        settings = json.dumps([self.config.to_json(), self.device, self.step])
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
            **{name: getattr(self, name) for name in _SAVED_FIELDS},
            **{name: getattr(self, name) for name in _STREAMED_FIELDS if self.streamed},
        }
        buffer = io.BytesIO(bytes(_DIGEST_BYTES))
        buffer.seek(_DIGEST_BYTES)
        torch.save(content, buffer)
        view = buffer.getbuffer()
        view[:_DIGEST_BYTES] = hashlib.sha256(view[_DIGEST_BYTES:]).digest()
        return buffer.getvalue()


def build_model(dataset: Dataset, config: Config) -> VAE:
    """Build the model with its initial weights, its scaling fitted to the training rows.

    If the rows are streamed, it is fitted to the fixed sample of them.

    Raises:
        DataRefused: the data does not fit the likelihood.
    """
    settings = resolve_model_config(config, *dataset.rows, schema=dataset.schema)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        model = VAE(dataset.x_shape, settings, dataset.schema)
    model.px.fit(dataset.sample, dataset.max_byte)
    for x in dataset.rows:
        model.px.check(x)
    bias = getattr(model.decoder, "output_bias", None)
    if (settings.output_bias or model.mixed) and bias is not None:
        bias.data.copy_(model.px.output_bias(dataset.sample))
    return model


def begin_training(
    dataset: Dataset, config: Config, device: str, processes: Processes = ALONE
) -> TrainState:
    """Return the state before the first step, of a training that several processes may share.

    Raises:
        DataRefused: the data does not fit the likelihood.
        UsageRefused: the warm-up is not shorter than the training.
    """
    steps = total_steps(dataset.train_rows, config.train)
    if config.train.kl_warmup_steps >= steps:
        raise UsageRefused(
            f"the training has {steps:,} steps, and its warm-up {config.train.kl_warmup_steps:,}: "
            "give fewer --kl-warmup-steps, or more --epochs"
        )
    return _initial_state(dataset, config, device, processes)


def _initial_state(
    dataset: Dataset, config: Config, device: str, processes: Processes
) -> TrainState:
    model = build_model(dataset, config).to(device)
    any_row = torch.from_numpy(dataset.sample[:1]).to(device)
    state = TrainState(
        config=config,
        data=dataset.digests(),
        streamed=dataset.streamed,
        device=device,
        model=model,
        batch_loss=processes.parallel(BatchLoss(model, config.train, processes, any_row)),
        optimizer=torch.optim.Adam(model.parameters(), lr=config.train.learning_rate, fused=True),
        generator=torch.Generator(device).manual_seed(config.train.seed),
        rng={},
        best_weights={},
        order=torch.empty(0, dtype=torch.int64, device=device),
        sums=torch.zeros(processes.world, 3, device=device),
        history=[],
        processes=processes,
    )
    state.best_weights = state.copy_weights()
    if isinstance(dataset.train, StreamedSplit):
        passes = passes_per_epoch(dataset.train_rows, config.train)
        memory = dataset.plan.memory if dataset.plan else default_memory()
        state.window_rows = choose_window(dataset.train.x, passes, memory)
    return state


def read_state(content: bytes) -> Mapping[str, Any]:
    """Read what `to_bytes` wrote, onto the CPU; raise `VerificationFailed` if a byte differs."""
    if hashlib.sha256(content[_DIGEST_BYTES:]).digest() != content[:_DIGEST_BYTES]:
        raise VerificationFailed("the saved training state is damaged: its digest differs")
    saved: Mapping[str, Any] = torch.load(
        io.BytesIO(content[_DIGEST_BYTES:]), weights_only=True, map_location="cpu"
    )
    return saved


def restore_training(
    saved: Mapping[str, Any], dataset: Dataset, processes: Processes = ALONE
) -> TrainState:
    """Return the state whose content `read_state` read.

    Of as many processes as it was saved by, each goes on with what it had of its own. Of another
    number, the first takes the sums of all.

    Raises:
        DataRefused: the training used other data.
    """
    for split, digest in dataset.digests().items():
        if digest != saved["data"][split]:
            raise DataRefused(
                f"{dataset.source} has changed since the training began: its {split} split is "
                f"{digest[:12]}, the training's {saved['data'][split][:12]}"
            )
    device = saved["device"]
    state = _initial_state(dataset, Config.from_json(saved["config"]), device, processes)
    state.model.load_state_dict(saved["model"])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.generator.set_state(saved["generator"])
    for name in _SAVED_FIELDS:
        setattr(state, name, _move(saved[name], device))
    if state.streamed:
        for name in _STREAMED_FIELDS:
            setattr(state, name, saved[name])
    before, world = saved_processes(saved), processes.world
    # one process saved them without their first axis before there could be several
    state.rng = {name: value.reshape(before, -1) for name, value in saved["rng"].items()}
    state.sums = state.sums.reshape(before, 3)
    if before != world:
        state.rng = {name: _repeat(value, world) for name, value in state.rng.items()}
        total = state.sums.sum(0)
        state.sums = total.new_zeros(world, 3)
        state.sums[0] = total
    return state


def saved_processes(saved: Mapping[str, Any]) -> int:
    """Return how many processes saved a state."""
    return int(saved.get("processes", 1))


def _repeat(values: Tensor, count: int) -> Tensor:
    """Return `count` rows of a tensor, from its first one again if it has fewer."""
    return values[torch.arange(count) % len(values)]


def _global_generator(device: str) -> torch.Generator:
    if device == "cpu":
        return torch.default_generator
    return torch.cuda.default_generators[torch.cuda.current_device()]


def _move(value: Any, device: str) -> Any:
    if isinstance(value, dict):
        return {name: _move(item, device) for name, item in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value
