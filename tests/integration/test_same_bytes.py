"""A row of a mixed table has the same scores, to the byte, whichever door it comes through."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import numpy as np
import pandas as pd
import pytest
import tritonclient.grpc  # type: ignore[import-untyped]
import tritonclient.http  # type: ignore[import-untyped]
from click.testing import CliRunner
from numpy.typing import NDArray
from pyarrow import csv, dataset, feather, parquet

from pipeline.cli.main import cli
from pipeline.registry.versions import register_bundle
from pipeline.tracking import tracked_run
from serving import AsyncClient, Client
from serving.bundle import open_bundle
from serving.engine import Engine
from serving.protocol import open_inference_pb2 as pb
from serving.protocol.http_body import decode_response
from serving.server.grpc_calls import SERVICE
from serving.table_cells import TableEncoder
from tests.mixed_rows import draw_table, with_oddities
from tests.mlserver_codecs import decode_frame, encode_frame, encode_frame_for_grpc
from tests.serving.conftest import MIXED
from tests.serving.running import Running, serve

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:importlib"),
    # mlflow compares the names of columns with a range
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),
]

Array = NDArray[Any]
Scores = Mapping[str, Array]

SEED, SAMPLES = 7, 3
PARAMETERS = {"seed": SEED, "num_samples": SAMPLES}
TABLE = with_oddities(draw_table(70, seed=5))
FRAME = TABLE.to_pandas()
COLUMNS = FRAME.drop(columns="key")
FILED = ("elbo", "log_likelihood", "kl", "iw_elbo")
TEXT = ("colour", "opened")
FLOATS = ("size", "visits", "income", "member", "grade")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, slow_tier: None) -> Iterator[Running]:
    with serve(tmp_path_factory.mktemp("server"), MIXED, "--drain", "1") as running:
        yield running


def score_file(write: Callable[[Path], object], path: Path) -> Scores:
    write(path)
    out = path.parent / "scores"
    options = ("--model", MIXED, "--seed", SEED, "--num-samples", SAMPLES)
    result = CliRunner().invoke(cli, [*map(str, ("score", path, out, *options))])
    assert result.exit_code == 0, result.output
    assert "mauve" not in result.stdout
    table = dataset.dataset(out).to_table()
    return {name: np.asarray(table.column(name).to_numpy()) for name in FILED}


def encode(frame: pd.DataFrame) -> Array:
    schema = open_bundle(MIXED).manifest.schema
    assert schema is not None
    arrays = {name: frame[name].to_numpy(object) for name in schema.sources}
    return TableEncoder(schema).encode_arrays(arrays).x


@pytest.fixture(scope="module")
def expected() -> Scores:
    """The engine's own scores, of which files have those that are one number a row."""
    return Engine(open_bundle(MIXED)).score(encode(FRAME), SAMPLES, SEED)


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows for clients that have no null in text: floats with NaN, and empty text."""
    floats = {name: frame[name].astype("float64") for name in FLOATS}
    text = {n: frame[n].map(lambda v: "" if pd.isna(v) else str(v)).astype(object) for n in TEXT}
    return pd.DataFrame({**floats, **text})


def json_body() -> dict[str, Any]:
    """A request in JSON as a person writes it, with null for gaps."""
    datatypes = {"size": "FP64", "income": "FP64", "visits": "INT64", "grade": "INT32"}
    columns = {**TABLE.drop_columns("key").to_pydict()}
    columns["opened"] = [day and day.isoformat() for day in columns["opened"]]
    inputs = [
        {
            "name": name,
            "datatype": {"member": "BOOL"}.get(name, datatypes.get(name, "BYTES")),
            "shape": [len(values)],
            "data": values,
        }
        for name, values in columns.items()
    ]
    return {"inputs": inputs, "parameters": PARAMETERS}


def post(server: Running, body: Any, operation: str = "score") -> Scores:
    answer = httpx.post(f"{server.rest}/v2/models/{operation}/infer", json=body)
    assert answer.status_code == 200, answer.text
    return decode_response(answer.content, None).outputs


def ask_mlserver(server: Running) -> Scores:
    body = encode_frame(plain(FRAME))
    assert body["parameters"]["content_type"] == "pd"
    body["parameters"] |= PARAMETERS
    return post(server, body)


def ask_mlserver_grpc(server: Running) -> Scores:
    """MLServer's gRPC has no gap in numbers, so that those come as JSON in text: `pd_json`."""
    frame = plain(FRAME)
    for name in FLOATS:
        frame[name] = frame[name].astype(object).where(frame[name].notna(), "")
    columns = {str(name): values.tolist() for name, values in frame.items()}
    message = pb.ModelInferRequest.FromString(encode_frame_for_grpc(columns, "score"))
    assert {own.parameters["content_type"].string_param for own in message.inputs} == {
        "str",
        "pd_json",
    }
    for name, value in PARAMETERS.items():
        message.parameters[name].int64_param = value
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            pb.ModelInferRequest.SerializeToString,
            pb.ModelInferResponse.FromString,
        )
        reply = call(message)
    assert not reply.raw_output_contents
    return {
        output.name: np.array(output.contents.fp32_contents, np.float32).reshape(output.shape)
        for output in reply.outputs
    }


def ask_triton(server: Running, kind: Any, address: str) -> Scores:
    with kind.InferenceServerClient(address) as client:
        inputs = []
        for name, values in plain(FRAME).items():
            array = values.to_numpy()
            datatype = "BYTES" if array.dtype == object else "FP64"
            inputs.append(kind.InferInput(str(name), [len(array)], datatype))
            inputs[-1].set_data_from_numpy(array)
        answer = client.infer("score", inputs, parameters=PARAMETERS)
        names = [tensor.name for tensor in open_bundle(MIXED).operations["score"].outputs]
        return {name: answer.as_numpy(name) for name in names}


