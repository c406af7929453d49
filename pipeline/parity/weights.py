"""Check that graphs hold the weights of the state dict, all of them, byte for byte, and no others.

In: graphs, the model and its operations. Out: faults. Weights are compared by their bytes, because
no tolerance on outputs can detect a single weight that is off by a thousandth. What a graph makes
of its weights, such as a transposed one, are nodes, and their results are compared as values.
"""

import copy
import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from onnx import AttributeProto, ModelProto, numpy_helper

from pipeline.export.graph_export import SMALL_CONSTANT, trace_constants
from pipeline.export.graph_needs import nodes_of
from pipeline.model.operations import FUNCTIONS, GAPS, Array, draw_inputs
from pipeline.model.vae import VAE
from pipeline.parity.comparison_result import Fault
from serving.bundle import WEIGHTS
from serving.operations import Operation

NETS = ("encoder.", "decoder.")
"""Prefixes of the weights of the networks. The scale of a likelihood is a number, which graphs of
earlier versions hold under another name."""


def weight_faults(
    graphs: Mapping[str, ModelProto],
    model: VAE,
    reduced: VAE,
    operations: Mapping[str, Operation],
) -> Iterator[Fault]:
    """Compare each graph with the state dict of `reduced`, the model in the graphs' precision.

    A constant that is neither a weight nor small must be one that torch finds in the code of the
    network when it traces `model` again.
    """
    by_graph = {operation.graph: operation for operation in operations.values()}
    for name, proto in graphs.items():
        for line in _weight_faults(proto, model, reduced, by_graph[name]):
            yield Fault("weights", f"{name} {line}")


def _weight_faults(
    proto: ModelProto, model: VAE, reduced: VAE, operation: Operation
) -> Iterator[str]:
    tensors = {**reduced.state_dict(), **dict(reduced.named_buffers())}
    arrays = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
    used = {name for node in nodes_of(proto) for name in node.input}
    for names in needed_weights(reduced, operation):
        if not used & arrays.keys() & names:
            yield f"has no weight {min(names)}"
    unknown: dict[str, Array] = {}
    for name, value in arrays.items():
        if name not in tensors:
            unknown |= {name: value} if value.size > SMALL_CONSTANT else {}
        elif not _same_bytes(value, tensors[name].numpy()):
            yield f"holds {name}, but not as it is in {WEIGHTS}"
    constants = trace_constants(model, operation) if unknown else []
    for name, value in unknown.items():
        if not any(_same_bytes(value, constant) for constant in constants):
            yield f"has an initializer {name} {value.shape} that is not a weight"
    for item in proto.graph.sparse_initializer:
        yield f"has a sparse initializer {item.values.name}, which no weight is"
    for node in nodes_of(proto):
        if any(map(_is_large, node.attribute)):
            yield f"has a constant {node.output[0]} that is not a weight"


def needed_weights(model: VAE, operation: Operation) -> list[set[str]]:
    """Return the parameters of the networks that the outputs depend on, each with all its names.

    Torch's autograd knows which they are. A parameter that two layers share has two names.
    """
    model = copy.deepcopy(model)
    names: dict[torch.nn.Parameter, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, set()).add(name)
    for parameter in names:
        parameter.data = parameter.data.float()  # integers have no gradient
        parameter.requires_grad_()
    rows = np.zeros((2, *model.x_shape), operation.inputs[0].dtype)
    inputs = draw_inputs(operation, rows, num_samples=2, seed=0)
    tensors = (torch.from_numpy(inputs[tensor.name]) for tensor in operation.inputs)
    with torch.enable_grad():
        given = tuple(tensors)
        outputs = FUNCTIONS[operation.label](model, *given)
        if operation.name == "draw":  # whole numbers have no slope, but their distances have
            outputs += (GAPS["draw"](model, *given),)
        total = torch.stack([y.sum() for y in outputs if y.requires_grad]).sum()
        gradients = torch.autograd.grad(total, list(names), allow_unused=True)
    reached = (p for p, gradient in zip(names, gradients, strict=True) if gradient is not None)
    return [names[p] for p in reached if min(names[p]).startswith(NETS)]


def _same_bytes(value: Array, other: Array) -> bool:
    same_kind = (value.dtype, value.shape) == (other.dtype, other.shape)
    return same_kind and value.tobytes() == other.tobytes()


def _is_large(attribute: AttributeProto) -> bool:
    sizes = [len(attribute.floats), len(attribute.ints), math.prod(attribute.t.dims)]
    return max(sizes) > SMALL_CONSTANT or attribute.HasField("sparse_tensor")
