"""What a graph needs of a runtime: its opset, its IR version, and the types of its elements.

In: a graph. Out: its needs, as the manifest says them, and every place where a type stands.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper


def describe_needs(proto: ModelProto) -> dict[str, Any]:
    """Return what the manifest says of a graph."""
    types = {kind for kind, _ in element_types(proto)}
    return {
        "opset": max(entry.version for entry in proto.opset_import if not entry.domain),
        "ir_version": proto.ir_version,
        "types": sorted(types),
    }


def describe_folder(folder: Path) -> Mapping[str, dict[str, Any]]:
    """Return the needs of the graphs in a folder, by name."""
    graphs = sorted(folder.glob("*.onnx"))
    return {path.name: describe_needs(onnx.load(path)) for path in graphs}


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


def element_types(proto: ModelProto) -> Iterator[tuple[str, str]]:
    """Yield the types of elements of a graph, each with every place where it stands.

    The types of values between nodes are inferred, whatever the file says of them, and what it says
    counts too.
    """
    yield from _types_of(proto.graph)
    for function in proto.functions:
        yield from _types_of_nodes(function.node)
    plain = ModelProto()
    plain.CopyFrom(proto)
    del plain.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(plain, check_type=True, strict_mode=True)
    for item in inferred.graph.value_info:
        yield _name(item.type.tensor_type.elem_type), f"value {item.name}"


def _types_of(graph: GraphProto) -> Iterator[tuple[str, str]]:
    for item in (*graph.input, *graph.output, *graph.value_info):
        yield _name(item.type.tensor_type.elem_type), f"value {item.name}"
    for tensor in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
        yield _name(tensor.data_type), f"initializer {tensor.name}"
    yield from _types_of_nodes(graph.node)


def _types_of_nodes(nodes: Any) -> Iterator[tuple[str, str]]:
    for node in nodes:
        for item in node.attribute:
            yield from _types_of_attribute(node, item)


def _types_of_attribute(node: NodeProto, item: AttributeProto) -> Iterator[tuple[str, str]]:
    where = f"node {node.name or node.output[0]} ({node.op_type})"
    for tensor in (item.t, *item.tensors, item.sparse_tensor.values):
        if tensor.data_type != TensorProto.UNDEFINED:
            yield _name(tensor.data_type), where
    if item.type == AttributeProto.INT and item.name in ("to", "dtype"):
        yield _name(item.i), where
    for graph in (item.g, *item.graphs):
        yield from _types_of(graph)


def _name(element: int) -> str:
    """Return numpy's name of a type, or ONNX's if numpy lacks it."""
    return str(helper.tensor_dtype_to_np_dtype(element))