def ask(server: Running, rows: Any) -> Scores:
    with Client(server.rest) as client:
        return client.score(rows, **PARAMETERS)


async def ask_async(server: Running, rows: Any) -> Scores:
    async with AsyncClient(server.rest) as client:
        return await client.score(rows, **PARAMETERS)


def odd_types(frame: pd.DataFrame) -> pd.DataFrame:
    """The same rows in the other types of pandas."""
    return frame.assign(
        colour=frame["colour"].astype("category"),
        visits=frame["visits"].astype("Int64"),
        member=frame["member"].astype("boolean"),
        opened=pd.to_datetime(frame["opened"]).dt.tz_localize("UTC"),
        size=frame["size"].astype("Float64"),
        grade=frame["grade"].map(str),
    )


OVER_THE_WIRE: dict[str, Callable[[Running], Scores]] = {
    "JSON": lambda server: post(server, json_body()),
    "JSON of MLServer": ask_mlserver,
    "gRPC of MLServer": ask_mlserver_grpc,
    "binary of tritonclient": lambda server: ask_triton(
        server, tritonclient.http, server.rest.removeprefix("http://")
    ),
    "gRPC of tritonclient": lambda server: ask_triton(server, tritonclient.grpc, server.grpc),
    "a DataFrame": lambda server: ask(server, COLUMNS),
    "the ignored key beside": lambda server: ask(server, FRAME),
    "other types": lambda server: ask(server, odd_types(COLUMNS)),
    "a Table": lambda server: ask(server, TABLE),
    "lists": lambda server: ask(server, TABLE.to_pydict()),
    "an AsyncClient": lambda server: asyncio.run(ask_async(server, COLUMNS)),
}


def check(found: Scores, expected: Scores) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].shape == values.shape
        assert found[name].dtype == values.dtype
        assert found[name].tobytes() == values.tobytes(), name


@pytest.mark.parametrize("door", OVER_THE_WIRE.values(), ids=OVER_THE_WIRE.keys())
def test_over_the_wire(
    server: Running, expected: Scores, door: Callable[[Running], Scores]
) -> None:
    check(door(server), expected)


FILES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "Parquet": ("x.parquet", lambda path: parquet.write_table(TABLE, path)),
    "CSV": ("x.csv", lambda path: csv.write_csv(TABLE, path)),
    "CSV of pandas": ("x.csv", lambda path: FRAME.to_csv(path, index=False)),
    "Arrow": ("x.arrow", lambda path: feather.write_feather(TABLE, str(path))),
    "other types": ("x.parquet", lambda path: odd_types(FRAME).to_parquet(path)),
}


@pytest.mark.parametrize(("name", "write"), FILES.values(), ids=FILES.keys())
def test_files(
    tmp_path: Path, expected: Scores, name: str, write: Callable[[Path], object]
) -> None:
    check(score_file(write, tmp_path / name), {name: expected[name] for name in FILED})


def test_x_itself(server: Running, expected: Scores) -> None:
    x = encode(FRAME)
    check(ask(server, x), expected)
    data = [None if np.isnan(value) else value for value in x.ravel().tolist()]
    tensor = {"name": "x", "datatype": "FP32", "shape": x.shape, "data": data}
    check(post(server, {"inputs": [tensor], "parameters": PARAMETERS}), expected)


def load_pyfunc(folder: Path) -> Any:
    from pipeline.registry.versions import copy_frame_reader
    from serving.pyfunc_model import BundleModel

    model = BundleModel()
    frames = copy_frame_reader(folder)
    artifacts = {"bundle": str(MIXED), "frames": str(frames)}
    model.load_context(SimpleNamespace(artifacts=artifacts))
    return model


def test_the_pyfunc(tmp_path: Path, expected: Scores) -> None:
    model = load_pyfunc(tmp_path)
    params = {"operation": "score", **PARAMETERS}
    for rows in (FRAME, odd_types(FRAME), TABLE.to_pydict(), plain(FRAME)):
        check(model.predict(None, rows, params), expected)


def test_a_registered_version(
    store: Path, tmp_path: Path, expected: Scores, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setattr("pipeline.registry.versions.parity_faults", lambda *_, **__: [])
    with tracked_run("test") as run:
        version = register_bundle(run, open_bundle(MIXED), "accounts")
    model = mlflow.pyfunc.load_model(f"models:/accounts/{version}")
    assert model.metadata.signature.inputs.input_names() == list(COLUMNS)
    params = {"operation": "score", **PARAMETERS}
    for rows in (FRAME, odd_types(FRAME)):
        check(model.predict(rows, params=params), expected)


def test_reconstructions_come_back_as_a_data_frame(server: Running) -> None:
    body = encode_frame(plain(FRAME))
    answer = httpx.post(f"{server.rest}/v2/models/reconstruct/infer", json=body).json()
    frame = decode_frame(answer)
    with Client(server.rest) as client:
        columns = client.reconstruct(FRAME)
    assert list(frame) == list(columns) == list(COLUMNS)
    for name, values in columns.items():
        assert frame[name].tolist() == values.tolist()
    assert set(frame["colour"]) <= {"blue", "green", "red", "white", "other"}
    assert pd.to_datetime(frame["opened"]).between("2023-01-01", "2027-01-01").all()
