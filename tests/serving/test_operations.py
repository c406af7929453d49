from typing import Any, get_args

import pytest

from serving.bundle import GRAPHS
from serving.operations import OperationName, Tensor, operation_table, portable_forms

IMAGES = operation_table((6, 5), "uint8", 3)
TABLES = operation_table((4,), "float32", 2)

X = ("x", "uint8", ("batch", 6, 5))
X_LOC = ("x_loc", "float32", ("batch", 6, 5))
EXPECTED: dict[str, Any] = {
    "encode": (
        "encoder.onnx",
        [X],
        [("z_loc", "float32", ("batch", 3)), ("z_scale", "float32", ("batch", 3))],
    ),
    "decode": ("decoder.onnx", [("z", "float32", ("batch", 3))], [X_LOC]),
    "reconstruct": ("reconstruct.onnx", [X], [X_LOC]),
    "sample": ("decoder.onnx", [("eps", "float32", ("batch", 3))], [X_LOC]),
    "score": (
        "score.onnx",
        [X, ("eps", "float32", ("batch", "num_samples", 3))],
        [(name, "float32", ("batch",)) for name in ("elbo", "log_likelihood", "kl", "iw_elbo")],
    ),
    "draw": (
        "draw.onnx",
        [("z", "float32", ("batch", 3)), ("noise", "float32", ("batch", 6, 5))],
        [("x", "float32", ("batch", 6, 5))],
    ),
}


def plain(tensors: tuple[Tensor, ...]) -> list[tuple[Any, ...]]:
    return [(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors]


@pytest.mark.parametrize("name", EXPECTED)
def test_an_operation_has_its_graph_and_tensors(name: str) -> None:
    operation = IMAGES[name]
    found = (operation.graph, plain(operation.inputs), plain(operation.outputs))
    assert found == EXPECTED[name]
    assert operation.name == name


def test_the_table_holds_every_operation_and_every_graph() -> None:
    mixed = ["impute", "explain"]
    assert [*IMAGES, *mixed] == [*EXPECTED, *mixed] == list(get_args(OperationName))
    assert {operation.graph for operation in IMAGES.values()} == {*GRAPHS, "draw.onnx"}


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("encode", ("x",)),
        ("decode", ("z",)),
        ("reconstruct", ("x",)),
        ("sample", ("z",)),
        ("score", ("x", "eps")),
        ("draw", ("z", "noise")),
    ],
)
def test_graph_inputs_stand_beside_the_operation_s_own(name: str, inputs: tuple[str, ...]) -> None:
    operation = IMAGES[name]
    assert operation.graph_inputs() == inputs
    assert len(inputs) == len(operation.inputs)


def test_a_sample_is_the_decoder_under_another_name() -> None:
    sample, decode = TABLES["sample"], TABLES["decode"]
    assert sample.graph == decode.graph
    assert sample.outputs == decode.outputs
    assert sample.graph_inputs() == decode.graph_inputs()
    assert [tensor.shape for tensor in sample.inputs] == [tensor.shape for tensor in decode.inputs]


def test_shapes_and_dtypes_follow_the_data() -> None:
    assert TABLES["encode"].inputs == (Tensor("x", "float32", ("batch", 4)),)
    assert TABLES["decode"].inputs == (Tensor("z", "float32", ("batch", 2)),)
    assert TABLES["reconstruct"].outputs == (Tensor("x_loc", "float32", ("batch", 4)),)
    assert TABLES["score"].inputs[1] == Tensor("eps", "float32", ("batch", "num_samples", 2))


def test_gaps_are_filled_in_mixed_tables_alone() -> None:
    mixed = operation_table((4,), "float32", 2, mixed=True)
    assert "impute" not in TABLES
    filled = mixed["impute"]
    assert plain(filled.inputs) == plain(mixed["score"].inputs)
    assert plain(filled.outputs) == [
        ("x_filled", "float32", ("batch", 4)),
        ("log_weights", "float32", ("batch", "num_samples")),
        ("z", "float32", ("batch", "num_samples", 2)),
    ]
    drawn = {name for name, operation in mixed.items() if operation.is_drawn}
    assert drawn == {"score", "impute", "explain"}
    portable = ["score_portable", "draw_portable", "impute_portable", "explain_portable"]
    assert list(portable_forms(mixed)) == portable
    assert list(portable_forms(TABLES)) == ["score_portable", "draw_portable"]


def test_every_tensor_has_the_batch_first_and_one_name_in_its_operation() -> None:
    for operation in (*IMAGES.values(), *TABLES.values()):
        tensors = (*operation.inputs, *operation.outputs)
        assert {tensor.shape[0] for tensor in tensors} == {"batch"}
        assert len({tensor.name for tensor in tensors}) == len(tensors)
