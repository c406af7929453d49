"""Reduced precision: a model whose weights are float16 or int8, in torch and in ONNX.

In: a trained model, a precision and training rows to calibrate on. Out: the model in that
precision, which is the reference of its bundle, and graphs rewritten to hold the same numbers.
Inputs, outputs, biases, scales and the arithmetic of bounds are unchanged, so that clients need no
change.

`fp16` rounds every weight to float16 and computes in float32, so that activations cannot overflow.
`int8` computes the products of the wide layers in integers. The scales are fixed when the bundle is
made, because scales taken from a batch would let its rows change each other. Layers that read or
write latents stay float32: they are small, and their errors cost the most nats. A first layer whose
input has no bounds stays float32 too.
"""

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Precision
from pipeline.model.bernoulli import Bernoulli
from pipeline.model.operations import EPS, Array, rows_at_once, run_reference
from pipeline.model.perceptron import MlpEncoder
from pipeline.model.roundings import product_layers
from pipeline.model.vae import VAE
from serving.errors import UsageRefused
from serving.noise import draw_rows
from serving.operations import Operation

CALIBRATION_ROWS = 10_000
"""Training rows, at most, whose activations set the scales."""
STEPS = 255
"""Steps between the ends of the range of an activation; a weight has 127 on each side of zero."""

INT8_NEEDS = "int8 needs a linear hidden layer, over rows and not steps: use --precision fp16"
FIRST = "encoder.hidden.0"
"""The layer of the built-in encoder that reads the data."""

Ranges = Mapping[str, tuple[float, float]]
"""Least and largest input of every int8 layer, by the name of the layer."""


