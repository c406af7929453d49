"""Random and malformed bodies give a request or a refusal, and the server stays up."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

from serving.errors import DataRefused, UsageRefused
from serving.operations import operation_table
from serving.protocol.http_body import HEADER_LENGTH, decode_request
from serving.protocol.messages import DATATYPES
from tests.serving.running import Running

TABLE = operation_table((6, 5), "uint8", 3)
HUGE = [2**31, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**70]
NUMBERS = st.one_of(
    st.integers(-3, 40), st.sampled_from([*HUGE, -(2**63)]), st.floats(), st.booleans()
)
SCALARS = st.one_of(st.none(), NUMBERS, st.text(max_size=4))
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
SHAPES = st.one_of(
    st.lists(st.one_of(st.integers(0, 6), st.sampled_from([*HUGE, -1, 0, 1])), max_size=4),
    st.lists(NUMBERS, max_size=10),
    st.sampled_from([[0, 6, 5], [1, 6, 5], [2, 6, 5], [1, 2, 3]]),
    ANYTHING,
)
NAMES = st.one_of(st.sampled_from(["x", "eps", "x", "z"]), ANYTHING)
TENSORS = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={
            "name": NAMES,
            "datatype": st.one_of(st.sampled_from(["UINT8", "FP32", "INT64", "BYTES"]), ANYTHING),
            "shape": SHAPES,
            "data": st.one_of(st.lists(NUMBERS, max_size=60), ANYTHING),
            "parameters": st.one_of(
                st.fixed_dictionaries(
                    {"binary_data_size": st.one_of(st.integers(-1, 70), SCALARS)}
                ),
                ANYTHING,
            ),
        },
    ),
    ANYTHING,
)
PARAMETERS = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.one_of(st.integers(0, 9), SCALARS)
            for name in ("seed", "num_samples", "timeout", "binary_data_output", "sequence_id")
        },
    ),
    ANYTHING,
)
CONTENTS = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={
            "id": st.one_of(st.text(max_size=5), ANYTHING),
            "inputs": st.one_of(st.lists(TENSORS, max_size=3), ANYTHING),
            "outputs": st.one_of(
                st.lists(st.fixed_dictionaries({"name": NAMES, "parameters": ANYTHING})), ANYTHING
            ),
            "parameters": PARAMETERS,
        },
    ),
    ANYTHING,
)
LENGTHS = st.one_of(
    st.none(),
    st.integers(-2, 400).map(str),
    st.sampled_from(["", " 3", "+3", "1_0", "0x3", "1e1", "٣", "²", "00", "9" * 30, "9" * 5000]),
)
BODIES = st.one_of(
    CONTENTS.map(lambda content: json.dumps(content).encode()),
    st.binary(max_size=200),
    st.sampled_from([b"[" * 5000, b'{"a":' * 5000, b'{"inputs":' + b"[" * 900 + b"]" * 900 + b"}"]),
)


@pytest.mark.parametrize("wrong", [True, False])
def test_a_boolean_among_numbers_is_refused_wherever_it_is(wrong: bool) -> None:
    for place in range(300):
        values: list[int | bool] = [1] * 300
        values[place] = wrong
        tensor = {"name": "x", "datatype": "UINT8", "shape": [10, 6, 5], "data": values}
        body = json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()
        with pytest.raises(DataRefused, match="data of x must be numbers"):
            decode_request(TABLE["encode"], "", body, None)


@st.composite
def requests(draw: Any) -> tuple[str, bytes, str | None]:
    """An operation, a body and a header: often a whole message, sometimes cut or extended."""
    body = draw(BODIES)
    tail = draw(st.binary(max_size=130))
    length = draw(st.one_of(st.just(str(len(body))), LENGTHS))
    whole = body + tail
    whole = whole[: draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))]
    return draw(st.sampled_from(sorted(TABLE))), whole, length


@settings(max_examples=1500, deadline=None, derandomize=True, database=None)
@example(("encode", b"{}", "9" * 5000))
@example(
    (
        "encode",
        b'{"inputs": [{"name": "x", "datatype": "UINT8", "shape": [0, 9223372036854775808],'
        b' "data": []}]}',
        None,
    )
)
@given(requests())
def test_a_body_gives_a_request_or_a_refusal(case: tuple[str, bytes, str | None]) -> None:
    operation, body, length = case
    try:
        request, binary = decode_request(TABLE[operation], "", body, length)
    except (DataRefused, UsageRefused):
        return
    assert request.model == operation
    assert all(array.dtype in DATATYPES for array in request.inputs.values())
    assert all(isinstance(binary.wants(name), bool) for name in ("x", *request.outputs))


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.rest, timeout=30) as client:
        yield client
        assert client.get("/v2/health/ready").status_code == 200


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(case=requests())
def test_the_server_answers_what_is_malformed(
    http: httpx.Client, case: tuple[str, bytes, str | None]
) -> None:
    operation, body, length = case
    headers: Any = {} if length is None else {HEADER_LENGTH: length.strip().encode()}
    response = http.post(f"/v2/models/{operation}/infer", content=body, headers=headers)
    # 504: the request itself gave a deadline
    assert response.status_code in (200, 400, 504), response.text
    if response.status_code != 200:
        assert response.json().keys() == {"error"}


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_the_openapi_document_is_what_the_server_does(http: httpx.Client, mode: Any) -> None:
    """Valid and invalid requests from the document get the answers that it lists, and no 5xx."""
    base = str(http.base_url)
    schema = schemathesis.openapi.from_url(f"{base}/openapi.json")
    schema.validate()
    checks = {check.__name__: check for check in CHECKS.get_all()}
    # a request that fits the schema may be refused, since no schema can describe a tensor's shape
    always = [checks["positive_data_acceptance"]]
    # the content of a signed webhook is not read
    unread = [*always, checks["negative_data_rejection"]]
    asked = 0
    try:
        for result in schema.get_all_operations():
            operation: Any = result.ok()  # type: ignore[union-attr]
            if mode is GenerationMode.NEGATIVE and "requestBody" not in operation.definition.raw:
                continue

            @settings(
                max_examples=20,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                nonlocal asked
                asked += 1
                response = case.call(base_url=base)
                # null stands for no body, which generators of clients cannot take from a schema
                accepted = case.path.startswith("/webhooks") or case.body is None
                left_out = unread if accepted else always
                case.validate_response(response, excluded_checks=left_out)

            ask()
    finally:
        for name in TABLE:
            http.post(f"/v2/repository/models/{name}/load")
    assert asked > 50
