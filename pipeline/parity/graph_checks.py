"""Check graphs without running them: their form, their operators, their weights.

In: the graphs of a bundle and the model. Out: faults. A weight is compared by its bytes, because no
tolerance on outputs can detect a single weight that is off by a thousandth.
"""

from collections.abc import Iterator, Mapping

import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper

from pipeline.model.vae import VAE
from pipeline.parity.comparison_result import Fault
from serving.bundle import GRAPHS, WEIGHTS, Bundle

SMALL_CONSTANT = 8
"""The largest number of elements of a constant that is not a weight: shapes, limits, scalars."""
RANDOM = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}
BRANCHING = {"If", "Loop", "Scan"}

_PARTS: Mapping[str, tuple[str, ...]] = {
    "encoder.onnx": ("encoder.",),
    "decoder.onnx": ("decoder.",),
    "reconstruct.onnx": ("decoder.",),  # it keeps the part of the encoder that leads to z_loc
    "score.onnx": ("encoder.", "decoder."),  # scalars of a likelihood may be folded
}
"""Prefixes of the weights that each graph must have."""


def load_graphs(bundle: Bundle) -> tuple[dict[str, ModelProto], list[Fault]]:
    """Read every graph, and check its form and its operators."""
    graphs: dict[str, ModelProto] = {}
    faults: list[Fault] = []
    for name in GRAPHS:
        try:
            graphs[name] = onnx.load(bundle.path / name)
            onnx.checker.check_model(graphs[name], full_check=True)
        except (
            DecodeError,
            onnx.checker.ValidationError,
            onnx.shape_inference.InferenceError,
        ) as e:
            faults.append(Fault("graph", f"{name} is not valid ONNX: {str(e).strip()}"))
    for name, proto in graphs.items():
        faults += (Fault("operators", f"{name}: {line}") for line in _operator_faults(proto))
    return graphs, faults


def weight_faults(graphs: Mapping[str, ModelProto], model: VAE) -> Iterator[Fault]:
    """Compare initializers with the state dict byte for byte; none may be missing or hidden."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    weights = {name for name, _ in model.named_parameters()}
    for graph, proto in graphs.items():
        arrays = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
        lines = [
            f"{graph} has no weight {name}"
            for name in sorted(weights - arrays.keys())
            if name.startswith(_PARTS[graph])
        ]
        for name, value in arrays.items():
            if name not in state:
                if value.size > SMALL_CONSTANT:
                    shape = value.shape
                    lines.append(f"{graph} has an initializer {name} {shape} that is not a weight")
            elif value.dtype != state[name].dtype or value.tobytes() != state[name].tobytes():
                lines.append(f"{graph}: {name} is not the weight of {WEIGHTS}")
        lines += (
            f"{graph} has a constant {node.output[0]} that is not a weight"
            for node in nodes_of(proto)
            if node.op_type == "Constant" and _is_large(node)
        )
        yield from (Fault("weights", line) for line in lines)


def nodes_of(proto: ModelProto) -> Iterator[NodeProto]:
    """Yield every node in execution order, with those of functions and branches."""
    yield from _nodes(proto.graph)
    for function in proto.functions:
        yield from function.node


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _operator_faults(proto: ModelProto) -> Iterator[str]:
    """Check that an operation is a pure function of each row: not random, training, branching."""
    for node in nodes_of(proto):
        where = f"node {node.name} ({node.op_type})"
        if node.domain not in ("", "ai.onnx"):
            yield f"{where} is of the domain {node.domain}, which not every runtime has"
        elif node.op_type in RANDOM:
            yield f"{where} draws random numbers: noise must be an input"
        elif node.op_type in BRANCHING:
            yield f"{where} chooses at run time what to compute"
        elif _is_training(node):
            yield f"{where} is in training mode"


def _is_training(node: NodeProto) -> bool:
    if node.op_type == "Dropout":  # the third input is training_mode
        return len(node.input) > 2 and node.input[2] != ""
    return any(item.name == "training_mode" and item.i for item in node.attribute)


def _is_large(constant: NodeProto) -> bool:
    sizes = [len(item.floats) + len(item.ints) for item in constant.attribute]
    sizes += [
        numpy_helper.to_array(item.t).size for item in constant.attribute if item.HasField("t")
    ]
    return max(sizes, default=0) > SMALL_CONSTANT
