"""A server of a mixed table takes rows by columns, says what it does not know, and refuses by name.

That the scores are the engine's own bytes is tested over all doors in tests/integration.
"""

import asyncio
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from serving import AsyncClient, Client
from serving.bundle import open_bundle
from serving.engine import Engine
from serving.errors import DataRefused, UsageRefused
from serving.noise import draw_eps
from tests.mixed_rows import NAMES, draw_table, with_oddities
from tests.serving.conftest import MIXED
from tests.serving.running import Running, serve
from tests.serving.server.browser import BROWSER
from tests.serving.server.rest_requests import refused
from tests.serving.server.test_page import browse

TABLE = with_oddities(draw_table(6, seed=8))
ROW: dict[str, Any] = {
    "size": 20.5,
    "colour": "red",
    "visits": 3,
    "income": 900.0,
    "member": True,
    "opened": "2024-05-06",
    "grade": 2,
}
DATATYPES = {
    "size": "FP64",
    "colour": "BYTES",
    "visits": "INT64",
    "income": "FP32",
    "member": "BOOL",
    "opened": "BYTES",
    "grade": "INT16",
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, slow_tier: None) -> Iterator[Running]:
    with serve(tmp_path_factory.mktemp("mixed"), MIXED, "--drain", "1") as running:
        yield running


@pytest.fixture(scope="module")
def rest(mixed: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=mixed.rest, timeout=30) as client:
        yield client


def body_of(row: dict[str, Any], **parameters: Any) -> dict[str, Any]:
    inputs = [
        {"name": name, "datatype": DATATYPES.get(name, "FP32"), "shape": [1], "data": [value]}
        for name, value in row.items()
    ]
    return {"inputs": inputs, "parameters": parameters}


def ask(rest: httpx.Client, body: Any, operation: str = "score") -> httpx.Response:
    return rest.post(f"/v2/models/{operation}/infer", json=body)


@pytest.mark.parametrize("operation", ["encode", "reconstruct", "score", "impute", "explain"])
def test_every_operation_on_x_takes_columns(rest: httpx.Client, operation: str) -> None:
    answer = ask(rest, body_of(ROW), operation).raise_for_status().json()
    names = [output["name"] for output in answer["outputs"]]
    if operation in ("reconstruct", "impute"):
        assert names == list(NAMES)
        assert answer["parameters"]["content_type"] == "pd"
    else:
        tensors = open_bundle(MIXED).operations[operation].outputs
        assert names == [tensor.name for tensor in tensors]


def test_imputing_keeps_what_is_seen_and_fills_gaps(rest: httpx.Client) -> None:
    row = {**ROW, "colour": None, "visits": None, "opened": ""}
    answer = ask(rest, body_of(row, seed=1, num_samples=50), "impute").raise_for_status().json()
    filled = {output["name"]: output["data"][0] for output in answer["outputs"]}
    assert {n: filled[n] for n in ("size", "income", "member", "grade")} == {
        n: ROW[n] for n in ("size", "income", "member", "grade")
    }
    assert filled["colour"] in ("blue", "green", "red", "white")
    assert filled["visits"] >= 0
    assert re.fullmatch(r"202\d-\d\d-\d\d", filled["opened"])


