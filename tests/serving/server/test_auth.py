"""Who may ask: API keys over both transports, signed webhooks, TLS."""

import base64
import hashlib
import hmac
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from serving import Client
from serving.cli.serve import serve as serve_command
from serving.engine import Engine
from serving.errors import Unauthorized, UsageRefused
from serving.protocol import open_inference_pb2 as pb
from serving.server.auth import MAX_AGE_S, Access
from serving.server.grpc_server import SERVICE
from serving.server.rest_routes import ROUTES
from tests.serving.conftest import SEALED
from tests.serving.running import Running, serve

KEY, SECRET = "correct-horse", "battery-staple"
HEALTH = (
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/{name}/ready",
    "/v2/models/{name}/versions/{version}/ready",
)
PAGES = ("/openapi.json", "/docs")
"""Open, for they say nothing that a client does not need to ask for a key."""
OWN = "/webhooks/mlflow"
"""Has a check of its own."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Files of a certificate that signs itself."""

    chain: Path
    key: Path


def make_pair(folder: Path, name: str) -> Pair:
    pair = Pair(folder / f"{name}.crt", folder / f"{name}.key")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost "
        "-addext subjectAltName=DNS:localhost,IP:127.0.0.1"
    )
    files = ["-keyout", str(pair.key), "-out", str(pair.chain)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    return pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, slow_tier: None) -> Pair:
    return make_pair(tmp_path_factory.mktemp("tls"), "server")


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, slow_tier: None) -> Iterator[Running]:
    """A server with a key from its environment; no secret of webhooks, no TLS."""
    with serve(tmp_path_factory.mktemp("locked"), SEALED, "--drain", "1", VAE_API_KEY=KEY) as it:
        yield it


@pytest.fixture(scope="module")
def http(locked: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=locked.rest) as client:
        yield client


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory, pair: Pair) -> Iterator[Running]:
    """A server with a key from a file, a secret of webhooks, and TLS."""
    folder = tmp_path_factory.mktemp("sealed")
    (folder / "key").write_text(f"{KEY}\n")
    arguments = ["--api-key-file", "key", "--tls-cert", str(pair.chain), "--tls-key", str(pair.key)]
    variables = {"VAE_WEBHOOK_SECRET": SECRET, "VAE_API_KEY": "not this one"}
    with serve(folder, SEALED, "--drain", "1", *arguments, **variables) as running:
        yield running


def fill(path: str, server: Running) -> str:
    return path.replace("{name}", "sample").replace("{version}", server.version)


def infer_over(channel: grpc.Channel, *metadata: tuple[str, str]) -> Any:
    call: Any = channel.unary_unary(
        f"/{SERVICE}/ModelInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelInferResponse.FromString,
    )
    request = pb.ModelInferRequest(model_name="sample")
    request.parameters["seed"].int64_param = 4
    return call(request, timeout=10, metadata=metadata)


@pytest.mark.parametrize(
    "route",
    [route for route in ROUTES if route.path not in (*HEALTH, *PAGES, OWN)],
    ids=lambda route: f"{route.method} {route.path}",
)
def test_without_the_key_nothing_is_answered(
    http: httpx.Client, locked: Running, route: Any
) -> None:
    wrong: list[Any] = [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {KEY}"},
        {"authorization": KEY},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": f"Bearer {KEY[:-1]}"},
        {"x-api-key": "wrong"},
        {"x-api-key": ""},
        {"x-api-key": b"\xc3\xa4\xff"},
    ]
    for headers in wrong:
        response = http.request(route.method, fill(route.path, locked), headers=headers)
        assert response.status_code == 401, (headers, response.text)
        assert "Authorization: Bearer KEY" in response.json()["error"]
    ready = http.post("/v2/repository/index", headers={"x-api-key": KEY}).json()
    assert {entry["state"] for entry in ready} == {"READY"}


@pytest.mark.parametrize("path", [*HEALTH, *PAGES])
def test_health_and_pages_are_open(http: httpx.Client, locked: Running, path: str) -> None:
    assert http.get(fill(path, locked)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{"authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {KEY}"}, {"x-api-key": KEY}],
    ids=["bearer", "lower case", "x-api-key"],
)
def test_the_key_opens_everything(
    http: httpx.Client, locked: Running, headers: dict[str, str]
) -> None:
    try:
        for route in ROUTES:
            content = b"{}" if route.method == "POST" else None
            response = http.request(
                route.method, fill(route.path, locked), headers=headers, content=content
            )
            assert response.status_code in (200, 202), (route.path, response.text)
    finally:
        http.post(fill("/v2/repository/models/{name}/load", locked), headers=headers)


