"""Check graphs without running them: their form and their operators.

In: the graphs of a bundle. Out: faults.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, NodeProto

from pipeline.export.graph_needs import describe_needs, element_types, nodes_of
from pipeline.parity.comparison_result import Fault
from serving.bundle import Bundle

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
    for name in bundle.graphs:
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
        if bundle.manifest.schema_version > 1:
            portable = name in {form.graph for form in bundle.portable_forms.values()}
            lines = _needs_faults(proto, bundle.manifest.needs[name], portable=portable)
            faults += (Fault("needs", f"{name}: {line}") for line in lines)
    return graphs, faults


def _needs_faults(proto: ModelProto, said: Mapping[str, Any], *, portable: bool) -> Iterator[str]:
    """Compare what a graph needs of a runtime with what the manifest says."""
    try:
        places = [*element_types(proto)]
    except onnx.shape_inference.InferenceError as err:
        yield f"the types of its values cannot be found: {str(err).strip()}"
        return
    for kind, where in places:
        if kind == "float64" and portable:
            yield f"{where} is of float64, without which a portable graph must do"
        elif kind not in said["types"]:
            yield f"{where} is of {kind}, which the manifest does not say"
    found = describe_needs(proto)
    for name, value in found.items():
        if name != "types" and value != said[name]:
            yield f"needs {name} {value}, but the manifest says {said[name]}"


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
