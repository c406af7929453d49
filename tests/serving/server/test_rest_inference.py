"""Inference over REST gives the engine's own bytes, and refuses what does not fit."""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from serving.engine import Engine
from serving.noise import draw_rows
from tests.serving.running import Running
from tests.serving.server.arrays import Arrays, same
from tests.serving.server.rest_requests import (
    LENGTH,
    NAMES,
    arrays_of,
    body_of,
    fill,
    refused,
)


@pytest.fixture(scope="module")
def inputs(x: np.ndarray) -> Mapping[str, Arrays]:
    """Inputs of each operation, with noise."""
    z = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    eps = np.random.default_rng(1).standard_normal((5, 2, 3)).astype(np.float32)
    noise = np.random.default_rng(2).standard_normal((4, 6, 5)).astype(np.float32)
    return {
        "encode": {"x": x[:5]},
        "decode": {"z": z},
        "reconstruct": {"x": x[:5]},
        "sample": {"eps": z},
        "score": {"x": x[:5], "eps": eps},
        "draw": {"z": z, "noise": noise},
    }


@pytest.mark.parametrize("place", ["", "/versions/{version}"], ids=["unversioned", "versioned"])
@pytest.mark.parametrize("binary_output", [False, True], ids=["json out", "binary out"])
@pytest.mark.parametrize("binary_input", [False, True], ids=["json in", "binary in"])
@pytest.mark.parametrize("operation", NAMES)
def test_every_operation_gives_the_engine_s_bytes(
    http: httpx.Client,
    server: Running,
    engine: Engine,
    inputs: Mapping[str, Arrays],
    operation: str,
    binary_input: bool,
    binary_output: bool,
    place: str,
) -> None:
    arrays = inputs[operation]
    parameters = {"binary_data_output": binary_output}
    body, headers = body_of(arrays, list(arrays) if binary_input else [], parameters=parameters)
    address = fill(f"/v2/models/{operation}{place}/infer", server)
    response = http.post(address, content=body, headers=headers)
    same(arrays_of(response), engine.run(operation, arrays))
    assert (LENGTH in response.headers) == binary_output
    kind = "application/octet-stream" if binary_output else "application/json"
    assert response.headers["content-type"] == kind


def test_an_answer_holds_model_version_and_tensors_only(
    http: httpx.Client, server: Running, engine: Engine, x: np.ndarray
) -> None:
    body, _ = body_of({"x": x[:2]}, id="41")
    content = http.post("/v2/models/encode/infer", content=body).json()
    expected = engine.encode(x[:2])
    assert content == {
        "model_name": "encode",
        "model_version": server.version,
        "id": "41",
        "outputs": [
            {
                "name": name,
                "datatype": "FP32",
                "shape": [2, 3],
                "data": [float(str(value)) for value in array.reshape(-1)],
            }
            for name, array in expected.items()
        ],
    }


def test_an_id_that_was_not_given_is_not_answered(http: httpx.Client) -> None:
    assert "id" not in http.post("/v2/models/sample/infer", json={}).json()


def test_nested_data_is_row_major(http: httpx.Client, engine: Engine, x: np.ndarray) -> None:
    tensor = {"name": "x", "datatype": "UINT8", "shape": [2, 6, 5], "data": x[:2].tolist()}
    response = http.post("/v2/models/encode/infer", json={"inputs": [tensor]})
    same(arrays_of(response), engine.encode(x[:2]))


@pytest.mark.parametrize("binary", ["x", "eps"])
def test_one_input_is_json_and_one_binary(
    http: httpx.Client, engine: Engine, inputs: Mapping[str, Arrays], binary: str
) -> None:
    body, headers = body_of(inputs["score"], [binary])
    response = http.post("/v2/models/score/infer", content=body, headers=headers)
    same(arrays_of(response), engine.run("score", inputs["score"]))


@pytest.mark.parametrize("default", [False, True], ids=["else json", "else binary"])
def test_an_output_s_own_choice_of_binary_wins(
    http: httpx.Client, engine: Engine, x: np.ndarray, default: bool
) -> None:
    outputs = [
        {"name": "z_scale", "parameters": {"binary_data": not default}},
        {"name": "z_loc"},
    ]
    parameters = {"binary_data_output": default}
    body, _ = body_of({"x": x[:3]}, outputs=outputs, parameters=parameters)
    response = http.post("/v2/models/encode/infer", content=body)
    expected = engine.encode(x[:3])
    same(arrays_of(response), {name: expected[name] for name in ("z_scale", "z_loc")})
    head = json.loads(response.content[: int(response.headers[LENGTH])])
    found = {output["name"]: "data" in output for output in head["outputs"]}
    assert found == {"z_scale": default, "z_loc": not default}