def test_a_401_names_the_scheme(http: httpx.Client) -> None:
    """RFC 9110, section 15.5.2: the server MUST send a WWW-Authenticate header field."""
    response = http.get("/v2")
    assert response.headers.get("www-authenticate", "").startswith("Bearer")


def test_an_unknown_address_is_404_without_the_key(http: httpx.Client) -> None:
    assert http.get("/nope").status_code == 404


def test_clients_send_the_key(
    locked: Running, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = engine.sample(2, 4).tobytes()
    with Client(locked.rest, api_key=KEY) as client:
        assert client.sample(2, seed=4).tobytes() == expected
    monkeypatch.setenv("VAE_API_KEY", KEY)
    with Client(locked.rest) as client:
        assert client.sample(2, seed=4).tobytes() == expected
    with Client(locked.rest, api_key="wrong") as client, pytest.raises(Unauthorized):
        client.sample(2, seed=4)


@pytest.mark.parametrize(
    ("name", "request_of"),
    [
        ("ModelInfer", pb.ModelInferRequest(model_name="sample")),
        ("ServerMetadata", pb.ServerMetadataRequest()),
        ("ModelMetadata", pb.ModelMetadataRequest(name="sample")),
        ("ModelConfig", pb.ModelConfigRequest(name="sample")),
        ("ModelStatistics", pb.ModelStatisticsRequest(name="sample")),
        ("RepositoryIndex", pb.RepositoryIndexRequest()),
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="sample")),
        ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="sample")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_grpc_without_the_key_is_unauthenticated(
    locked: Running, name: str, request_of: Any
) -> None:
    with grpc.insecure_channel(locked.grpc) as channel:
        call: Any = channel.unary_unary(f"/{SERVICE}/{name}")
        for metadata in (
            [],
            [("authorization", "Bearer wrong")],
            [("x-api-key", "wrong")],
            [("authorization", f"Basic {KEY}")],
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call(request_of.SerializeToString(), timeout=10, metadata=metadata)
            error: Any = caught.value
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED


def test_grpc_health_is_open_and_the_key_opens_the_rest(locked: Running, engine: Engine) -> None:
    with grpc.insecure_channel(locked.grpc) as channel:
        sample = pb.ModelReadyRequest(name="sample").SerializeToString()
        for path, message in (
            (f"{SERVICE}/ServerLive", b""),
            (f"{SERVICE}/ServerReady", b""),
            (f"{SERVICE}/ModelReady", sample),
            ("grpc.health.v1.Health/Check", b""),
        ):
            call: Any = channel.unary_unary(f"/{path}")
            assert call(message, timeout=10) == b"\x08\x01"  # field 1 is true, or SERVING
        for metadata in (("authorization", f"Bearer {KEY}"), ("x-api-key", KEY)):
            reply = infer_over(channel, metadata)
            assert reply.raw_output_contents[0] == engine.sample(1, 4).tobytes()


def test_refused_requests_are_counted_at_both_doors(http: httpx.Client, locked: Running) -> None:
    def counts() -> dict[str, float]:
        text = http.get("/metrics", headers={"x-api-key": KEY}).text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if 'status="401"' in line]
        return {
            door: sum(float(value) for name, value in lines if f'"{door}"' in name)
            for door in ("rest", "grpc")
        }

    before = counts()
    http.post("/v2/models/sample/infer", json={})
    with grpc.insecure_channel(locked.grpc) as channel, pytest.raises(grpc.RpcError):
        infer_over(channel)
    after = counts()
    assert {door: after[door] - before[door] for door in after} == {"rest": 1, "grpc": 1}


def test_a_key_is_compared_as_a_whole() -> None:
    Access().check(None, None)
    access = Access(api_key=KEY)
    access.check(f"Bearer {KEY}", None)
    access.check(None, KEY)
    access.check("Basic abc", KEY)
    for authorization, api_key in (
        (None, None),
        ("", ""),
        (f"Bearer {KEY} ", None),
        (f"Bearer {KEY.upper()}", None),
        (None, KEY + "\0"),
        ("Bearer wrong", KEY),
        (None, "ключ"),
    ):
        with pytest.raises(Unauthorized):
            access.check(authorization, api_key)


