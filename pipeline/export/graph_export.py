"""Export one operation of a model as an ONNX graph.

In: a model and an operation. Out: one checked file. A graph keeps every weight under its name in
the state dict and with its bytes; what ONNX needs in another form, such as the transposed weight
of a layer over sequences or the gates of an LSTM in another order, is computed from it by nodes of
the graph, which a runtime folds when it loads the graph. Raises `ParityFailed` if the model cannot
be exported.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxscript.optimizer
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx.experimental import _config as symbolic_shapes

from pipeline.errors import ParityFailed
from pipeline.export.quantization import rewrite_graph
from pipeline.model.operations import FUNCTIONS, Array, draw_inputs
from pipeline.model.vae import VAE
from serving.operations import Operation

OPSET = 20
SMALL_CONSTANT = 8
"""The largest number of elements of a constant that the exporter computes: shapes, limits,
scalars."""


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
    graph.metadata_props.update({**metadata, "operation": operation.name})
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
    with _quiet_exporter(), oblivious:
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
    onnxscript.optimizer.optimize_ir(model, output_size_limit=SMALL_CONSTANT)
    constants = list(graph.initializers.values())
    graph.initializers.clear()
    for value, content in weights.items():
        graph.inputs.remove(value)
        value.const_value = content
    for value in (*weights, *constants):
        if value.uses():
            graph.register_initializer(value)


class _Graph(nn.Module):
    """One operation as a module, its weights under the names of the model's state dict."""

    def __init__(self, model: VAE, operation: Operation) -> None:
        super().__init__()
        self.encoder, self.decoder, self.likelihood = model.encoder, model.decoder, model.likelihood
        self._model = (model,)  # in a tuple, so that it adds no second name to the weights
        self._function = FUNCTIONS[operation.name]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self._function(self._model[0], *inputs)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's messages on torchvision, its own internals and shared axis names."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*treespec.*", FutureWarning)
        warnings.filterwarnings("ignore", "# The axis name: batch will not be used", UserWarning)
        try:
            yield
        finally:
            logger.setLevel(level)