@pytest.mark.parametrize("names", [["kl"], ["iw_elbo", "elbo"], ["elbo", "iw_elbo"]], ids=str)
def test_requested_outputs_come_alone_and_in_order(
    http: httpx.Client, engine: Engine, x: np.ndarray, names: list[str]
) -> None:
    body, _ = body_of(
        {"x": x[:3]}, outputs=[{"name": name} for name in names], parameters={"seed": 5}
    )
    expected = engine.score(x[:3], 1, 5)
    got = arrays_of(http.post("/v2/models/score/infer", content=body))
    same(got, {name: expected[name] for name in names})


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_a_raw_body_is_the_first_tensor(
    http: httpx.Client, engine: Engine, x: np.ndarray, rows: int
) -> None:
    response = http.post(
        "/v2/models/encode/infer", content=x[:rows].tobytes(), headers={LENGTH: "0"}
    )
    assert LENGTH in response.headers
    same(arrays_of(response), engine.encode(x[:rows]))


def test_a_raw_body_of_part_of_a_row_is_refused(http: httpx.Client) -> None:
    response = http.post("/v2/models/encode/infer", content=b"0" * 31, headers={LENGTH: "0"})
    assert refused(response, 400) == "a row of x has 30 bytes, got a body of 31"


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
def test_whole_floats_stand_for_bytes(
    http: httpx.Client, engine: Engine, x: np.ndarray, binary: bool
) -> None:
    body, headers = body_of({"x": x[:4].astype(np.float32)}, ["x"] if binary else [])
    response = http.post("/v2/models/encode/infer", content=body, headers=headers)
    same(arrays_of(response), engine.encode(x[:4]))


@pytest.mark.parametrize("value", [0.5, -1.0, 256.0, np.nan, np.inf], ids=str)
def test_a_float_that_is_no_byte_is_refused(
    http: httpx.Client, x: np.ndarray, value: float
) -> None:
    array = x[:2].astype(np.float32)
    array[1, 2, 3] = value
    body, headers = body_of({"x": array}, ["x"])
    response = http.post("/v2/models/encode/infer", content=body, headers=headers)
    assert refused(response, 400) == f"x must be whole numbers from 0 to 255, got {value}"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_input_that_is_not_finite_is_refused(http: httpx.Client, value: float) -> None:
    z = np.zeros((3, 3), np.float32)
    z[1, 1] = value
    body, headers = body_of({"z": z}, ["z"])
    response = http.post("/v2/models/decode/infer", content=body, headers=headers)
    assert refused(response, 400) == "z must be finite, row 1 is not"


def test_bytes_do_not_stand_for_floats(http: httpx.Client) -> None:
    body, _ = body_of({"z": np.zeros((2, 3), np.uint8)})
    response = http.post("/v2/models/decode/infer", content=body)
    assert refused(response, 400) == "datatype of z must be FP32, got UINT8"


@pytest.mark.parametrize(
    ("operation", "content", "text"),
    [
        ("encode", {"parameters": {"seed": 1}}, "got 'seed'"),
        ("sample", {"parameters": {"seed": -1}}, "seed must be a whole number, at least 0, got -1"),
        ("sample", {"parameters": {"seed": 2**63}}, f"seed must be from 0 to {2**63 - 1}"),
        ("sample", {"parameters": {"seed": 1.0}}, "seed must be a whole number"),
        ("sample", {"parameters": {"seed": True}}, "seed must be a whole number"),
        (
            "sample",
            {"parameters": {"num_samples": 0}},
            "num_samples must be a whole number, at least 1",
        ),
        ("sample", {"parameters": {"num_samples": 4097}}, "num_samples must be at most 4096"),
        (
            "sample",
            {"parameters": {"timeout": -1}},
            "timeout must be whole microseconds, at least 0",
        ),
        (
            "sample",
            {"parameters": {"timeout": "1"}},
            "timeout must be whole microseconds, at least 0",
        ),
        ("sample", {"parameters": []}, "parameters of the request must be a JSON object, got list"),
        ("sample", {"parameters": {"binary_data_output": 1}}, "must be true or false, got 1"),
        ("sample", {"id": 3}, "id must be text, got 3"),
        ("sample", {"outputs": [{"name": "y"}]}, "sample gives x_loc, got 'y'"),
        ("encode", {}, "encode takes x, got none"),
        ("score", {"parameters": {"seed": 1}}, "score takes x, and eps or a seed for it, got none"),
        ("encode", {"inputs": {"x": 1}}, "inputs must be a list, got dict"),
    ],
    ids=lambda value: value if isinstance(value, str) else json.dumps(value),
)
def test_a_wrong_request_is_refused(
    http: httpx.Client, operation: str, content: dict[str, Any], text: str
) -> None:
    assert text in refused(http.post(f"/v2/models/{operation}/infer", json=content), 400)


