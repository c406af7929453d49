"""A graph holds every weight that its outputs depend on, and no number of unknown origin."""

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, helper, numpy_helper
from torch import Tensor, nn

from pipeline.config import ModelConfig
from pipeline.export.graph_export import save_graph, trace_constants
from pipeline.model.net_spec import Nets, NetSpec
from pipeline.model.vae import VAE
from pipeline.parity.weights import needed_weights, weight_faults
from serving.operations import operation_table

OPERATIONS = operation_table((6,), "float32", 3)
CODE = np.linspace(0.1, 3, 30).reshape(6, 5)


class Encoder(nn.Module):
    """Has two layers of one weight, a spare layer, and numbers in its code."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.first = nn.Linear(spec.x_width, 5)
        self.a, self.b, self.spare = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.b.weight = self.a.weight
        self.heads = nn.Linear(10, 2 * spec.latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        code = torch.tensor(CODE.tolist(), dtype=x.dtype)
        h = self.b(self.a(self.first(x)).tanh()).tanh()
        return tuple(self.heads(torch.cat([h, x @ code], 1)).chunk(2, -1))


def build(spec: NetSpec) -> Nets:
    return Encoder(spec), nn.Linear(spec.latent_dim, spec.params_width)


@pytest.fixture(scope="module")
def model() -> VAE:
    torch.manual_seed(0)
    settings = ModelConfig(model=f"{__name__}:build", latent_dim=3, likelihood="gaussian")
    return VAE((6,), settings).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def exported(model: VAE, tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    path = tmp_path_factory.mktemp("graph") / "encoder.onnx"
    save_graph(path, model, OPERATIONS["encode"], {})
    return onnx.load(path)


@pytest.fixture
def graph(exported: ModelProto) -> ModelProto:
    copied = ModelProto()
    copied.CopyFrom(exported)
    return copied


def faults(graph: ModelProto, model: VAE) -> list[str]:
    found = weight_faults({"encoder.onnx": graph}, model, model, OPERATIONS)
    return [fault.message for fault in found]


def test_a_spare_layer_is_not_asked_for_and_a_shared_weight_has_either_name(
    graph: ModelProto, model: VAE
) -> None:
    names = {item.name for item in graph.graph.initializer}
    assert "encoder.spare.weight" not in names
    assert len(names & {"encoder.a.weight", "encoder.b.weight"}) == 1
    assert faults(graph, model) == []


@pytest.mark.parametrize(
    ("operation", "parts"),
    [
        pytest.param("encode", {"encoder"}, id="encode"),
        pytest.param("decode", {"decoder"}, id="decode"),
        pytest.param("reconstruct", {"encoder", "decoder"}, id="reconstruct"),
        pytest.param("score", {"encoder", "decoder"}, id="score"),
    ],
)
def test_an_operation_needs_the_weights_that_its_outputs_depend_on(
    operation: str, parts: set[str], model: VAE
) -> None:
    needed = needed_weights(model, OPERATIONS[operation])
    assert {min(names).partition(".")[0] for names in needed} == parts
    shared = {"encoder.a.weight", "encoder.b.weight"}
    assert (shared in needed) == ("encoder" in parts)
    assert not any("spare" in name for names in needed for name in names)


def test_a_weight_that_no_node_takes_is_missing(graph: ModelProto, model: VAE) -> None:
    """The bias stands under its name, and a few numbers in its place: 5 are no large constant."""
    name = "encoder.first.bias"
    value = numpy_helper.from_array(np.zeros(5, np.float32), "small")
    graph.graph.initializer.append(value)
    for node in graph.graph.node:
        node.input[:] = ["small" if taken == name else taken for taken in node.input]
    assert faults(graph, model) == [f"encoder.onnx has no weight {name}"]


def changed_code(graph: ModelProto) -> str:
    (item,) = (i for i in graph.graph.initializer if "lifted" in i.name)
    array = numpy_helper.to_array(item).copy()
    array[0, 0] = np.nextafter(array[0, 0], np.float32(9))
    item.CopyFrom(numpy_helper.from_array(array, item.name))
    return f"has an initializer {item.name} (6, 5) that is not a weight"


def added_numbers(graph: ModelProto) -> str:
    graph.graph.initializer.append(numpy_helper.from_array(np.ones(9, np.float32), "more"))
    return "has an initializer more (9,) that is not a weight"


def added_sparse_numbers(graph: ModelProto) -> str:
    values = numpy_helper.from_array(np.ones(2, np.float32), "few")
    places = numpy_helper.from_array(np.array([0, 3], np.int64), "places")
    graph.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [9]))
    return "has a sparse initializer few, which no weight is"


def sparse_constant(graph: ModelProto) -> str:
    values = numpy_helper.from_array(np.ones(2, np.float32), "")
    places = numpy_helper.from_array(np.array([0, 3], np.int64), "")
    sparse = helper.make_sparse_tensor(values, places, [9])
    graph.graph.node.append(helper.make_node("Constant", [], ["thin"], sparse_value=sparse))
    return "has a constant thin that is not a weight"


def numbers_of_a_node(graph: ModelProto) -> str:
    """Text is looked up in the attributes of a node, and gives numbers from there."""
    node = helper.make_node("TfIdfVectorizer", ["text"], ["counts"], weights=[0.5] * 9)
    graph.graph.node.append(node)
    return "has a constant counts that is not a weight"


def other_shape(graph: ModelProto) -> str:
    (item,) = (i for i in graph.graph.initializer if i.name == "encoder.first.weight")
    item.dims[:] = item.dims[::-1]
    return "holds encoder.first.weight, but not as it is in weights.pt"


@pytest.mark.parametrize(
    "change",
    [
        changed_code,
        added_numbers,
        added_sparse_numbers,
        sparse_constant,
        numbers_of_a_node,
        other_shape,
    ],
)
def test_numbers_of_unknown_origin_are_found(change, graph: ModelProto, model: VAE) -> None:  # type: ignore[no-untyped-def]
    said = change(graph)
    assert faults(graph, model) == [f"encoder.onnx {said}"]


def test_numbers_in_the_code_are_found_by_tracing_it(model: VAE) -> None:
    (found,) = trace_constants(model, OPERATIONS["encode"])
    assert np.array_equal(found, CODE.astype(np.float32))
