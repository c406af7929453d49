"""Both transports speak TLS, and files of certificates and keys are checked at the start."""

import ssl
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from serving.cli.serve import serve as serve_command
from serving.engine import Engine
from serving.errors import UsageRefused
from serving.server.grpc_calls import SERVICE
from tests.serving.conftest import SEALED
from tests.serving.running import Running
from tests.serving.server.secured import KEY, CertificateFiles, infer_over, make_certificate


def test_both_transports_speak_tls(
    https: httpx.Client, sealed: Running, certificate: CertificateFiles, engine: Engine
) -> None:
    assert sealed.rest.startswith("https://127.0.0.1:")
    expected = engine.sample(1, 4)
    response = https.post(
        "/v2/models/sample/infer",
        json={"parameters": {"seed": 4}},
        headers={"authorization": f"Bearer {KEY}"},
    )
    assert response.json()["outputs"][0]["data"] == [float(str(v)) for v in expected.reshape(-1)]
    credentials = grpc.ssl_channel_credentials(certificate.chain.read_bytes())
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


def test_clients_without_tls_or_trust_get_no_answer(sealed: Running) -> None:
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
def test_tls_is_1_2_or_1_3(
    sealed: Running, certificate: CertificateFiles, version: ssl.TLSVersion
) -> None:
    context = ssl.create_default_context(cafile=str(certificate.chain))
    context.minimum_version = context.maximum_version = version
    assert httpx.get(f"{sealed.rest}/v2/health/live", verify=context).status_code == 200


def refused(*arguments: str) -> str:
    """Return the error of `vae serve` before it starts anything."""
    with pytest.raises(UsageRefused) as caught:
        serve_command.main(["--model", str(SEALED), *arguments], standalone_mode=False)
    return str(caught.value)


def test_half_a_certificate_is_refused(certificate: CertificateFiles) -> None:
    for option, file in (("--tls-cert", certificate.chain), ("--tls-key", certificate.key)):
        assert refused(option, str(file)) == "--tls-cert and --tls-key go together"


def test_a_certificate_that_cannot_be_used_is_refused(
    certificate: CertificateFiles, tmp_path: Path
) -> None:
    other = make_certificate(tmp_path, "other")
    (tmp_path / "text").write_text("no certificate")
    (tmp_path / "empty").write_bytes(b"")
    no_pem = "they must be a certificate chain and its private key, both PEM"
    for chain, key, why in (
        (certificate.chain, other.key, "the key is not that of the certificate"),
        (tmp_path / "text", certificate.key, no_pem),
        (certificate.chain, tmp_path / "empty", no_pem),
        (tmp_path / "missing", certificate.key, "No such file or directory"),
        (certificate.chain, tmp_path, "Is a directory"),
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
