"""Clients that nobody here wrote send chunks and compress: Java, Node, curl, tritonclient.

Java and curl must be installed, Node comes with the packages of these tests: what they send by
default is what users meet.
"""

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton_http  # type: ignore[import-untyped]
import tritonclient.http.aio as triton_http_aio  # type: ignore[import-untyped]

from serving.engine import Engine
from tests.serving.running import Running
from tests.serving.server.rest_requests import body_of

CLIENTS = Path(__file__).parent / "clients"
ENCODE = "/v2/models/encode/infer"
COMMANDS = {
    "java": ["java", str(CLIENTS / "Chunked.java"), "{url}", "{file}"],
    "node": [f"{sys.prefix}/bin/node", str(CLIENTS / "chunked.mjs"), "{url}", "{file}"],
}
CURL = ["curl", "--silent", "--show-error", "--data-binary", "@{file}", "{url}"]


def run(command: list[str], url: str, file: Path, *options: str) -> str:
    """Run a client, and return what it prints."""
    words = [word.format(url=url, file=file) for word in command]
    assert shutil.which(words[0]), f"this test needs {words[0]}: see .ci/run"
    done = subprocess.run([*words, *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def written(folder: Path, x: np.ndarray) -> Path:
    file = folder / "request.json"
    file.write_bytes(body_of({"x": x})[0])
    return file


def check(content: Any, expected: dict[str, np.ndarray]) -> None:
    for output in content["outputs"]:
        found = np.array(output["data"], np.float32).reshape(output["shape"])
        assert found.tobytes() == expected[output["name"]].tobytes()


@pytest.mark.slow(5)
@pytest.mark.parametrize("rows", [1, 2000])
@pytest.mark.parametrize("client", COMMANDS)
def test_a_client_that_sends_json_in_chunks(
    server: Running, engine: Engine, x: np.ndarray, tmp_path: Path, client: str, rows: int
) -> None:
    text = run(COMMANDS[client], server.rest + ENCODE, written(tmp_path, x[:rows]))
    lines = text.splitlines()
    assert len(lines) == 3  # over one connection
    for line in lines:
        status, answer = line.split(" ", 1)
        assert status == "200", answer
        check(json.loads(answer), dict(engine.encode(x[:rows])))


@pytest.mark.parametrize(
    "options",
    [
        ["-H", "Transfer-Encoding: chunked"],
        ["-H", "Transfer-Encoding: chunked", "--compressed"],
        ["-H", "Expect: 100-continue", "-H", "Transfer-Encoding: chunked"],
        ["--http1.0"],
        ["--http2"],
    ],
    ids=["chunked", "compressed answer", "expect", "http1.0", "upgrade to http2"],
)
@pytest.mark.parametrize("rows", [1, 2000])
def test_curl(
    server: Running,
    engine: Engine,
    x: np.ndarray,
    tmp_path: Path,
    options: list[str],
    rows: int,
) -> None:
    text = run(CURL, server.rest + ENCODE, written(tmp_path, x[:rows]), *options)
    check(json.loads(text), dict(engine.encode(x[:rows])))


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_curl_loads_and_unloads_in_chunks(
    server: Running, http: httpx.Client, tmp_path: Path, verb: str
) -> None:
    (tmp_path / "empty").write_bytes(b"")
    url = f"{server.rest}/v2/repository/models/encode/{verb}"
    try:
        text = run(CURL, url, tmp_path / "empty", "-H", "Transfer-Encoding: chunked")
        assert text == ""
        assert http.get("/v2/models/encode/ready").json()["ready"] == (verb == "load")
    finally:
        http.post("/v2/repository/models/encode/load")


@pytest.mark.parametrize("answer", [None, "gzip", "deflate"], ids=["plain", "gzip", "deflate"])
@pytest.mark.parametrize("asked", [None, "gzip", "deflate"], ids=["plain", "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_tritonclient_compresses(
    server: Running, engine: Engine, x: np.ndarray, asked: str, answer: str, binary: bool
) -> None:
    module = triton_http
    tensor = module.InferInput("x", [500, 6, 5], "UINT8")
    tensor.set_data_from_numpy(x[:500], binary_data=binary)
    with module.InferenceServerClient(server.rest.removeprefix("http://")) as client:
        result = client.infer(
            "encode",
            [tensor],
            outputs=[
                module.InferRequestedOutput(name, binary_data=binary)
                for name in ("z_loc", "z_scale")
            ],
            request_compression_algorithm=asked,
            response_compression_algorithm=answer,
        )
    for name, expected in engine.encode(x[:500]).items():
        assert np.float32(result.as_numpy(name)).tobytes() == expected.tobytes()


def test_tritonclient_asks_for_compression_by_default_if_it_is_asynchronous(
    server: Running, engine: Engine, x: np.ndarray
) -> None:
    """And decompresses inferences alone, so that no other answer may be compressed."""
    module = triton_http_aio

    async def infer() -> Any:
        tensor = module.InferInput("x", [500, 6, 5], "UINT8")
        tensor.set_data_from_numpy(x[:500])
        address = server.rest.removeprefix("http://")
        async with module.InferenceServerClient(address) as client:
            assert len(await client.get_model_repository_index()) == 6
            await client.get_inference_statistics()
            return await client.infer("encode", [tensor])

    result = asyncio.run(infer())
    assert result._result["model_name"] == "encode"
    for name, expected in engine.encode(x[:500]).items():
        assert result.as_numpy(name).tobytes() == expected.tobytes()
