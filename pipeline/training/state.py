"""All that a training is, at any step: to go on from it is to have never stopped.

In: a `Dataset` and a `Config`, or the bytes of an earlier state. Out: a `TrainState`, or its bytes.
Bytes that are damaged raise `VerificationFailed`, other data `DataRefused`, and numbers that are
not finite `TrainingDiverged`.
"""

import hashlib
import io
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.config import Config, TrainConfig
from pipeline.data.dataset import Dataset
from pipeline.errors import TrainingDiverged
from pipeline.model.vae import VAE
from serving.errors import DataRefused, VerificationFailed

_DIGEST_BYTES = hashlib.sha256().digest_size
_VALUES = (
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
"""Fields that are kept as they are."""


@dataclass(slots=True)
class TrainState:
    """A training between two steps. The learning rate and the KL's weight follow from `step`."""

    config: Config
    data: Mapping[str, str]
    """SHA-256 by split."""
    device: str
    model: VAE
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    """Draws order, pixels and noise."""
    rng: Mapping[str, Tensor]
    """States of torch's own generators by device, which a user's nets may draw from."""
    best_weights: Mapping[str, Tensor]
    order: Tensor
    """The epoch's permutation of the training rows; empty before its first step."""
    sums: Tensor
    """Sums of log-likelihood, KL and bound over the rows of this epoch, (3,), on the device."""
    history: list[dict[str, float]]
    """Metrics by epoch."""
    epoch: int = 1
    """The epoch in progress, from 1."""
    position: int = 0
    """Rows of `order` that have been used."""
    step: int = 0
    """Steps made since the training began."""
    best_epoch: int = 0
    best_elbo: float = -math.inf
    seconds: float = 0.0
    """Time spent so far, over all processes."""
    saves: int = 0
    """How often the state has been saved, this time included."""

    @property
    def settings(self) -> TrainConfig:
        """The optimisation's settings."""
        return self.config.train

    @property
    def out_of_time(self) -> bool:
        """Whether `max_time` is spent."""
        limit = self.settings.max_time
        return limit is not None and self.seconds >= 60 * limit

    @property
    def finished(self) -> bool:
        """Whether no further epoch is to begin."""
        last = self.epoch - 1
        waited = last - self.best_epoch >= self.settings.patience
        between = self.position == 0
        return between and (last >= self.settings.epochs or waited or self.out_of_time)

    def copy_weights(self) -> dict[str, Tensor]:
        """The weights as they are now."""
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    @contextmanager
    def own_generators(self) -> Iterator[None]:
        """Let torch's own generators be this training's, for the block alone."""
        cuda = [torch.device(self.device)] if self.device != "cpu" else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(self.settings.seed)
            for device, value in self.rng.items():
                _generator_of(device).set_state(value)
            yield

    def keep_generators(self) -> None:
        """Note the states of torch's own generators."""
        devices = {"cpu", self.device}
        self.rng = {device: _generator_of(device).get_state() for device in devices}

    def check_finite(self) -> None:
        """Look for what is not finite in weights, moments and sums, with one wait for the device.

        Raises:
            TrainingDiverged: names the epoch and the first of them.
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
        yield from self.model.state_dict().items()
        for name, parameter in self.model.named_parameters():
            for moment in ("exp_avg", "exp_avg_sq"):
                value = self.optimizer.state.get(parameter, {}).get(moment)
                if value is not None:
                    yield f"Adam's {moment} of {name}", value

    def to_bytes(self) -> bytes:
        """The state with its SHA-256 before it."""
        content = {
            "config": self.config.to_json(),
            "data": dict(self.data),
            "device": self.device,
            "threads": torch.get_num_threads(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "rng": dict(self.rng),
            **{name: getattr(self, name) for name in _VALUES},
        }
        buffer = io.BytesIO(bytes(_DIGEST_BYTES))
        buffer.seek(_DIGEST_BYTES)
        torch.save(content, buffer)
        view = buffer.getbuffer()
        view[:_DIGEST_BYTES] = hashlib.sha256(view[_DIGEST_BYTES:]).digest()
        return buffer.getvalue()


def begin(dataset: Dataset, config: Config, device: str, model: VAE) -> TrainState:
    """The state before the first step, of a `model` with its initial weights."""
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
    return state


def read_state(content: bytes) -> Mapping[str, Any]:
    """What `to_bytes` wrote, on the CPU; raises `VerificationFailed` where a byte differs."""
    if hashlib.sha256(content[_DIGEST_BYTES:]).digest() != content[:_DIGEST_BYTES]:
        raise VerificationFailed("the state of the training is damaged: its digest differs")
    saved: Mapping[str, Any] = torch.load(
        io.BytesIO(content[_DIGEST_BYTES:]), weights_only=True, map_location="cpu"
    )
    return saved


def restore(saved: Mapping[str, Any], dataset: Dataset, model: VAE) -> TrainState:
    """The state that `read_state` read; the weights of `model` become its.

    Raises:
        DataRefused: the training had other data.
    """
    for split, digest in dataset.digests().items():
        if digest != saved["data"][split]:
            raise DataRefused(
                f"{dataset.source} has changed since the training began: its {split} split is "
                f"{digest[:12]}, the training's {saved['data'][split][:12]}"
            )
    device = saved["device"]
    state = begin(dataset, Config.from_json(saved["config"]), device, model)
    state.model.load_state_dict(saved["model"])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.generator.set_state(saved["generator"])
    state.rng = saved["rng"]
    for name in _VALUES:
        setattr(state, name, _move(saved[name], device))
    return state


def _generator_of(device: str) -> torch.Generator:
    return torch.default_generator if device == "cpu" else torch.cuda.default_generators[0]


def _move(value: Any, device: str) -> Any:
    if isinstance(value, dict):
        return {name: _move(item, device) for name, item in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value