def test_unknown_words_and_new_gaps_are_answered_and_counted(rest: httpx.Client) -> None:
    def count(name: str) -> float:
        found = re.search(rf'^vae_{name}_total{{operation="score"}} (\S+)$', metrics(), re.M)
        return float(found[1]) if found else 0.0

    def metrics() -> str:
        return rest.get("/metrics").text

    before = count("unseen_words"), count("new_gaps")
    row = {**ROW, "colour": "mauve", "grade": 77, "size": None}
    answer = ask(rest, body_of(row)).raise_for_status().json()
    assert answer["parameters"] == {
        "unseen_words": "colour in 1 rows, grade in 1 rows",
        "new_gaps": "size in 1 rows",
    }
    assert (count("unseen_words"), count("new_gaps")) == (before[0] + 2, before[1] + 1)
    assert "parameters" not in ask(rest, body_of(ROW)).json()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a missing column": ({"colour": ...}, "a column 'colour': there is none among size, visits"),
    "an unknown one": ({"colours": "red"}, "the table has no column 'colours': leave it out"),
    "a part of a date": ({"opened.month": 3}, "no column 'opened.month'"),
    "x beside columns": ({"x": 1.0}, "no column 'x': send x or columns, not both"),
    "text in numbers": (
        {"size": "tall"},
        "data of size of FP64 must be numbers or null, got 'tall' in row 0",
    ),
    "no date": (
        {"opened": "yesterday"},
        "column 'opened' is not of the column's type in row 0: it takes dates, or text such as "
        "2026-12-31 or 2026-12-31T23:59:00, got 'yesterday'",
    ),
    "less than nothing": (
        {"visits": -1},
        "column 'visits' is negative in row 0: it takes numbers from 0, got -1",
    ),
    "beyond float32": (
        {"income": 1e300},
        "column 'income' is not finite in float32 in row 0: it takes numbers, got inf",
    ),
}


