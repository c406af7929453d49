"""Export one operation of a model as an ONNX graph.

In: a model and an operation. Out: one checked file. A graph keeps every weight under its name in
the state dict and with its bytes; what ONNX needs in another form, such as the transposed weight
of a layer over sequences or the gates of an LSTM in another order, is computed from it by nodes of
the graph, which a runtime folds when it loads the graph. Raises `ParityFailed` if the model cannot
be exported.
"""

import io
import logging
import math
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxscript.optimizer
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx.experimental import _config as symbolic_shapes
from torch.nn import functional as F
from torch.nn.modules import transformer
from torch.onnx import OnnxExporterError
from torch.onnx._internal.exporter._registration import ONNXRegistry
from torch.overrides import TorchFunctionMode

from pipeline.errors import ParityFailed
from pipeline.export.quantization import rewrite_graph
from pipeline.model.operations import FUNCTIONS, Array, draw_inputs
from pipeline.model.vae import VAE
from serving.operations import Operation

OPSET, IR_VERSION = 18, 8
"""The lowest that torch writes, and that bitwise operators need: onnxruntime 1.15 runs both."""
SMALL_CONSTANT = 8
"""The largest number of elements of a constant that the exporter computes: shapes, limits,
scalars."""
REASON_LENGTH = 160


def save_graph(
    path: Path,
    model: VAE,
    operation: Operation,
    metadata: Mapping[str, str],
    reduced: VAE | None = None,
) -> None:
    """Export one operation as a single, checked ONNX file without source paths inside.

    If a model of reduced precision is given, the graph holds its numbers.
    """
    graph, _ = _translate(model, operation)
    _optimize(graph)
    ClearMetadataAndDocStringPass()(graph)
    graph.metadata_props.update({**metadata, "operation": operation.label})
    graph.ir_version = IR_VERSION
    proto = onnx_ir.to_proto(graph)
    if reduced is not None:
        rewrite_graph(proto, reduced)
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def trace_constants(model: VAE, operation: Operation) -> list[Array]:
    """Return the tensors that torch finds in the code of an operation, beside its state dict."""
    _, program = _translate(model, operation)
    return [value.numpy() for value in program.constants.values() if isinstance(value, Tensor)]


def _translate(model: VAE, operation: Operation) -> tuple[onnx_ir.Model, ExportedProgram]:
    """Return an operation as an ONNX graph that nothing has simplified, and as torch traced it."""
    inputs = draw_inputs(
        operation,
        np.zeros((3, *model.x_shape), operation.inputs[0].dtype),
        num_samples=2,  # sizes above 1 and unequal, so that torch fixes no axis
        seed=0,
    )
    axes = tuple(
        {i: axis for i, axis in enumerate(tensor.shape) if isinstance(axis, str)}
        for tensor in operation.inputs
    )
    # a convolution asks whether there is just one row, to choose a memory layout; torch would take
    # that question for a limit of the graph (pytorch#133653)
    oblivious = symbolic_shapes.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with _quiet_exporter(), oblivious, _masks_as_given(), _operators_read_once():
        try:
            program = torch.onnx.export(
                _Graph(model, operation).eval(),
                tuple(torch.from_numpy(inputs[tensor.name]) for tensor in operation.inputs),
                input_names=list(operation.graph_inputs()),
                output_names=[tensor.name for tensor in operation.outputs],
                dynamo=True,
                dynamic_shapes=(axes,),
                opset_version=OPSET,
                optimize=False,
                verbose=False,
            )
        except OnnxExporterError as err:
            reason = _describe_failure(model, err)
            raise ParityFailed(f"{operation.graph} cannot be exported: {reason}") from err
    if program is None or program.exported_program is None:
        raise ParityFailed(f"the exporter made no {operation.graph}")
    return program.model, program.exported_program


def _optimize(model: onnx_ir.Model) -> None:
    """Simplify a graph, with its weights out of sight, so that none is folded, fused or merged."""
    graph = model.graph
    weights = {value: value.const_value for value in graph.initializers.values()}
    for value in weights:
        graph.initializers.pop(str(value.name))
        value.const_value = None
        graph.inputs.append(value)
    onnxscript.optimizer.optimize_ir(
        model,
        output_size_limit=SMALL_CONSTANT,
        # the limit alone does not hold for values that take the place of as many others
        should_fold=lambda node: None if all(map(_is_small, node.outputs)) else False,
    )
    constants = list(graph.initializers.values())
    graph.initializers.clear()
    for value, content in weights.items():
        graph.inputs.remove(value)
        value.const_value = content
    for value in (*weights, *constants):
        if value.uses():
            graph.register_initializer(value)


