"""The OpenAPI document and the page list every route, and their example can be sent."""

import json
import re
from pathlib import Path

import httpx
import orjson
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate

from serving import errors
from serving.engine import Engine
from serving.server.rest_routes import ROUTES
from tests.live_facts import make_live_status
from tests.serving.running import Running
from tests.serving.server.arrays import same
from tests.serving.server.rest_requests import arrays_of


def test_the_openapi_document_has_every_route_and_its_parts(
    http: httpx.Client, server: Running
) -> None:
    document = http.get("/openapi.json").json()
    found = {(m.upper(), path) for path, item in document["paths"].items() for m in item}
    assert found == {(route.method, route.path) for route in ROUTES}
    operations = [item for path in document["paths"].values() for item in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names) == len(ROUTES)
    references = json.dumps(document).split('"$ref": "#/components/schemas/')[1:]
    wanted = {reference.split('"')[0] for reference in references}
    assert wanted == document["components"]["schemas"].keys()
    assert server.version in document["info"]["title"]


def test_answers_have_schemas_and_tensors_may_be_binary(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    kinds = {"application/json", "application/octet-stream"}
    infer = document["paths"]["/v2/models/{name}/infer"]["post"]
    assert infer["requestBody"]["content"].keys() == kinds
    assert infer["responses"]["200"]["content"].keys() == kinds
    for item in document["paths"].values():
        for operation in item.values():
            for status, answer in operation["responses"].items():
                content = answer.get("content", {})
                assert all("schema" in kind for kind in content.values())
                if int(status) >= 400:
                    assert "#/components/schemas/Error" in str(content["application/json"])


def test_free_sizes_of_the_openapi_document_have_names(http: httpx.Client) -> None:
    operations = http.get("/openapi.json").json()["x-operations"]
    shapes = {tensor["name"]: tensor["shape"] for tensor in operations["score"]["inputs"]}
    assert shapes == {"x": ["batch", 6, 5], "eps": ["batch", "num_samples", 3]}


def test_the_openapi_example_runs(http: httpx.Client, engine: Engine) -> None:
    schemas = http.get("/openapi.json").json()["components"]["schemas"]
    example = schemas["InferRequest"]["example"]
    seed, count = example["parameters"]["seed"], example["parameters"]["num_samples"]
    response = http.post("/v2/models/sample/infer", json=example)
    same(arrays_of(response), {"x_loc": engine.sample(count, seed)})


def test_every_status_is_in_the_readme_and_in_the_openapi_document(http: httpx.Client) -> None:
    """Except 499, which a client that left never reads."""
    kinds = {kind.status for kind in errors.VaeError.__subclasses__()} - {499}
    readme = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()
    (listed,) = re.findall(r"Errors are .*?\n- ", readme, re.DOTALL)
    assert {int(status) for status in re.findall(r"\b[45]\d\d\b", listed)} == kinds
    paths = http.get("/openapi.json").json()["paths"]
    operations = [operation for item in paths.values() for operation in item.values()]
    found = {int(status) for operation in operations for status in operation["responses"]}
    assert found - {200, 202} == kinds


def test_the_openapi_document_is_valid(http: httpx.Client) -> None:
    validate(http.get("/openapi.json").json())


def test_the_status_is_described_to_its_last_property(http: httpx.Client) -> None:
    """Against the document: with what an observer knows, and with nothing left undescribed."""
    document = http.get("/openapi.json").json()
    described = document["components"]["schemas"]
    status = http.get("/status").json()
    live = orjson.loads(orjson.dumps(make_live_status("ab", columns=["size"])))
    for content, name in ((status, "Status"), (live, "LiveStatus")):
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        OAS31Validator(schema).validate(content)
        assert content.keys() == described[name]["properties"].keys()
    assert live["drift"].keys() == described["DriftStatus"]["properties"].keys()


def test_docs_are_a_page_that_asks_this_server(http: httpx.Client) -> None:
    response = http.get("/docs")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.text.startswith("<!doctype html>")
    assert "openapi.json" in response.text
    assert "http://" not in response.text.replace("http://www.w3.org", "")
