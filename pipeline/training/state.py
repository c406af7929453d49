"""The complete state of a training, so that a resumed one equals one that was never interrupted.

In: a `Dataset` and a `Config`, or the bytes of a saved state. Out: a `TrainState`, or its bytes.
Damaged bytes raise `VerificationFailed`, changed data raises `DataRefused`, and numbers that are
not finite raise `TrainingDiverged`.
"""

import hashlib
import io
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.config import Config, TrainConfig
from pipeline.data.dataset import Dataset
from pipeline.errors import TrainingDiverged
from pipeline.model.likelihoods import resolve_model_config
from pipeline.model.vae import VAE
from pipeline.training.cuda_graph import StepGraph, check_gpu_settings
from pipeline.training.schedules import total_steps
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
    """States of torch's global generators by device, which a user's networks may draw from."""
    best_weights: Mapping[str, Tensor]
    order: Tensor
    """This epoch's permutation of the training rows; empty before its first step."""
    sums: Tensor
    """Sums of log-likelihood, KL and bound over this epoch's rows so far, (3,), on the device."""
    history: list[dict[str, float]]
    """Metrics of each epoch."""
    epoch: int = 1
    """The epoch in progress, from 1."""
    position: int = 0
    """Number of rows of `order` that have been used."""
    step: int = 0
    """Steps completed since the start of training."""
    best_epoch: int = 0
    best_elbo: float = -math.inf
    seconds: float = 0.0
    """Training time so far, over all processes."""
    saves: int = 0
    """How often the state has been saved, including this time."""
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
            torch.manual_seed(self.settings.seed)
            for device, value in self.rng.items():
                _global_generator(device).set_state(value)
            yield

    def record_rng(self) -> None:
        """Record the states of torch's global generators in `rng`."""
        devices = {"cpu", self.device}
        self.rng = {device: _global_generator(device).get_state() for device in devices}

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
        for name, value in zip(("log-likelihood", "KL", "bound"), self.sums, strict=True):
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
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "rng": dict(self.rng),
            **{name: getattr(self, name) for name in _SAVED_FIELDS},
        }
        buffer = io.BytesIO(bytes(_DIGEST_BYTES))
        buffer.seek(_DIGEST_BYTES)
        torch.save(content, buffer)
        view = buffer.getbuffer()
        view[:_DIGEST_BYTES] = hashlib.sha256(view[_DIGEST_BYTES:]).digest()
        return buffer.getvalue()


def build_model(dataset: Dataset, config: Config) -> VAE:
    """Build the model with its initial weights, its scaling fitted to the training rows.

    Raises:
        DataRefused: the data does not fit the likelihood.
    """
    settings = resolve_model_config(config, *dataset.rows, schema=dataset.schema)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        model = VAE(dataset.x_shape, settings, dataset.schema)
    model.px.fit(dataset.train.x, dataset.max_byte)
    for x in dataset.rows:
        model.px.check(x)
    bias = getattr(model.decoder, "output_bias", None)
    if (settings.output_bias or model.mixed) and bias is not None:
        bias.data.copy_(model.px.output_bias(dataset.train.x))
    return model


def begin_training(dataset: Dataset, config: Config, device: str) -> TrainState:
    """Return the state before the first step.

    Raises:
        DataRefused: the data does not fit the likelihood.
        DeviceUnavailable: the device lacks what the settings ask for.
        UsageRefused: the warm-up is not shorter than the training, or a setting does not fit the
            networks.
    """
    steps = total_steps(len(dataset.train.x), config.train)
    if config.train.kl_warmup_steps >= steps:
        raise UsageRefused(
            f"the training has {steps:,} steps, and its warm-up {config.train.kl_warmup_steps:,}: "
            "give fewer --kl-warmup-steps, or more --epochs"
        )
    return _initial_state(dataset, config, device)


def _initial_state(dataset: Dataset, config: Config, device: str) -> TrainState:
    check_gpu_settings(config, device)
    model = build_model(dataset, config)
    state = TrainState(
        config=config,
        data=dataset.digests(),
        device=device,
        model=model.to(device),
        optimizer=torch.optim.Adam(model.parameters(), lr=config.train.learning_rate, fused=True),
        generator=torch.Generator(device).manual_seed(config.train.seed),
        rng={},
        best_weights={},
        order=torch.empty(0, dtype=torch.int64, device=device),
        sums=torch.zeros(3, device=device),
        history=[],
    )
    state.best_weights = state.copy_weights()
    if config.train.cuda_graph:
        state.graph = StepGraph(state.optimizer)
    return state


def read_state(content: bytes) -> Mapping[str, Any]:
    """Read what `to_bytes` wrote, onto the CPU; raise `VerificationFailed` if a byte differs."""
    if hashlib.sha256(content[_DIGEST_BYTES:]).digest() != content[:_DIGEST_BYTES]:
        raise VerificationFailed("the saved training state is damaged: its digest differs")
    saved: Mapping[str, Any] = torch.load(
        io.BytesIO(content[_DIGEST_BYTES:]), weights_only=True, map_location="cpu"
    )
    return saved


def restore_training(saved: Mapping[str, Any], dataset: Dataset) -> TrainState:
    """Return the state whose content `read_state` read.

    Raises:
        DataRefused: the training used other data.
        DeviceUnavailable: the device lacks what the settings ask for.
    """
    for split, digest in dataset.digests().items():
        if digest != saved["data"][split]:
            raise DataRefused(
                f"{dataset.source} has changed since the training began: its {split} split is "
                f"{digest[:12]}, the training's {saved['data'][split][:12]}"
            )
    device = saved["device"]
    state = _initial_state(dataset, Config.from_json(saved["config"]), device)
    state.model.load_state_dict(saved["model"])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.generator.set_state(saved["generator"])
    state.rng = saved["rng"]
    for name in _SAVED_FIELDS:
        setattr(state, name, _move(saved[name], device))
    return state


def _global_generator(device: str) -> torch.Generator:
    return torch.default_generator if device == "cpu" else torch.cuda.default_generators[0]


def _move(value: Any, device: str) -> Any:
    if isinstance(value, dict):
        return {name: _move(item, device) for name, item in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value
