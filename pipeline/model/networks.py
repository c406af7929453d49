"""Encoders and decoders by name, or by the import path of a user's own.

A builder takes a `NetSpec` and gives two ordinary modules. The encoder takes standardized rows
(batch, x_width) and gives two tensors (batch, latent_dim): `z_loc` and the log of `z_scale`. The
decoder takes latents (batch, latent_dim) and gives the likelihood's parameters (batch,
params_width). Both work on every row by itself and draw no random numbers when they evaluate. A
decoder may have a parameter `output_bias` (params_width,), to be set from the data.
"""

import importlib
import sys
import sysconfig
import traceback
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

import pipeline
from pipeline.model.net_spec import Builder, Nets, NetSpec
from serving.errors import UsageRefused


class Encoder(nn.Module):
    """Layers of a perceptron to the posterior's parameters."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        widths = (spec.x_width, *spec.hidden_dims)
        self.hidden = _layers(widths, spec)
        self.z_loc = nn.Linear(widths[-1], spec.latent_dim)
        self.z_log_scale = nn.Linear(widths[-1], spec.latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encode `x`."""
        h = self.hidden(x)
        return self.z_loc(h), self.z_log_scale(h)


class Decoder(nn.Module):
    """The encoder's layers in reverse, to the likelihood's parameters."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        widths = (spec.latent_dim, *reversed(spec.hidden_dims))
        self.hidden = _layers(widths, spec)
        self.x_params = nn.Linear(widths[-1], spec.params_width)

    @property
    def output_bias(self) -> Tensor:
        """What the parameters are without any latent."""
        return self.x_params.bias

    def forward(self, z: Tensor) -> Tensor:
        """Decode `z`."""
        return cast(Tensor, self.x_params(self.hidden(z)))


def build_mlp(spec: NetSpec) -> Nets:
    """Build two perceptrons."""
    return Encoder(spec), Decoder(spec)


def _layers(widths: Sequence[int], spec: NetSpec) -> nn.Sequential:
    return nn.Sequential(
        *(layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), spec.activate()))
    )


def build_nets(spec: NetSpec, model: str) -> Nets:
    """Build the nets that `model` names, and see that their shapes are right.

    Raises:
        UsageRefused: there is no such builder, or what it builds does not fit the data.
    """
    # here, so that the table can name builders that use this module
    from pipeline.model.convolutional import build_conv, build_resnet

    builders: Mapping[str, Builder] = {
        "mlp": build_mlp,
        "conv": build_conv,
        "resnet": build_resnet,
    }
    if ":" in model:
        built = _build_own(model, spec)
    elif model in builders:
        built = builders[model](spec)
    else:
        raise UsageRefused(
            f"model must be one of {', '.join(builders)}, or package.module:function; got {model!r}"
        )
    encoder, decoder = nets = _check_pair(model, built)
    for module, width, sizes in (
        (encoder, spec.x_width, [(2, spec.latent_dim)] * 2),
        (decoder, spec.latent_dim, [(2, spec.params_width)]),
    ):
        _check_shapes(model, module, width, sizes)
    bias = getattr(decoder, "output_bias", None)
    if bias is not None and (got := _shape(bias)) != (spec.params_width,):
        raise UsageRefused(
            f"output_bias of model {model} must be a tensor of {(spec.params_width,)}, got {got}"
        )
    return nets


def _check_pair(model: str, built: object) -> Nets:
    parts = built if isinstance(built, tuple) else (built,)
    if len(parts) != 2 or not all(isinstance(part, nn.Module) for part in parts):
        got = ", ".join(type(part).__name__ for part in parts) or "none"
        raise UsageRefused(
            f"model {model} must build two modules, an encoder and a decoder; got {got}"
        )
    return cast(Nets, parts)


@torch.no_grad()
def _check_shapes(
    model: str, module: nn.Module, width: int, expected: list[tuple[int, int]]
) -> None:
    try:
        output = module(torch.zeros(2, width))
    except Exception as err:
        raise UsageRefused(
            f"{type(module).__name__} of model {model} fails on two rows of {width}{_tell(err)}"
        ) from err
    shapes = [_shape(part) for part in (output if isinstance(output, tuple) else (output,))]
    if shapes != expected:
        raise UsageRefused(
            f"{type(module).__name__} of model {model} must give {expected} for two rows of "
            f"{width}, got {shapes}"
        )


def _shape(value: object) -> tuple[int, ...] | str:
    """A tensor's shape; of anything else its type."""
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _build_own(model: str, spec: NetSpec) -> object:
    """Call a user's function; whatever it raises is said in one line."""
    builder = _import_builder(model)
    try:
        return builder(spec)
    except UsageRefused:
        raise
    except Exception as err:
        raise UsageRefused(f"model {model} cannot be built{_tell(err, builder)}") from err


def _tell(err: Exception, function: object = None) -> str:
    """Say an error, and the line of the user's code that it came from, as far as it is known."""
    if isinstance(err, SyntaxError):
        return f", {err.filename}:{err.lineno}: {type(err).__name__}: {err.msg}"
    frames = traceback.extract_tb(err.__traceback__)
    lines = [(frame.filename, frame.lineno) for frame in frames if _is_own(frame.filename)]
    code = getattr(function, "__code__", None)  # where it was called with the wrong arguments
    lines = lines or ([(code.co_filename, code.co_firstlineno)] if code else [])
    place = ", {}:{}".format(*lines[-1]) if lines else ""
    said = str(err).partition("\n")[0]
    return f"{place}: {type(err).__name__}" + (f": {said}" if said else "")


def _is_own(filename: str) -> bool:
    """Whether a file is a user's: not of Python, of an installed package or of this one."""
    installed = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    others = [*installed, Path(pipeline.__file__).parent]
    path = Path(filename)
    return path.is_file() and not any(path.is_relative_to(folder) for folder in others)


def _import_builder(path: str) -> Builder:
    """Import `package.module:function`, also from the working folder."""
    module, _, name = path.partition(":")
    if not module or module.startswith(".") or not name:
        raise UsageRefused(f"model must be package.module:function, got {path!r}")
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)
    try:
        builder = getattr(importlib.import_module(module), name)
    except Exception as err:
        raise UsageRefused(f"cannot import model {path!r}{_tell(err)}") from err
    if not callable(builder):
        raise UsageRefused(
            f"model {path!r} must name a function that takes a NetSpec, got "
            f"{type(builder).__name__}"
        )
    return cast(Builder, builder)