def sign(body: bytes, *, secret: str = SECRET, age_s: float = 0, delivery: str = "d-1") -> Any:
    """Headers as mlflow.webhooks.delivery makes them."""
    stamp = str(int(time.time() - age_s))
    signed = f"{delivery}.{stamp}.{body.decode()}"
    digest = hmac.new(secret.encode(), signed.encode(), hashlib.sha256).digest()
    return {
        "X-MLflow-Signature": f"v1,{base64.b64encode(digest).decode()}",
        "X-MLflow-Delivery-Id": delivery,
        "X-MLflow-Timestamp": stamp,
    }


@pytest.mark.full_environment
def test_the_signature_is_the_one_that_mlflow_makes() -> None:
    delivery = pytest.importorskip("mlflow.webhooks.delivery", reason="mlflow is not installed")
    body = '{"entity": "model_version_alias"}'
    stamp = str(int(time.time()))
    headers = {
        "x-mlflow-signature": delivery._generate_hmac_signature(SECRET, "d-9", stamp, body),
        "x-mlflow-delivery-id": "d-9",
        "x-mlflow-timestamp": stamp,
    }
    Access(webhook_secret=SECRET).check_webhook(headers, body.encode())


@pytest.fixture(scope="module")
def https(sealed: Running, pair: Pair) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=sealed.rest, verify=ssl.create_default_context(cafile=str(pair.chain))
    ) as client:
        yield client


BODY = b'{"entity": "model_version_alias", "action": "created", "data": {"alias": "champion"}}'


def test_a_signed_webhook_is_accepted_without_the_key(https: httpx.Client) -> None:
    response = https.post("/webhooks/mlflow", content=BODY, headers=sign(BODY))
    assert (response.status_code, response.content) == (202, b"")
    late = sign(BODY, age_s=MAX_AGE_S - 30)
    assert https.post("/webhooks/mlflow", content=BODY, headers=late).status_code == 202


def changed(**headers: str | bytes | None) -> dict[str, Any]:
    """Valid headers with some changed, or left out."""
    names = {"signature": "Signature", "delivery": "Delivery-Id", "stamp": "Timestamp"}
    all_headers = sign(BODY) | {f"X-MLflow-{names[k]}": value for k, value in headers.items()}
    return {name: value for name, value in all_headers.items() if value is not None}


UNSIGNED: Mapping[str, Callable[[], dict[str, Any]]] = {
    "unsigned": dict,
    "the key": lambda: {"authorization": f"Bearer {KEY}"},
    "another secret": lambda: sign(BODY, secret="other"),
    "another body": lambda: sign(BODY + b" "),
    "another delivery": lambda: changed(delivery="d-2"),
    "another time": lambda: changed(stamp=str(int(time.time()) + 9)),
    "old": lambda: sign(BODY, age_s=MAX_AGE_S + 30),
    "of the future": lambda: sign(BODY, age_s=-MAX_AGE_S - 30),
    "no time": lambda: changed(stamp=None),
    "no delivery": lambda: changed(delivery=None),
    "no signature": lambda: changed(signature=None),
    "a word for a time": lambda: changed(stamp="now"),
    "a negative time": lambda: changed(stamp="-1"),
    "a huge time": lambda: changed(stamp="9" * 5000),
    "a digit that is no number": lambda: changed(stamp="²".encode()),
    "an empty signature": lambda: changed(signature="v1,"),
    "a signature of no version": lambda: changed(signature=sign(BODY)["X-MLflow-Signature"][3:]),
}


@pytest.mark.parametrize("case", UNSIGNED)
def test_a_webhook_that_is_not_signed_is_refused(https: httpx.Client, case: str) -> None:
    response = https.post("/webhooks/mlflow", content=BODY, headers=UNSIGNED[case]())
    assert response.status_code == 401, response.text
    assert "not signed with this server's secret" in response.json()["error"]


@pytest.mark.parametrize("stamp", ["²", "\u0661", "9" * 5000, ""], ids=lambda text: text[:3])
def test_a_time_that_is_no_number_is_unauthorized(stamp: str) -> None:
    headers = {name.lower(): value for name, value in changed(stamp=stamp).items()}
    with pytest.raises(Unauthorized):
        Access(webhook_secret=SECRET).check_webhook(headers, BODY)