class QuantizedLinear(nn.Module):
    """A linear layer over uint8 activations and int8 weights, computed as integers would be.

    Activations beyond the calibrated range are clipped to its ends.
    """

    x_scale: Tensor
    x_zero: Tensor
    weight_scale: Tensor

    def __init__(self, layer: nn.Linear, low: float, high: float) -> None:
        super().__init__()
        largest = layer.weight.abs().amax(1)
        scale = torch.where(largest > 0, largest, 1) / 127
        steps = (layer.weight / scale.unsqueeze(1)).round()
        self.weight = nn.Parameter(steps.to(torch.int8), requires_grad=False)
        self.bias = layer.bias
        self.register_buffer("weight_scale", scale)
        # all zero; without it onnxruntime 1.31 inserts a scalar, and then refuses it
        self.register_buffer("weight_zero", torch.zeros(len(scale), dtype=torch.int8))
        x_scale = torch.tensor((high - low) / STEPS, dtype=torch.float32)
        self.register_buffer("x_scale", x_scale)
        self.register_buffer("x_zero", (-low / x_scale).round().clamp(0, STEPS).to(torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """Round to steps, multiply and add the bias; (…, features)."""
        steps = (self.to_steps(x) + self.x_zero).clamp(0, STEPS) - self.x_zero
        weight = self.weight.to(x.dtype) * self.weight_scale.unsqueeze(1)
        return F.linear(steps.to(x.dtype) * self.x_scale, weight, self.bias)

    def to_steps(self, x: Tensor) -> Tensor:
        """Return the nearest step, in float32 as the operator is defined, for any dtype."""
        return (x.float() / self.x_scale.float()).round()


def convert_precision(model: VAE, precision: str, ranges: Ranges | None = None) -> VAE:
    """Copy the model; the state dict of the copy holds the numbers of the bundle by their names.

    Raises:
        UsageRefused: the precision does not exist, or a weight does not fit it.
    """
    if precision not in get_args(Precision):
        known = ", ".join(get_args(Precision))
        raise UsageRefused(f"precision must be one of {known}, got {precision!r}")
    reduced = copy.deepcopy(model)
    if precision == "fp16":
        for layer in product_layers(reduced).values():
            layer.weight.data = layer.weight.data.half()
            if not layer.weight.isfinite().all():
                raise UsageRefused("a weight is too large for fp16: use --precision float32")
    elif precision == "int8":
        if not ranges:
            raise UsageRefused("int8 needs the ranges of its layers: calibrate on training rows")
        for name, (low, high) in ranges.items():
            parent, _, child = name.rpartition(".")
            layer = cast(nn.Linear, reduced.get_submodule(name))
            setattr(reduced.get_submodule(parent), child, QuantizedLinear(layer, low, high))
    return reduced


@torch.no_grad()
def calibrate(model: VAE, x: Array) -> dict[str, tuple[float, float]]:
    """Return the ranges of the inputs of the layers that `int8` rounds, over training rows `x`.

    The decoder is given the latents of these rows, and as many latents from the prior.

    Raises:
        UsageRefused: the model has no layer to round.
    """
    bounded = x.dtype == np.uint8 or isinstance(model.px, Bernoulli)
    layers = _wide_layers(model, bounded=bounded)
    if not layers:
        raise UsageRefused(INT8_NEEDS)
    ranges, sequences = dict[str, tuple[float, float]](), set[str]()
    watched = copy.deepcopy(model)
    for name in layers:

        def widen(_: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
            low, high = ranges.get(name, (0.0, 0.0))
            ranges[name] = (min(low, inputs[0].min().item()), max(high, inputs[0].max().item()))
            if inputs[0].dim() != 2:
                sequences.add(name)

        watched.get_submodule(name).register_forward_pre_hook(widen)
    x = x[:CALIBRATION_ROWS]
    noise, prior = (torch.from_numpy(draw_rows(s, 0, len(x), model.latent_dim)) for s in (0, 1))
    qz = watched.encode(torch.from_numpy(x))
    watched.decode(qz.loc + qz.scale * noise)
    watched.decode(prior)
    ranges = {name: ranges[name] for name in layers if name in ranges.keys() - sequences}
    if not ranges:
        raise UsageRefused(INT8_NEEDS)
    # true of all data, seen or not; in a user's net this name may be a later layer
    if FIRST in ranges and type(model.encoder) is MlpEncoder:
        ranges[FIRST] = (0.0, 1.0)
    return ranges


def _linear_layers(model: VAE) -> dict[str, nn.Linear]:
    return {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}


def _wide_layers(model: VAE, *, bounded: bool) -> list[str]:
    """Name all layers but those at the latents, and the first one if its input has no bounds.

    Layers that share their weight with another stay as they are.
    """
    layers = _linear_layers(model)
    inner = [name for name in layers if name.startswith("encoder.hidden.")]
    outer = [name for name in layers if name.startswith("decoder.")][1:]
    used = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    wide = (name for name in (*inner, *outer) if bounded or name != FIRST)
    return [name for name in wide if used[id(layers[name].weight)] == 1]


def rewrite_graph(proto: ModelProto, reduced: VAE) -> None:
    """Put the numbers of the reduced model into a float32 graph, with nodes that widen them."""
    state = {name: value.numpy() for name, value in reduced.state_dict().items()}
    narrow = {name for name, value in state.items() if value.dtype == np.float16}
    integers = {name for name, value in state.items() if value.dtype == np.int8}
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    used: dict[str, Array] = {}
    for node in nodes:
        for weight in narrow.intersection(node.input):
            proto.graph.node.extend(_once(proto, [_widen(weight)]))
            node.input[:] = [f"{n}.float32" if n == weight else n for n in node.input]
            used[weight] = state[weight]
        if node.op_type == "Gemm" and node.input[1] in integers:
            layer = node.input[1].removesuffix("weight")
            used |= {name: value for name, value in state.items() if name.startswith(layer)}
            proto.graph.node.extend(_once(proto, _quantize(node, node.input[1])))
        else:
            proto.graph.node.append(node)
    if used:
        del proto.graph.value_info[:]  # it may hold outdated dtypes
    kept = [item for item in proto.graph.initializer if item.name not in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    proto.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in used.items()
    )


def _once(proto: ModelProto, nodes: list[NodeProto]) -> list[NodeProto]:
    """Drop the nodes that widen a weight which another node has widened already."""
    made = {output for node in proto.graph.node for output in node.output}
    return [node for node in nodes if node.output[0] not in made]


def _widen(weight: str) -> NodeProto:
    wide = f"{weight}.float32"
    return helper.make_node("Cast", [weight], [wide], f"{wide}.cast", to=TensorProto.FLOAT)


def _quantize(gemm: NodeProto, weight: str) -> list[NodeProto]:
    """Quantize and dequantize around the product, then add the bias: onnxruntime fuses this."""
    layer, (x, _, *bias), (y,) = weight.removesuffix("weight"), gemm.input, gemm.output
    scales = [f"{layer}x_scale", f"{layer}x_zero"]
    weight_scales = [f"{layer}weight_scale", f"{layer}weight_zero"]
    product = f"{y}.product" if bias else y
    rows: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("QuantizeLinear", [x, *scales], f"{y}.uint8", {}),
        ("DequantizeLinear", [f"{y}.uint8", *scales], f"{y}.steps", {}),
        ("DequantizeLinear", [weight, *weight_scales], f"{weight}.float32", {"axis": 0}),
        ("Gemm", [f"{y}.steps", f"{weight}.float32"], product, {"transB": 1}),
    ]
    if bias:
        rows.append(("Add", [product, *bias], y, {}))
    return [
        helper.make_node(kind, inputs, [output], f"{output}.{kind}", **attributes)
        for kind, inputs, output, attributes in rows
    ]


class _Rounding(NamedTuple):
    """The input of one int8 layer, (rows, …), and the size of its steps."""

    values: Array
    scale: float
    bounds: tuple[float, float]
    """Values beyond these, in steps, are clipped to the range, whichever way they are rounded."""


def unambiguous_rows(
    reduced: VAE, operation: Operation, inputs: Mapping[str, Array]
) -> NDArray[np.intp]:
    """Return the rows whose every rounding to int8 is unambiguous; all rows if nothing is rounded.

    An activation halfway between two steps is rounded up or down by the noise of float32, and
    machines differ in that; the outputs of such a row may correctly be off by a step. An activation
    counts as halfway within four times the error of torch's float32 on unambiguous rows.
    """
    rows = len(next(iter(inputs.values())))
    if not any(isinstance(layer, QuantizedLinear) for layer in reduced.modules()):
        return np.arange(rows)
    step = rows_at_once(reduced.x_shape, operation)  # so that a layer has all rows in one call
    parts = [
        _settled(reduced, operation, {n: array[at : at + step] for n, array in inputs.items()})
        for at in range(0, rows, step)
    ]
    return np.flatnonzero(np.concatenate(parts)) if parts else np.arange(0)


def _settled(reduced: VAE, operation: Operation, inputs: Mapping[str, Array]) -> NDArray[np.bool_]:
    rows = len(next(iter(inputs.values())))
    settled = np.ones(rows, bool)
    exact, rounded = (
        _roundings(reduced, operation, inputs, dtype) for dtype in (torch.float64, torch.float32)
    )
    for a, b in zip(exact, rounded, strict=True):
        values = a.values.reshape(rows, -1)
        error = np.abs(values - b.values.reshape(rows, -1))[settled]
        noise = 4 * (error.max() if error.size else 0) + 2 * EPS * np.abs(values)
        steps = values / a.scale
        doubtful = np.abs(steps - np.floor(steps) - 0.5) * a.scale <= noise
        settled &= ~(doubtful & (steps > a.bounds[0]) & (steps < a.bounds[1])).any(1)
    return settled


def _roundings(
    reduced: VAE, operation: Operation, inputs: Mapping[str, Array], dtype: torch.dtype
) -> list[_Rounding]:
    watched, seen = copy.deepcopy(reduced), list[_Rounding]()
    layers = [layer for layer in watched.modules() if isinstance(layer, QuantizedLinear)]
    for layer in layers:
        zero, scale = layer.x_zero.item(), layer.x_scale.item()
        ends = (-zero - 0.5, STEPS - zero + 0.5)

        def keep(
            _: nn.Module,
            inputs: tuple[Tensor],
            scale: float = scale,
            ends: tuple[float, float] = ends,
        ) -> None:
            seen.append(_Rounding(inputs[0].double().numpy(), scale, ends))

        layer.register_forward_pre_hook(keep)
    run_reference(watched, operation, inputs, dtype)
    return seen
