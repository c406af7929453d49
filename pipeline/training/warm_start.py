"""Begin a training with the weights of an earlier model instead of drawn ones.

In: a training that has not begun, and a trained model. Out: the training with that model's weights
and scaling, so that before the first step it is that model. Batches and noise still come from the
seed. Raises `UsageRefused` if the two would not be the same function.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from pipeline.config import ModelConfig
from pipeline.model.checkpoint import Checkpoint
from pipeline.model.parametrizations import fix_weights
from pipeline.training.state import TrainState
from serving.errors import UsageRefused

_SHAPES = ("model", "hidden_dims", "latent_dim", "likelihood", "sigma", "num_categories")
"""Settings that give the weights their names and shapes."""


@dataclass(frozen=True, slots=True)
class InitialModel:
    """A trained model to start from, and its origin: `from` and, of a bundle, `sha256`."""

    checkpoint: Checkpoint
    origin: Mapping[str, str]


def warm_start(state: TrainState, x_dtype: str, initial: InitialModel) -> None:
    """Give a training the weights of an earlier model.

    Raises:
        UsageRefused: rows, a weight or a setting do not fit; the first one is named.
    """
    fault = next(_faults(initial.checkpoint, state, x_dtype), None)
    if fault is not None:
        raise UsageRefused(f"cannot start from {initial.origin['from']}: {fault}")
    state.model.load_state_dict(initial.checkpoint.model.state_dict())
    state.best_weights = state.copy_weights()
    state.origin = initial.origin


def _faults(checkpoint: Checkpoint, state: TrainState, x_dtype: str) -> Iterator[str]:
    old, new = checkpoint.model, state.model
    rows = f"{checkpoint.x_dtype} {old.x_shape}", f"{x_dtype} {new.x_shape}"
    if rows[0] != rows[1]:
        yield f"its rows are {rows[0]}, these are {rows[1]}"
    given, own = old.state_dict(), new.state_dict()
    plain = copy.deepcopy(new).eval()
    fix_weights(plain)
    for name in sorted(own.keys() - plain.state_dict().keys()):
        layer = name.partition(".parametrizations")[0]
        yield f"{layer} computes its weight, of which a trained model keeps the value alone"
    for name in dict.fromkeys((*own, *given)):
        shapes = [tuple(part[name].shape) if name in part else "absent" for part in (given, own)]
        if shapes[0] != shapes[1]:
            yield (
                f"its {name} is {shapes[0]}, here it is {shapes[1]}"
                f"{_advise(old.settings, new.settings, _SHAPES)}"
            )
    functions = ["likelihood", "activation"]
    if new.settings.likelihood == "gaussian":
        functions += ["sigma"] if new.settings.sigma != "fixed" else ["sigma", "fixed_sigma"]
    if advice := _advise(old.settings, new.settings, functions):
        yield f"it computes something else with its weights{advice}"
    if new.settings.likelihood != "gaussian":  # whose scaling may be that of other rows
        for name, value in new.likelihood.named_buffers():
            before = given.get(f"likelihood.{name}")  # None for what follows from the schema
            fitted_at_the_end = name.startswith("remainder.")
            if before is None or fitted_at_the_end:
                continue
            if not torch.equal(before, value.cpu()):
                yield f"its {name} is {before.tolist()}, for these rows it is {value.tolist()}"


def _advise(old: ModelConfig, new: ModelConfig, names: list[str] | tuple[str, ...]) -> str:
    """Name the options that the earlier model had and this one lacks."""
    options = [
        _option(name, getattr(old, name))
        for name in names
        if getattr(old, name) != getattr(new, name)
    ]
    return f": give {' '.join(options)}" if options else ""


def _option(name: str, value: object) -> str:
    flag = name.replace("_", "-")
    return f"--{flag} {','.join(map(str, value)) if isinstance(value, tuple) else value}"
