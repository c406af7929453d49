"""Triton's own clients, unmodified and in their default settings, over HTTP and gRPC."""

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc  # type: ignore[import-untyped]
import tritonclient.grpc.aio as triton_grpc_aio  # type: ignore[import-untyped]
import tritonclient.http as triton_http  # type: ignore[import-untyped]
import tritonclient.http.aio as triton_http_aio  # type: ignore[import-untyped]
from tritonclient.utils import InferenceServerException  # type: ignore[import-untyped]

from serving.engine import Engine
from tests.serving.running import Running

NAMES = ["encode", "decode", "reconstruct", "sample", "score", "draw"]
MODULES: Mapping[str, Any] = {
    "http": triton_http,
    "http.aio": triton_http_aio,
    "grpc": triton_grpc,
    "grpc.aio": triton_grpc_aio,
}
pytestmark = pytest.mark.parametrize("kind", MODULES)


@dataclass(frozen=True, slots=True)
class Triton:
    """One of the four clients; results of the asynchronous ones are awaited."""

    client: Any
    module: Any
    over_http: bool

    async def ask(self, name: str, *arguments: object, **options: object) -> Any:
        result = getattr(self.client, name)(*arguments, **options)
        return await result if inspect.isawaitable(result) else result

    async def plain(self, name: str, *arguments: object) -> Any:
        """Return an answer as plain values, also if it is a gRPC message."""
        as_json = {} if self.over_http else {"as_json": True}
        return await self.ask(name, *arguments, **as_json)

    def tensor(self, name: str, array: np.ndarray) -> Any:
        datatype = {"uint8": "UINT8", "float32": "FP32"}[array.dtype.name]
        tensor = self.module.InferInput(name, array.shape, datatype)
        tensor.set_data_from_numpy(array)
        return tensor

    async def refused(self, name: str, *arguments: object, **options: object) -> tuple[str, str]:
        with pytest.raises(InferenceServerException) as caught:
            await self.ask(name, *arguments, **options)
        return str(caught.value.status()), str(caught.value.message())


@contextlib.asynccontextmanager
async def open_client(kind: str, server: Running) -> AsyncIterator[Triton]:
    over_http = kind.startswith("http")
    url = server.rest.removeprefix("http://") if over_http else server.grpc
    client = MODULES[kind].InferenceServerClient(url)
    try:
        yield Triton(client, MODULES[kind.removesuffix(".aio")], over_http)
    finally:
        closed = client.close()
        if inspect.isawaitable(closed):
            await closed


def with_client(kind: str, server: Running, test: Any) -> None:
    async def run() -> None:
        async with open_client(kind, server) as triton:
            await test(triton)

    asyncio.run(run())


def test_health(kind: str, server: Running) -> None:
    async def test(triton: Triton) -> None:
        assert await triton.ask("is_server_live")
        assert await triton.ask("is_server_ready")
        assert await triton.ask("is_model_ready", "score")
        assert await triton.ask("is_model_ready", "score", server.version)
        assert not await triton.ask("is_model_ready", "score", "41")
        assert not await triton.ask("is_model_ready", "nope")

    with_client(kind, server, test)


def test_metadata_and_config(kind: str, server: Running) -> None:
    async def test(triton: Triton) -> None:
        found = await triton.plain("get_server_metadata")
        assert found["name"] == "vae-pipeline"
        assert "binary_tensor_data" in found["extensions"]
        found = await triton.plain("get_model_metadata", "score")
        assert (found["name"], found["versions"]) == ("score", [server.version])
        whole = [
            (t["name"], t["datatype"], [int(size) for size in t["shape"]]) for t in found["inputs"]
        ]
        assert whole == [("x", "UINT8", [-1, 6, 5]), ("eps", "FP32", [-1, -1, 3])]
        outputs = [t["name"] for t in found["outputs"]]
        assert outputs == ["elbo", "log_likelihood", "kl", "iw_elbo"]
        config = await triton.plain("get_model_config", "score")
        config = config.get("config", config)
        assert (config["name"], config["max_batch_size"]) == ("score", 4096)
        tensors = [
            (t["name"], t["data_type"], [int(size) for size in t["dims"]]) for t in config["input"]
        ]
        assert tensors == [("x", "TYPE_UINT8", [6, 5]), ("eps", "TYPE_FP32", [-1, 3])]

    with_client(kind, server, test)


def test_statistics_count(kind: str, server: Running, x: np.ndarray) -> None:
    async def test(triton: Triton) -> None:
        async def counts() -> tuple[int, int]:
            content = await triton.plain("get_inference_statistics", "encode")
            (entry,) = content["model_stats"]
            success = entry["inference_stats"]["success"]
            return int(entry.get("inference_count", 0)), int(success.get("count", 0))

        rows, answers = await counts()
        await triton.ask("infer", "encode", [triton.tensor("x", x[:7])])
        assert await counts() == (rows + 7, answers + 1)
        everything = (await triton.plain("get_inference_statistics"))["model_stats"]
        assert [entry["name"] for entry in everything] == NAMES

    with_client(kind, server, test)


