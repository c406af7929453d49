"""Build an encoder and a decoder by the name of an architecture, or by a user's import path."""

import importlib
import sys
import sysconfig
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

import pipeline
from pipeline.model.convolutional import build_conv, build_resnet
from pipeline.model.net_spec import Builder, Nets, NetSpec
from pipeline.model.perceptron import build_mlp
from pipeline.model.row_check import find_row_fault
from serving.errors import UsageRefused

BUILDERS: Mapping[str, Builder] = {"mlp": build_mlp, "conv": build_conv, "resnet": build_resnet}


def build_nets(spec: NetSpec, model: str) -> Nets:
    """Build the networks that `model` names, and check the shapes of their outputs.

    Raises:
        UsageRefused: there is no such builder, or its networks do not fit the data.
    """
    if ":" in model:
        built = _build_own(model, spec)
    elif model in BUILDERS:
        built = BUILDERS[model](spec)
    else:
        raise UsageRefused(
            f"model must be one of {', '.join(BUILDERS)}, or package.module:function; got {model!r}"
        )
    encoder, decoder = nets = _check_pair(model, built)
    z_shape, params_shape = (2, spec.latent_dim), (2, spec.params_width)
    _check_shapes(model, encoder, spec.x_width, [z_shape, z_shape])
    _check_shapes(model, decoder, spec.latent_dim, [params_shape])
    bias = getattr(decoder, "output_bias", None)
    if bias is not None and (got := _shape(bias)) != (spec.params_width,):
        raise UsageRefused(
            f"output_bias of model {model} must be a tensor of {(spec.params_width,)}, got {got}"
        )
    if ":" in model:
        _check_rows(model, "encoder", encoder, spec.x_width)
        _check_rows(model, "decoder", decoder, spec.latent_dim)
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
            f"{type(module).__name__} of model {model} fails on two rows of {width}{_reason(err)}"
        ) from err
    shapes = [_shape(part) for part in (output if isinstance(output, tuple) else (output,))]
    if shapes != expected:
        raise UsageRefused(
            f"{type(module).__name__} of model {model} must give {expected} for two rows of "
            f"{width}, got {shapes}"
        )


def _check_rows(model: str, name: str, module: nn.Module, width: int) -> None:
    try:
        fault = find_row_fault(name, module, width)
    except Exception as err:
        raise UsageRefused(
            f"{type(module).__name__} of model {model} fails on one row or in float64, with which "
            f"parity compares{_reason(err)}"
        ) from err
    if fault:
        raise UsageRefused(f"model {model} cannot be served: {fault}")


def _shape(value: object) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _build_own(model: str, spec: NetSpec) -> object:
    """Call a user's builder; report any error that it raises in one line."""
    builder = _import_builder(model)
    try:
        return builder(spec)
    except UsageRefused:
        raise
    except Exception as err:
        raise UsageRefused(f"model {model} cannot be built{_reason(err, builder)}") from err


def _reason(err: Exception, function: object = None) -> str:
    """Describe an error, with the line of the user's code that raised it, if that is known."""
    if isinstance(err, SyntaxError):
        return f", {err.filename}:{err.lineno}: {type(err).__name__}: {err.msg}"
    frames = traceback.extract_tb(err.__traceback__)
    lines = [(frame.filename, frame.lineno) for frame in frames if _is_own(frame.filename)]
    # no line of the user's code ran if its function was called with the wrong arguments
    code = getattr(function, "__code__", None)
    lines = lines or ([(code.co_filename, code.co_firstlineno)] if code else [])
    location = ", {}:{}".format(*lines[-1]) if lines else ""
    message = str(err).partition("\n")[0]
    return f"{location}: {type(err).__name__}" + (f": {message}" if message else "")


def _is_own(filename: str) -> bool:
    """Whether a file is a user's: not part of Python, of an installed package or of this one."""
    path = Path(filename)
    others = (Path(sysconfig.get_path("stdlib")), Path(pipeline.__file__).parent)
    installed = {"site-packages", "dist-packages"} & {*path.parts}
    return path.is_file() and not installed and not any(map(path.is_relative_to, others))


def _import_builder(path: str) -> Builder:
    """Import `package.module:function`; the module may be in the working folder."""
    module, _, name = path.partition(":")
    if not module or module.startswith(".") or not name:
        raise UsageRefused(f"model must be package.module:function, got {path!r}")
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)
    try:
        builder = getattr(importlib.import_module(module), name)
    except Exception as err:
        raise UsageRefused(f"cannot import model {path!r}{_reason(err)}") from err
    if not callable(builder):
        raise UsageRefused(
            f"model {path!r} must name a function that takes a NetSpec, got "
            f"{type(builder).__name__}"
        )
    return cast(Builder, builder)
