"""Servers and batchers that tests share, and their clients."""

import ssl
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from serving.engine import Engine
from serving.server.batching import Batcher
from serving.server.shared_counters import SharedCounters
from tests.serving.conftest import SEALED
from tests.serving.running import Running, serve
from tests.serving.server.browser import Chromium, start_chromium
from tests.serving.server.recorder import INLINE, MakeBatcher, Recorder
from tests.serving.server.secured import KEY, SECRET, CertificateFiles, make_certificate
from tests.serving.server.strict import serve_strictly, stays_unharmed


@pytest.fixture(scope="session")
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.rest, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory, slow_tier: None) -> Iterator[Chromium]:
    """A browser without a window; each page that it opens has storage of its own."""
    with start_chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory, slow_tier: None) -> CertificateFiles:
    return make_certificate(tmp_path_factory.mktemp("tls"), "server")


@pytest.fixture(scope="session")
def locked(tmp_path_factory: pytest.TempPathFactory, slow_tier: None) -> Iterator[Running]:
    """A server with an API key from its environment, without a webhook secret or TLS."""
    with serve(tmp_path_factory.mktemp("locked"), SEALED, "--drain", "1", VAE_API_KEY=KEY) as it:
        yield it


@pytest.fixture(scope="session")
def sealed(
    tmp_path_factory: pytest.TempPathFactory, certificate: CertificateFiles
) -> Iterator[Running]:
    """A server with an API key from a file, a webhook secret, and TLS."""
    folder = tmp_path_factory.mktemp("sealed")
    (folder / "key").write_text(f"{KEY}\n")
    tls = ["--tls-cert", str(certificate.chain), "--tls-key", str(certificate.key)]
    arguments = ["--api-key-file", "key", *tls]
    variables = {"VAE_WEBHOOK_SECRET": SECRET, "VAE_API_KEY": "not this one"}
    with serve(folder, SEALED, "--drain", "1", *arguments, **variables) as running:
        yield running


@pytest.fixture(scope="session")
def https(sealed: Running, certificate: CertificateFiles) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=sealed.rest, verify=ssl.create_default_context(cafile=str(certificate.chain))
    ) as client:
        yield client


@pytest.fixture(scope="session")
def strict(tmp_path_factory: pytest.TempPathFactory, slow_tier: None) -> Iterator[Running]:
    with serve_strictly(tmp_path_factory.mktemp("strict")) as server:
        yield server


@pytest.fixture(scope="session")
def strict_http(strict: Running) -> Iterator[httpx.Client]:
    # each request has its own connection, since this server closes idle ones after a second
    with httpx.Client(base_url=strict.rest, timeout=30, headers={"connection": "close"}) as client:
        yield client


@pytest.fixture
def unharmed(strict: Running, strict_http: httpx.Client, engine: Engine) -> Iterator[None]:
    with stays_unharmed(strict, strict_http, engine):
        yield


@pytest.fixture
def counters(tmp_path: Path) -> SharedCounters:
    return SharedCounters(tmp_path / "counters", 2, 1)


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(1, "engine") as executor:
        yield executor


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def make_batcher(recorder: Recorder, executor: Executor, counters: SharedCounters) -> MakeBatcher:
    def make_batcher(row_s: Mapping[str, float] = INLINE, max_rows: int = 10_000) -> Batcher:
        return Batcher(recorder.compute, row_s, executor, max_rows, counters)

    return make_batcher
