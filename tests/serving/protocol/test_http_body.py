"""Bodies of REST are read, written and refused, without a server."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from serving.errors import DataRefused, UsageRefused
from serving.operations import operation_table
from serving.protocol.http_body import (
    BinaryOutputs,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from serving.protocol.messages import InferRequest, InferResponse, wire_dtype, wire_shape

BYTES = operation_table((6, 5), "uint8", 3)
FLOATS = operation_table((6, 5), "float32", 3)


def decode(
    content: Any, tail: bytes = b"", length: int | None = None, operation: str = "score"
) -> tuple[InferRequest, BinaryOutputs]:
    head = content if isinstance(content, bytes) else json.dumps(content).encode()
    said = len(head) if length is None else length
    return decode_request(BYTES[operation], "3", head + tail, str(said))


def tensor(name: str = "x", **changes: Any) -> dict[str, Any]:
    return {"name": name, "datatype": "UINT8", "shape": [2], "data": [1, 2]} | changes


def binary(name: str, datatype: str, shape: list[int], size: int) -> dict[str, Any]:
    parameters = {"binary_data_size": size}
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": parameters}


def test_a_request_is_read_completely() -> None:
    content = {
        "id": "7",
        "inputs": [tensor()],
        "outputs": [{"name": "kl"}, {"name": "elbo"}],
        "parameters": {"seed": 3, "timeout": 5},
    }
    request, wanted = decode(content)
    assert (request.model, request.version, request.id) == ("score", "3", "7")
    assert [*request.outputs] == ["kl", "elbo"]
    assert dict(request.parameters) == {"seed": 3, "timeout": 5}
    assert request.inputs["x"].tolist() == [1, 2]
    assert request.inputs["x"].dtype == np.uint8
    assert not wanted.wants("kl")


def test_an_empty_object_is_a_request_of_nothing() -> None:
    request, wanted = decode_request(BYTES["sample"], "", b"{}", None)
    assert (request.id, dict(request.inputs), [*request.outputs]) == ("", {}, [])
    assert dict(request.parameters) == {}
    assert not wanted.wants("x_loc")


def test_binary_tensors_follow_the_json_in_the_order_of_the_inputs() -> None:
    x, eps = np.arange(4, dtype=np.uint8), np.array([[1.5, -2.0]], np.float32)
    content = {
        "inputs": [
            binary("x", "UINT8", [4], 4),
            tensor("middle"),
            binary("eps", "FP32", [1, 2], 8),
        ]
    }
    request, _ = decode(content, x.tobytes() + eps.tobytes())
    assert list(request.inputs) == ["x", "middle", "eps"]
    assert request.inputs["x"].tolist() == [0, 1, 2, 3]
    assert request.inputs["eps"].tolist() == [[1.5, -2.0]]


def test_binary_floats_may_lie_at_any_byte() -> None:
    values = np.array([0.1, 2.5e-30, -3.0], np.float32)
    for shift in range(1, 5):
        content = {"inputs": [binary("x", "UINT8", [shift], shift), binary("eps", "FP32", [3], 12)]}
        array = decode(content, b"\0" * shift + values.tobytes())[0].inputs["eps"]
        assert array.tobytes() == values.tobytes()
        assert array.flags.aligned


@pytest.mark.parametrize(
    ("values", "shape", "expected"),
    [
        ([1, 2, 3, 4], [2, 2], [[1, 2], [3, 4]]),
        ([[1, 2], [3, 4]], [2, 2], [[1, 2], [3, 4]]),
        ([1.0, 2.0], [2, 1], [[1], [2]]),
        ([0, 255], [2], [0, 255]),
        ([], [0], []),
        ([], [0, 6, 5], []),
        ([[7]], [1, 1], [[7]]),
    ],
    ids=str,
)
def test_numbers_flat_or_nested(values: Any, shape: list[int], expected: Any) -> None:
    request, _ = decode({"inputs": [tensor(data=values, shape=shape)]})
    assert request.inputs["x"].tolist() == expected
    assert request.inputs["x"].shape == tuple(shape)
    assert request.inputs["x"].dtype == np.uint8


def test_json_floats_become_the_nearest_float32() -> None:
    values = [0.1, 1 / 3, 16777217, 1e-45, 3.4028234663852886e38, -0.0, 2.5]
    request, _ = decode({"inputs": [tensor("eps", datatype="FP32", data=values, shape=[7])]})
    assert request.inputs["eps"].tobytes() == np.array(values, np.float32).tobytes()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"data": [1, 256]}, "x must be whole numbers from 0 to 255, got 256"),
        ({"data": [-1, 2]}, "x must be whole numbers from 0 to 255, got -1"),
        ({"data": [1, 2.5]}, "x must be whole numbers from 0 to 255, got 2.5"),
        ({"data": [1, 2, 3]}, "data of x has shape"),
        ({"data": [[1, 2]]}, "data of x has shape"),
        ({"data": [[1], [2, 3]]}, "data of x"),
        ({"data": [["1"], ["2"]], "shape": [2, 1]}, "data of x must be numbers"),
        ({"data": [[True], [2]], "shape": [2, 1]}, "data of x must be numbers"),
        ({"data": ["1", "2"]}, "data of x must be numbers"),
        ({"data": [1, "2"]}, "data of x must be numbers"),
        ({"data": [None, 1]}, "data of x must be numbers"),
        ({"data": [True, False]}, "data of x must be numbers"),
        ({"data": [True, 2]}, "data of x must be numbers"),
        ({"data": [{}, {}]}, "data of x must be numbers"),
        ({"data": "12"}, "data of x"),
        ({"data": None}, "data of x"),
        ({"data": {"0": 1}}, "data of x"),
        ({"datatype": "INT64"}, "datatype of x must be FP32 or UINT8, got 'INT64'"),
        ({"datatype": None}, "datatype of x must be FP32 or UINT8, got None"),
        ({"datatype": ["FP32"]}, "datatype of x must be FP32 or UINT8, got ['FP32']"),
        ({"shape": [-2, -1]}, "shape of x must be at most 8 sizes from 0, got"),
        ({"shape": [2.0]}, "shape of x must be at most 8 sizes from 0, got"),
        ({"shape": [True, 2]}, "shape of x must be at most 8 sizes from 0, got"),
        ({"shape": [1] * 8 + [2]}, "shape of x must be at most 8 sizes from 0, got"),
        ({"shape": [1] * 9}, "shape of x must be at most 8 sizes from 0, got 9 sizes"),
        ({"data": [[[[[[[[[1]]]]]]]]], "shape": [1]}, "in at most 8 lists inside each other"),
        ({"data": [[1, 2], [3, 4]]}, "2 in all as the shape says; got more"),
        ({"shape": 2}, "shape of x must be a list of numbers, got 2"),
        ({"shape": "2"}, "shape of x must be a list of numbers, got '2'"),
        ({"shape": {"2": 1}}, "shape of x must be a list of numbers"),
        ({"shape": None}, "shape of x must be a list of numbers, got None"),
        ({"name": 3}, "name of an input must be text, got 3"),
        ({"name": None}, "name of an input must be text, got None"),
        ({"parameters": [1]}, "parameters of x must be a JSON object, got list"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_a_tensor_whose_parts_disagree_is_refused(changes: Mapping[str, Any], text: str) -> None:
    with pytest.raises(DataRefused) as caught:
        decode({"inputs": [tensor(**changes)]})
    assert text in str(caught.value)


@pytest.mark.parametrize("size", [-1, 1.0, True, "4", [4], 5, 2**70], ids=str)
def test_a_wrong_binary_size_is_refused(size: Any) -> None:
    with pytest.raises(DataRefused, match="binary_data_size of x must be from 0 to the 4 bytes"):
        decode({"inputs": [binary("x", "UINT8", [4], size)]}, b"1234")


@pytest.mark.parametrize(
    ("content", "tail", "text"),
    [
        ({"inputs": [binary("x", "UINT8", [4], 3)]}, b"1234", "needs 4 bytes, got 3"),
        ({"inputs": [binary("x", "FP32", [1], 3)]}, b"123", "needs 4 bytes, got 3"),
        ({"inputs": [binary("x", "UINT8", [3], 3)]}, b"1234", "1 bytes follow the last tensor"),
        ({"inputs": [tensor()]}, b"1", "1 bytes follow the last tensor"),
        ({"inputs": [tensor(), tensor()]}, b"", "x is given twice"),
        ({"inputs": [3] * 9}, b"", "a request may have 8 inputs, got 9"),
        ({"outputs": [3] * 9}, b"", "a request may have 8 outputs, got 9"),
        ({"inputs": [{"name": "x"}]}, b"", "x has neither data nor a binary_data_size"),
        ({"inputs": [3]}, b"", "an input must be a JSON object, got int"),
        ({"inputs": "x"}, b"", "inputs must be a list, got str"),
        ({"outputs": {"name": "kl"}}, b"", "outputs must be a list, got dict"),
        ({"outputs": [None]}, b"", "an output must be a JSON object, got NoneType"),
        ({"outputs": [{}]}, b"", "name of an output must be text, got None"),
        ({"id": 1}, b"", "id must be text, got 1"),
        ({"parameters": 1}, b"", "parameters of the request must be a JSON object, got int"),
        ([], b"", "the body must be a JSON object, got list"),
        (b"{", b"", "the body is not JSON"),
        (b'{"id": "\xff"}', b"", "the body is not JSON"),
        (b'{"id": NaN}', b"", "the body is not JSON"),
        (b'{"a":' * 2000 + b"1" + b"}" * 2000, b"", "the body is not JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_body_whose_parts_disagree_is_refused(content: Any, tail: bytes, text: str) -> None:
    with pytest.raises(DataRefused) as caught:
        decode(content, tail)
    assert text in str(caught.value)


def test_an_empty_body_is_refused() -> None:
    with pytest.raises(DataRefused, match="the body is not JSON"):
        decode_request(BYTES["sample"], "", b"", None)


@pytest.mark.parametrize("name", ["inputs", "outputs", "parameters"])
@pytest.mark.parametrize("value", [False, 0, ""], ids=repr)
def test_an_empty_value_of_another_type_is_refused(name: str, value: object) -> None:
    with pytest.raises(DataRefused):
        decode({name: value})


@pytest.mark.parametrize(
    "content",
    [
        {"parameters": {"binary_data_output": "true"}},
        {"parameters": {"binary_data_output": 1}},
        {"outputs": [{"name": "kl", "parameters": {"binary_data": "no"}}]},
    ],
    ids=json.dumps,
)
def test_whether_outputs_are_binary_is_true_or_false(content: Any) -> None:
    with pytest.raises(UsageRefused, match="must be true or false"):
        decode(content)


@pytest.mark.parametrize("length", ["", "-1", "1.0", "x", "3", "²", "\u0661", "9" * 5000])
def test_a_header_length_outside_the_body(length: str) -> None:
    with pytest.raises(DataRefused, match="must be from 0 to the body's 2"):
        decode_request(BYTES["sample"], "", b"{}", length)


@pytest.mark.parametrize("sizes", [[0, 2**63], [0, 2**62, 2**62], [2**63, 0]], ids=str)
def test_an_empty_tensor_with_a_huge_axis(sizes: list[int]) -> None:
    with pytest.raises(DataRefused):
        decode({"inputs": [tensor(shape=sizes, data=[])]})
    with pytest.raises(DataRefused):
        decode({"inputs": [binary("x", "UINT8", sizes, 0)]})


@pytest.mark.parametrize("table", [BYTES, FLOATS], ids=["bytes", "floats"])
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_raw_body_is_the_first_tensor(table: Any, rows: int) -> None:
    dtype = table["encode"].inputs[0].dtype
    x = np.arange(rows * 30).astype(dtype).reshape(rows, 6, 5)
    request, wanted = decode_request(table["encode"], "", x.tobytes(), "0")
    assert request.inputs["x"].dtype == dtype
    assert request.inputs["x"].tolist() == x.tolist()
    assert wanted.wants("z_loc")


def test_a_response_in_json() -> None:
    response = InferResponse("encode", "3", {"z": np.array([[0.1, 2.0]], np.float32)}, "9")
    body, length = encode_response(response, BinaryOutputs())
    assert length is None
    assert json.loads(body) == {
        "model_name": "encode",
        "model_version": "3",
        "id": "9",
        "outputs": [{"name": "z", "datatype": "FP32", "shape": [1, 2], "data": [0.1, 2.0]}],
    }


def test_a_response_in_binary_and_json() -> None:
    z, u = np.array([[0.1, 2.0]], np.float32), np.array([7, 8], np.uint8)
    response = InferResponse("encode", "3", {"z": z, "u": u, "v": u[:1]})
    body, length = encode_response(response, BinaryOutputs(True, {"u": False, "z": True}))
    assert length is not None
    head = json.loads(body[:length])
    assert head == {
        "model_name": "encode",
        "model_version": "3",
        "outputs": [
            {
                "name": "z",
                "datatype": "FP32",
                "shape": [1, 2],
                "parameters": {"binary_data_size": 8},
            },
            {"name": "u", "datatype": "UINT8", "shape": [2], "data": [7, 8]},
            {
                "name": "v",
                "datatype": "UINT8",
                "shape": [1],
                "parameters": {"binary_data_size": 1},
            },
        ],
    }
    assert body[length:] == z.tobytes() + b"\7"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_values_that_are_not_finite_need_binary(value: float) -> None:
    response = InferResponse("decode", "3", {"x_loc": np.array([1, value], np.float32)})
    with pytest.raises(DataRefused, match="x_loc is not finite, which JSON cannot express"):
        encode_response(response, BinaryOutputs())
    body, length = encode_response(response, BinaryOutputs(True))
    assert body[length:] == response.outputs["x_loc"].tobytes()


def test_a_view_of_a_batch_is_written_row_major() -> None:
    whole = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for view in (whole[1:], whole[:, ::2], whole.transpose(0, 2, 1)):
        response = InferResponse("decode", "3", {"y": view})
        body, length = encode_response(response, BinaryOutputs(True))
        assert body[length:] == np.ascontiguousarray(view).tobytes()
        body, _ = encode_response(response, BinaryOutputs())
        assert json.loads(body)["outputs"][0]["data"] == view.reshape(-1).tolist()


def test_a_written_request_is_read_unchanged() -> None:
    rng = np.random.default_rng(0)
    inputs: dict[str, np.ndarray] = {
        "x": rng.integers(0, 256, (3, 6, 5), dtype=np.uint8),
        "eps": rng.standard_normal((3, 2, 3)).astype(np.float32),
    }
    written = InferRequest("score", inputs, "3", "11", parameters={"timeout": 9})
    body, length = encode_request(written)
    read, wanted = decode_request(BYTES["score"], "3", body, str(length))
    assert (read.model, read.version, read.id) == ("score", "3", "11")
    assert dict(read.parameters) == {"timeout": 9, "binary_data_output": True}
    assert wanted.wants("kl")
    for name, array in inputs.items():
        assert read.inputs[name].dtype == array.dtype
        assert np.array_equal(read.inputs[name], array)


@pytest.mark.parametrize("binary_output", [False, True])
def test_a_written_response_is_read_unchanged(binary_output: bool) -> None:
    array = np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)
    written = InferResponse("encode", "3", {"z": array, "u": np.arange(2, dtype=np.uint8)}, "1")
    body, length = encode_response(written, BinaryOutputs(binary_output))
    read = decode_response(body, None if length is None else str(length))
    assert (read.model, read.version, read.id) == ("encode", "3", "1")
    assert list(read.outputs) == ["z", "u"]
    for name, expected in written.outputs.items():
        assert read.outputs[name].dtype == expected.dtype
        assert np.array_equal(read.outputs[name], expected)


def test_names_of_datatypes_are_those_of_the_protocol() -> None:
    assert wire_dtype("x", "FP32") == np.dtype("<f4")
    assert wire_dtype("x", "UINT8") == np.dtype("u1")
    assert wire_shape("x", [2, 0, 5]) == (2, 0, 5)
