"""The clients of a running server return the engine's own bytes, and raise errors by status."""

import asyncio
import sys
from collections.abc import Iterator

import numpy as np
import pytest

import serving
from serving import AsyncClient, Client
from serving.engine import Engine
from serving.errors import DataRefused, NotFound, UsageRefused
from tests.serving.running import Running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Client]:
    with Client(server.rest) as client:
        yield client


@pytest.mark.parametrize("name", ["Client", "AsyncClient"])
def test_a_missing_package_of_a_client_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delitem(sys.modules, "serving.client")
    monkeypatch.delattr(serving, "client")
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        getattr(serving, name)
    assert str(caught.value) == (f"serving.{name} needs httpx: pip install 'vae-pipeline[client]'")


def test_every_operation_gives_the_engine_s_bytes(
    client: Client, engine: Engine, x: np.ndarray
) -> None:
    z = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    for name, array in engine.encode(x[:5]).items():
        assert client.encode(x[:5])[name].tobytes() == array.tobytes()
    assert client.decode(z).tobytes() == engine.decode(z).tobytes()
    assert client.reconstruct(x[:5]).tobytes() == engine.reconstruct(x[:5]).tobytes()
    assert client.sample(9, seed=7).tobytes() == engine.sample(9, 7).tobytes()
    for name, array in engine.score(x[:5], 3, 7).items():
        assert client.score(x[:5], num_samples=3, seed=7)[name].tobytes() == array.tobytes()


def test_the_asynchronous_client_gives_the_same(
    server: Running, client: Client, x: np.ndarray
) -> None:
    async def ask() -> list[bytes]:
        async with AsyncClient(server.rest) as client:
            assert await client.ready()
            answers = [
                *(await client.encode(x[:3])).values(),
                await client.decode(np.zeros((2, 3))),
                await client.reconstruct(x[:3]),
                await client.sample(2, seed=1),
                *(await client.score(x[:3], 2, 1)).values(),
            ]
        return [answer.tobytes() for answer in answers]

    assert asyncio.run(ask()) == [
        answer.tobytes()
        for answer in (
            *client.encode(x[:3]).values(),
            client.decode(np.zeros((2, 3))),
            client.reconstruct(x[:3]),
            client.sample(2, seed=1),
            *client.score(x[:3], 2, 1).values(),
        )
    ]


def test_an_answer_names_its_version(server: Running, client: Client) -> None:
    response = client.infer("sample", {}, seed=3)
    assert (response.model, response.version) == ("sample", server.version)


def test_another_version_is_not_found(server: Running) -> None:
    with Client(server.rest, version="41") as client, pytest.raises(NotFound, match="not '41'"):
        client.sample(1)


def test_a_refusal_raises_the_error_of_its_status(client: Client) -> None:
    with pytest.raises(UsageRefused, match=r"x must be \(batch, 6, 5\), got \(2, 3\)"):
        client.reconstruct(np.zeros((2, 3), np.uint8))


def test_a_dtype_that_no_graph_takes_is_refused_before_it_is_sent(client: Client) -> None:
    with pytest.raises(DataRefused, match="x must be uint8 or float32, got int64"):
        client.reconstruct(np.zeros((2, 6, 5), np.int64))


def test_no_server_is_not_ready() -> None:
    with Client("http://127.0.0.1:9") as client:
        assert not client.ready()
