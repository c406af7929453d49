"""Check graphs without running them: their form and their operators.

In: the graphs of a bundle. Out: faults.
"""

from collections.abc import Iterator

import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto

from pipeline.parity.comparison_result import Fault
from serving.bundle import GRAPHS, Bundle

RANDOM = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}
BRANCHING = {"If", "Loop", "Scan"}


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