def test_repository(kind: str, server: Running, x: np.ndarray) -> None:
    async def test(triton: Triton) -> None:
        async def ready() -> list[str]:
            index = await triton.plain("get_model_repository_index")
            entries = index if triton.over_http else index["models"]
            return [entry["name"] for entry in entries if entry["state"] == "READY"]

        assert await ready() == NAMES
        try:
            await triton.ask("unload_model", "encode")
            assert await ready() == [name for name in NAMES if name != "encode"]
            assert not await triton.ask("is_model_ready", "encode")
            tensor = triton.tensor("x", x[:1])
            status, message = await triton.refused("infer", "encode", [tensor])
            assert status == ("503" if triton.over_http else "StatusCode.UNAVAILABLE")
            assert message == "encode was unloaded: load it to use it"
        finally:
            await triton.ask("load_model", "encode")
        assert await ready() == NAMES
        status, _ = await triton.refused("load_model", "encode", config="{}")
        assert status == ("400" if triton.over_http else "StatusCode.INVALID_ARGUMENT")

    with_client(kind, server, test)


def test_infer_gives_the_engine_s_bytes(
    kind: str, server: Running, engine: Engine, x: np.ndarray
) -> None:
    async def test(triton: Triton) -> None:
        result = await triton.ask("infer", "encode", [triton.tensor("x", x[:4])], request_id="a1")
        for name, array in engine.encode(x[:4]).items():
            assert result.as_numpy(name).tobytes() == array.tobytes()
            assert result.as_numpy(name).shape == array.shape
        answer = result.get_response()
        named = (
            answer if triton.over_http else {"id": answer.id, "model_version": answer.model_version}
        )
        assert (named["id"], named["model_version"]) == ("a1", server.version)

        eps = np.random.default_rng(2).standard_normal((4, 2, 3)).astype(np.float32)
        tensors = [triton.tensor("x", x[:4]), triton.tensor("eps", eps)]
        outputs = [triton.module.InferRequestedOutput(name) for name in ("kl", "elbo")]
        result = await triton.ask(
            "infer", "score", tensors, outputs=outputs, model_version=server.version
        )
        expected = engine.run("score", {"x": x[:4], "eps": eps})
        for name in ("kl", "elbo"):
            assert result.as_numpy(name).tobytes() == expected[name].tobytes()
        assert result.as_numpy("iw_elbo") is None

    with_client(kind, server, test)


def test_a_seed_is_a_parameter(kind: str, server: Running, engine: Engine, x: np.ndarray) -> None:
    async def test(triton: Triton) -> None:
        result = await triton.ask(
            "infer",
            "score",
            [triton.tensor("x", x[:3])],
            parameters={"seed": 11, "num_samples": 4},
            timeout=20_000_000,
        )
        for name, array in engine.score(x[:3], 4, 11).items():
            assert result.as_numpy(name).tobytes() == array.tobytes()
        result = await triton.ask("infer", "sample", [], parameters={"seed": 5, "num_samples": 6})
        assert result.as_numpy("x_loc").tobytes() == engine.sample(6, 5).tobytes()

    with_client(kind, server, test)


def test_errors_have_their_status_and_text(kind: str, server: Running, x: np.ndarray) -> None:
    async def test(triton: Triton) -> None:
        tensor = triton.tensor("x", x[:1])
        infer = triton.refused
        cases = [
            (await infer("infer", "nope", [tensor]), "404", "NOT_FOUND", "no model 'nope'"),
            (
                await infer("infer", "encode", [tensor], model_version="41"),
                "404",
                "NOT_FOUND",
                "not '41'",
            ),
            (
                await infer("infer", "encode", [triton.tensor("x", x[:2].reshape(1, 60))]),
                "400",
                "INVALID_ARGUMENT",
                "x must be (batch, 6, 5), got (1, 60)",
            ),
            (
                await infer("infer", "encode", [tensor], parameters={"seed": 1}),
                "400",
                "INVALID_ARGUMENT",
                "got 'seed'",
            ),
            (
                await infer("infer", "encode", [tensor], timeout=1),
                "504",
                "DEADLINE_EXCEEDED",
                "the deadline passed in the queue",
            ),
            (await infer("get_model_metadata", "nope"), "404", "NOT_FOUND", "no model 'nope'"),
            (await infer("load_model", "nope"), "404", "NOT_FOUND", "no model 'nope'"),
        ]
        for (status, message), http, grpc, text in cases:
            assert status == (http if triton.over_http else f"StatusCode.{grpc}")
            assert text in message

    with_client(kind, server, test)


def test_json_tensors_and_callbacks_of_the_blocking_clients(
    kind: str, server: Running, engine: Engine, x: np.ndarray
) -> None:
    """Only some clients send tensors as JSON over HTTP, and infer in the background."""

    async def test(triton: Triton) -> None:
        tensor = triton.tensor("x", x[:2])
        outputs = None
        if triton.over_http:
            tensor.set_data_from_numpy(x[:2], binary_data=False)
            outputs = [triton.module.InferRequestedOutput("z_loc", binary_data=False)]
        result = await triton.ask("infer", "encode", [tensor], outputs=outputs)
        expected = engine.encode(x[:2])["z_loc"]
        assert np.float32(result.as_numpy("z_loc")).tobytes() == expected.tobytes()
        if kind == "http":
            waiting = triton.client.async_infer("encode", [tensor])
            assert waiting.get_result().as_numpy("z_loc").shape == (2, 3)

    with_client(kind, server, test)