def _is_small(value: onnx_ir.Value) -> bool:
    """Whether a value has few elements; one whose shape is not known may have few."""
    sizes = [size for size in value.shape or () if isinstance(size, int)]
    return math.prod(sizes) <= SMALL_CONSTANT


def _describe_failure(model: VAE, err: BaseException) -> str:
    """Name the layer and the operator at which the export failed, and the cause, in one line."""
    layers = {id(layer): name for name, layer in model.named_modules() if name}
    operator = layer = ""
    while True:
        layer = _failed_layer(layers, err) or layer
        if found := re.search(r"target=torch\.ops\.([\w.]+)", str(err)):
            operator = f"{found[1]}: "
        cause = err.__cause__ or err.__context__
        if cause is None:
            break
        err = cause
    if "inferred a static shape" in str(err):
        return "a network fixes the number of rows: take it from x.shape[0], not from len(x)"
    if "data-dependent" in str(err):
        return f"{layer}a choice in Python by values of a tensor: use torch.where"
    return layer + operator + str(err).partition("\n")[0][:REASON_LENGTH]


def _failed_layer(layers: Mapping[int, str], err: BaseException) -> str:
    """Name the innermost layer that torch was tracing or translating when it failed."""
    failed = ""
    for frame, _ in traceback.walk_tb(err.__traceback__):
        module, node = frame.f_locals.get("self"), frame.f_locals.get("node")
        if name := layers.get(id(module)):
            failed = f"{name} ({type(module).__name__}): "
        elif isinstance(node, torch.fx.Node) and (stack := node.meta.get("nn_module_stack")):
            name, kind = list(stack.values())[-1]
            failed = f"{name} ({kind.rpartition('.')[2]}): "
    return failed


class _Graph(nn.Module):
    """One operation as a module, its weights under the names of the model's state dict."""

    def __init__(self, model: VAE, operation: Operation) -> None:
        super().__init__()
        self.encoder, self.decoder, self.likelihood = model.encoder, model.decoder, model.likelihood
        self._model = (model,)  # in a tuple, so that it adds no second name to the weights
        self._function = FUNCTIONS[operation.label]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with _HeadedAttention():
            return self._function(self._model[0], *inputs)


class _HeadedAttention(TorchFunctionMode):
    """Gives attention without an axis of heads one head: the exporter takes no other attention."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            query = args[0] if args else kwargs["query"]
            if query.dim() == 3:
                return _attend_with_head(*args, **kwargs)
        return function(*args, **kwargs)


def _attend_with_head(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *rest: Any,
    **options: Any,
) -> Tensor:
    if attn_mask is not None and attn_mask.dim() == 3:
        attn_mask = attn_mask.unsqueeze(1)
    q, k, v = (tensor.unsqueeze(1) for tensor in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask, *rest, **options).squeeze(1)


@contextmanager
def _masks_as_given() -> Iterator[None]:
    """Keep torch's transformers from asking whether a mask is causal: no graph knows its values."""
    known = transformer._detect_is_causal_mask
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = known


_read_operators = cache(ONNXRegistry.from_torchlib)


@contextmanager
def _operators_read_once() -> Iterator[None]:
    """Keep torch from parsing the source of its 500 translations again for each graph: 0.3 s."""
    known = ONNXRegistry.from_torchlib
    ONNXRegistry.from_torchlib = staticmethod(_read_operators)  # type: ignore[method-assign]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = known  # type: ignore[method-assign]


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence messages on torchvision, on the internals of torch, and on shared names of axes."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    # torch prints the whole graph when it cannot trace a network
    with redirect_stderr(io.StringIO()), warnings.catch_warnings():
        for internal in (".*treespec.*", "_check_is_size"):
            warnings.filterwarnings("ignore", internal, FutureWarning)
        for own in ("# The axis name: batch will not be used", ".*_flat_weights.* during export"):
            warnings.filterwarnings("ignore", own, UserWarning)
        try:
            yield
        finally:
            logger.setLevel(level)