def test_noise_and_a_seed_exclude_each_other(
    http: httpx.Client, inputs: Mapping[str, Arrays]
) -> None:
    body, _ = body_of(inputs["score"], parameters={"seed": 1, "num_samples": 2})
    response = http.post("/v2/models/score/infer", content=body)
    assert refused(response, 400) == "eps and num_samples, seed exclude each other"


def test_rows_times_draws_are_bounded(http: httpx.Client, x: np.ndarray) -> None:
    body, _ = body_of({"x": x[:3]}, parameters={"num_samples": 1366})
    text = refused(http.post("/v2/models/score/infer", content=body), 400)
    assert text == "a request may hold 4096 rows times draws, got 4098: send several"


@pytest.mark.parametrize(
    "length", ["1", "-1", "x", "", "+1", "1_0", "999", "9" * 5000], ids=lambda t: t[:5]
)
def test_a_header_length_that_does_not_fit_is_refused(http: httpx.Client, length: str) -> None:
    response = http.post("/v2/models/sample/infer", content=b"{}", headers={LENGTH: length})
    refused(response, 400)


@pytest.mark.parametrize("sizes", [[0, 2**63, 1], [0, 2**62, 2**62]], ids=str)
@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
def test_an_empty_tensor_with_a_huge_axis_is_refused(
    http: httpx.Client, sizes: list[int], binary: bool
) -> None:
    content: dict[str, Any] = {"data": []}
    if binary:
        content = {"parameters": {"binary_data_size": 0}}
    tensor = {"name": "x", "datatype": "UINT8", "shape": sizes, **content}
    refused(http.post("/v2/models/encode/infer", json={"inputs": [tensor]}), 400)


def test_a_deadline_that_passes_in_the_queue_is_504(http: httpx.Client) -> None:
    response = http.post("/v2/models/sample/infer", json={"parameters": {"timeout": 1}})
    assert refused(response, 504).startswith("the deadline passed in the queue, after 0.0")


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
@pytest.mark.parametrize("count", [1, 5, 2000])
def test_samples_of_a_seed_are_the_engine_s(
    http: httpx.Client, engine: Engine, seed: int, count: int
) -> None:
    expected = {"x_loc": engine.sample(count, seed)}
    for binary in (False, True):
        parameters = {"seed": seed, "num_samples": count, "binary_data_output": binary}
        response = http.post("/v2/models/sample/infer", json={"parameters": parameters})
        same(arrays_of(response), expected)
    eps = draw_rows(seed, 0, count, 3)
    same({"x_loc": engine.run("sample", {"eps": eps})["x_loc"]}, expected)


@pytest.mark.parametrize("draws", [1, 16])
def test_scores_of_a_seed_are_the_engine_s(
    http: httpx.Client, engine: Engine, x: np.ndarray, draws: int
) -> None:
    expected = engine.score(x[:200], draws, 7)
    for binary in (False, True):
        parameters = {"seed": 7, "num_samples": draws, "binary_data_output": binary}
        body, headers = body_of({"x": x[:200]}, ["x"] if binary else [], parameters=parameters)
        response = http.post("/v2/models/score/infer", content=body, headers=headers)
        same(arrays_of(response), expected)


def test_neighbours_in_a_batch_change_nothing(
    http: httpx.Client, engine: Engine, x: np.ndarray
) -> None:
    """Concurrent requests of different sizes, operations and draws each get their own bytes."""
    rng = np.random.default_rng(8)
    cases = []
    for place in range(240):
        operation = ("score", "sample", "encode", "reconstruct")[place % 4]
        start, rows = int(rng.integers(0, 1000)), int(rng.choice([1, 2, 3, 17, 64, 300]))
        draws = int(rng.choice([1, 1, 3])) if operation == "score" else rows
        cases.append((operation, x[start : start + rows], draws, place // 3))

    def ask(case: tuple[str, np.ndarray, int, int]) -> None:
        operation, rows, draws, seed = case
        parameters: dict[str, Any] = {"binary_data_output": True}
        if operation in ("sample", "score"):
            parameters |= {"seed": seed, "num_samples": draws}
        arrays = {} if operation == "sample" else {"x": rows}
        body, headers = body_of(arrays, list(arrays), parameters=parameters)
        response = http.post(f"/v2/models/{operation}/infer", content=body, headers=headers)
        if operation == "sample":
            expected = {"x_loc": engine.sample(draws, seed)}
        elif operation == "score":
            expected = engine.score(rows, draws, seed)
        else:
            expected = engine.run(operation, {"x": rows})
        same(arrays_of(response), expected)

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(ask, cases))


def test_an_output_that_is_asked_for_twice_is_refused(http: httpx.Client) -> None:
    body = {"inputs": [], "outputs": [{"name": "x_loc"}, {"name": "x_loc"}]}
    text = refused(http.post("/v2/models/sample/infer", json=body), 400)
    assert text == "the output x_loc is asked for twice"