def test_without_a_secret_a_webhook_needs_the_key(http: httpx.Client) -> None:
    address = "/webhooks/mlflow"
    assert http.post(address, content=BODY, headers=sign(BODY)).status_code == 401
    assert http.post(address, content=BODY, headers={"x-api-key": KEY}).status_code == 202


def test_both_transports_speak_tls(
    https: httpx.Client, sealed: Running, pair: Pair, engine: Engine
) -> None:
    assert sealed.rest.startswith("https://127.0.0.1:")
    expected = engine.sample(1, 4)
    response = https.post(
        "/v2/models/sample/infer",
        json={"parameters": {"seed": 4}},
        headers={"authorization": f"Bearer {KEY}"},
    )
    assert response.json()["outputs"][0]["data"] == [float(str(v)) for v in expected.reshape(-1)]
    credentials = grpc.ssl_channel_credentials(pair.chain.read_bytes())
    with grpc.secure_channel(sealed.grpc, credentials) as channel:
        reply = infer_over(channel, ("authorization", f"Bearer {KEY}"))
        assert reply.raw_output_contents[0] == expected.tobytes()
        with pytest.raises(grpc.RpcError) as caught:
            infer_over(channel)
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED


def test_the_key_of_the_file_wins_over_the_environment(https: httpx.Client) -> None:
    assert https.get("/v2", headers={"x-api-key": KEY}).status_code == 200
    assert https.get("/v2", headers={"x-api-key": "not this one"}).status_code == 401


def test_nothing_is_said_without_tls_or_to_those_who_do_not_trust_it(sealed: Running) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{sealed.rest}/v2/health/live")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{sealed.port}/v2/health/live")
    with grpc.insecure_channel(sealed.grpc) as channel:
        call: Any = channel.unary_unary(f"/{SERVICE}/ServerLive")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=5)
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_is_1_2_or_1_3(sealed: Running, pair: Pair, version: ssl.TLSVersion) -> None:
    context = ssl.create_default_context(cafile=str(pair.chain))
    context.minimum_version = context.maximum_version = version
    assert httpx.get(f"{sealed.rest}/v2/health/live", verify=context).status_code == 200


def refused(*arguments: str) -> str:
    """What `vae serve` says before it starts anything."""
    with pytest.raises(UsageRefused) as caught:
        serve_command.main(["--model", str(SEALED), *arguments], standalone_mode=False)
    return str(caught.value)


def test_half_a_certificate_is_refused(pair: Pair) -> None:
    for option, file in (("--tls-cert", pair.chain), ("--tls-key", pair.key)):
        assert refused(option, str(file)) == "--tls-cert and --tls-key go together"


def test_a_certificate_that_cannot_be_used_is_refused(pair: Pair, tmp_path: Path) -> None:
    other = make_pair(tmp_path, "other")
    (tmp_path / "text").write_text("no certificate")
    (tmp_path / "empty").write_bytes(b"")
    no_pem = "they must be a certificate chain and its private key, both PEM"
    for chain, key, why in (
        (pair.chain, other.key, "the key is not that of the certificate"),
        (tmp_path / "text", pair.key, no_pem),
        (pair.chain, tmp_path / "empty", no_pem),
        (tmp_path / "missing", pair.key, "No such file or directory"),
        (pair.chain, tmp_path, "Is a directory"),
    ):
        text = refused("--tls-cert", str(chain), "--tls-key", str(key))
        assert text == f"cannot use {chain} with {key}: {why}"


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"", "is empty: write the key into it"), (b" \n", "is empty"), (b"\xff", "cannot read")],
)
def test_a_file_without_a_key_is_refused(content: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(content)
    assert text in refused("--api-key-file", str(tmp_path / "key"))


def test_a_missing_file_of_a_key_is_refused(tmp_path: Path) -> None:
    assert "cannot read" in refused("--api-key-file", str(tmp_path / "missing"))


def test_a_webhook_that_is_too_long_is_refused_before_it_is_read(https: httpx.Client) -> None:
    body = b" " * 2**15
    response = https.post("/webhooks/mlflow", content=body, headers=sign(body))
    assert response.status_code == 413
    assert response.json() == {"error": "a webhook may have 16384 bytes"}
