"""What a graph needs is found wherever it stands."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from pipeline.export.graph_needs import describe_needs, element_types
from serving.bundle import Bundle

FLOAT, DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE


def make(*nodes: onnx.NodeProto) -> ModelProto:
    """Return a graph from `x` to `y`, both float32."""
    x, y = (helper.make_tensor_value_info(name, FLOAT, ["batch"]) for name in "xy")
    graph = helper.make_graph([*nodes, helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_a_plain_graph_needs_float32_alone() -> None:
    assert describe_needs(make()) == {"opset": 18, "ir_version": 8, "types": ["float32"]}


def _initializer(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2), "secret"))


def _constant(model: ModelProto) -> None:
    value = numpy_helper.from_array(np.zeros(2))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["secret"], value=value))


def _cast(model: ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Cast", ["x"], ["secret"], to=DOUBLE))


def _value_info(model: ModelProto) -> None:
    model.graph.value_info.append(helper.make_tensor_value_info("secret", DOUBLE, [1]))


def _input(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("secret", DOUBLE, [1]))


def _fill(model: ModelProto) -> None:
    """A value whose type no attribute of type names, only that of a tensor."""
    shape = numpy_helper.from_array(np.array([2]), "shape")
    model.graph.initializer.append(shape)
    value = numpy_helper.from_array(np.zeros(1))
    node = helper.make_node("ConstantOfShape", ["shape"], ["secret"], value=value)
    model.graph.node.insert(0, node)


def _branch(model: ModelProto) -> None:
    inner = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["secret"], to=DOUBLE),
            helper.make_node("Cast", ["secret"], ["chosen"], to=FLOAT),
        ],
        "inner",
        [],
        [helper.make_tensor_value_info("chosen", FLOAT, ["batch"])],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.insert(
        0, helper.make_node("If", ["yes"], ["z"], then_branch=inner, else_branch=inner)
    )


PLACES = [_initializer, _constant, _cast, _value_info, _input, _fill, _branch]


@pytest.mark.parametrize("hide", PLACES, ids=lambda hide: hide.__name__)
def test_float64_is_found_wherever_it_hides(hide: Callable[[ModelProto], None]) -> None:
    model = make()
    hide(model)
    assert "float64" in describe_needs(model)["types"]
    assert [where for kind, where in element_types(model) if kind == "float64"]


def test_a_type_that_follows_from_others_is_found() -> None:
    """No node, tensor or value of the file says float64: it follows from that of an input."""
    model = make(helper.make_node("Add", ["wide", "wide"], ["sum"]))
    model.graph.input.append(helper.make_tensor_value_info("wide", DOUBLE, [1]))
    assert ("float64", "value sum") in list(element_types(model))


def test_the_manifest_says_what_each_graph_of_a_bundle_needs(sealed: Bundle) -> None:
    needs = sealed.manifest.needs
    assert needs.keys() == {*sealed.graphs, *sealed.noise_graphs}
    assert {(entry["opset"], entry["ir_version"]) for entry in needs.values()} == {(18, 8)}
    wide = {name for name, entry in needs.items() if "float64" in entry["types"]}
    assert wide == {"draw.onnx", "score.onnx"}
    for name, entry in needs.items():
        assert describe_needs(onnx.load(sealed.path / name)) == entry