@pytest.mark.parametrize(("change", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_refused_by_name(
    rest: httpx.Client, change: dict[str, Any], reason: str
) -> None:
    row = {name: value for name, value in {**ROW, **change}.items() if value is not ...}
    assert reason in refused(ask(rest, body_of(row)), 400)


def test_rows_that_differ_in_number_and_twice_the_same_column(rest: httpx.Client) -> None:
    body = body_of(ROW)
    body["inputs"][2] |= {"shape": [2], "data": [1, 2]}
    assert "'size' has 1, 'visits' has 2" in refused(ask(rest, body), 400)
    body["inputs"][2] = body["inputs"][0]
    assert "size is given twice" in refused(ask(rest, body), 400)


def test_limits_of_a_request(rest: httpx.Client) -> None:
    many = [{"name": f"c{n}", "datatype": "FP32", "shape": [1], "data": [0]} for n in range(17)]
    assert "may have 16 inputs, got 17" in refused(ask(rest, {"inputs": many}), 400)
    body = body_of(ROW)
    for each in body["inputs"]:
        each |= {"shape": [4097], "data": each["data"] * 4097}
    assert "may hold 4096 rows, got 4097" in refused(ask(rest, body), 400)
    body = body_of(ROW, num_samples=4097)
    assert "num_samples must be at most 4096" in refused(ask(rest, body), 400)


def test_x_still_takes_nan_as_null_and_other_models_do_not(
    rest: httpx.Client, http: httpx.Client
) -> None:
    x = open_bundle(MIXED).golden()["encode.x"][:1]
    data = [None if np.isnan(value) else value for value in x.ravel().tolist()]
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": x.shape, "data": data}]}
    answer = ask(rest, body, "encode").raise_for_status().json()
    expected = Engine(open_bundle(MIXED)).encode(x)["z_loc"]
    assert np.array(answer["outputs"][0]["data"], np.float32).tobytes() == expected.tobytes()
    data = [None] * 30
    body = {"inputs": [{"name": "x", "datatype": "UINT8", "shape": (1, 6, 5), "data": data}]}
    assert "must be numbers" in refused(ask(http, body, "encode"), 400)
    assert "encode takes x, got colour" in refused(
        ask(
            http, {"inputs": [{**body["inputs"][0], "name": "colour", "data": [0] * 30}]}, "encode"
        ),
        400,
    )


def test_metadata_names_the_columns(rest: httpx.Client) -> None:
    content = rest.get("/v2/models/score").json()
    assert content["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": [-1, 9]}
    columns = {column.pop("name"): column for column in content["parameters"]["columns"]}
    assert list(columns) == list(NAMES)
    assert columns["opened"] == {"datatype": "BYTES", "kind": "date", "type": "date"}
    words = {"words": ["false", "true"]}
    assert columns["member"] == {"datatype": "BOOL", "kind": "binary", "type": "bool", **words}
    assert columns["colour"]["words"] == ["blue", "green", "red", "white"]
    assert content["parameters"]["x_columns"][5:8] == ["opened", "opened.weekday", "opened.month"]


def test_the_document_s_row_by_columns_can_be_sent(rest: httpx.Client) -> None:
    document = rest.get("/openapi.json").json()
    content = document["paths"]["/v2/models/{name}/infer"]["post"]["requestBody"]["content"]
    examples = content["application/json"]["examples"]
    answer = ask(rest, examples["columns"]["value"]).raise_for_status().json()
    golden = open_bundle(MIXED).golden()["encode.x"][:1]
    expected = Engine(open_bundle(MIXED)).score(golden, 1, 7)["elbo"]
    assert answer["outputs"][0]["data"] == pytest.approx(expected.tolist(), rel=1e-3)
    ask(rest, examples["noise"]["value"], "sample").raise_for_status()


@pytest.mark.skipif(BROWSER is None, reason="there is no browser")
def test_the_page_shows_words_and_dates(mixed: Running, tmp_path: Path) -> None:
    page = html.unescape(browse(tmp_path, f"{mixed.rest}/docs", "--dump-dom"))
    rows = {
        cells[0]: cells[1:]
        for line in re.findall(r"<tr>(.*?)</tr>", page)
        if (cells := re.findall(r"<td>(.*?)</td>", line)) and cells[0] in NAMES
    }
    assert list(rows) == list(NAMES)
    assert {*rows["colour"]} <= {"blue", "green", "red", "white", "other"}
    assert all(re.fullmatch(r"202\d-\d\d-\d\d", day) for day in rows["opened"])
    command = re.search(r'<pre id="row">curl -s (\S+) -d \'(.*?)\'</pre>', page)
    assert command
    httpx.post(command[1], json=json.loads(command[2])).raise_for_status()


def test_the_client_sends_tables_and_dicts(mixed: Running) -> None:
    rows = TABLE.to_pydict()
    with Client(mixed.rest) as client:
        by_table, by_dict = client.score(TABLE, 2, 7), client.score(rows, 2, 7)
        assert {n: v.tobytes() for n, v in by_table.items()} == {
            n: v.tobytes() for n, v in by_dict.items()
        }
        assert len(client.x_columns()) == by_table["column_log_likelihood"].shape[1] == 9
        assert client.encode(TABLE)["z_loc"].shape == (6, 3)
        assert list(client.reconstruct(TABLE)) == list(NAMES)
        assert "mauve" not in client.reconstruct(TABLE)["colour"].tolist()
        with pytest.raises(UsageRefused, match="a column 'size'"):
            client.score({"colour": ["red"]})
        with pytest.raises(DataRefused, match="column 'size' must be numbers, booleans, text"):
            client.score({**rows, "size": [[1.0, 2.0]] * 6})


def test_the_clients_impute_and_explain(mixed: Running) -> None:
    gaps = {**TABLE.to_pydict(), "income": [None] * 6}
    engine = Engine(open_bundle(MIXED))
    with Client(mixed.rest) as client:
        filled = client.impute(gaps, num_samples=50, seed=1)
        assert list(filled) == list(NAMES)
        assert np.isfinite(filled["income"].astype(float)).all()
        lift = client.explain(TABLE, num_samples=2, seed=7)
        assert lift.shape == client.score(TABLE)["column_log_likelihood"].shape
        encoded = np.zeros((2, lift.shape[1]), np.float32)
        encoded[1] = np.nan
        eps = draw_eps(encoded, 7, 2, 3)
        same = {"x": encoded, "eps": eps}
        expected = engine.run("explain", same)["column_lift"]
        assert client.explain(encoded, num_samples=2, seed=7).tobytes() == expected.tobytes()
        expected = engine.run("impute", same)["x_filled"]
        assert client.impute(encoded, num_samples=2, seed=7).tobytes() == expected.tobytes()

    async def ask() -> tuple[Any, Any]:
        async with AsyncClient(mixed.rest) as client:
            return await client.impute(gaps, 50, 1), await client.explain(TABLE, 2, 7)

    later = asyncio.run(ask())
    assert {n: v.tolist() for n, v in later[0].items()} == {
        n: v.tolist() for n, v in filled.items()
    }
    assert later[1].tobytes() == lift.tobytes()
